"""Video front-end of BRIDLE: frames at a stride, resize, crop, scale to [0, 1], normalise; several views for tests."""

import os
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import torch
from huggingface_hub import get_session
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, make_batched_videos

from .checks_bridle import (
    check_depth,
    check_kind,
    check_number,
    check_pixel_settings,
    checked_pixels,
    described,
    warn_of_small_pixels,
)
from .image_processing_bridle import covering_size
from .video_decoding_bridle import VideoFacts, read_video, require_av

logger = logging.get_logger(__name__)

MAX_FRAMES = 100_000  # of a clip, and of a stride


def clip_indices(total_frames: int, num_frames: int, stride: int | None, position: float = 0.5) -> np.ndarray:
    """Which frames of a video make a clip.

    Args:
        total_frames: of the video.
        num_frames: of the clip.
        stride: distance of neighbouring frames; smaller where the video is too short for it. `None` is the largest
            that fits, and 0 repeats one frame.
        position: where the clip lies: 0 at the video's start, 1 at its end.

    Returns:
        (num_frames,) int64, ascending.

    Raises:
        ValueError: the video has fewer than `num_frames` frames, or none.
    """
    needed = 1 if stride == 0 else num_frames
    if total_frames < needed:
        raise ValueError(f"the video has {total_frames} frames; a clip takes at least {needed}.")
    widest = (total_frames - 1) // max(1, num_frames - 1)
    stride = widest if stride is None else min(stride, widest)
    start = round(position * (total_frames - 1 - (num_frames - 1) * stride))
    return start + stride * np.arange(num_frames)


def view_indices(total_frames: int, num_frames: int, stride: int | None, num_clips: int) -> np.ndarray:
    """The frames of the clips of a test, evenly spread over a video, (num_clips * num_frames,); one is the middle."""
    positions = np.linspace(0, 1, num_clips) if num_clips > 1 else [0.5]
    return np.concatenate([clip_indices(total_frames, num_frames, stride, position) for position in positions])


class BridleVideoProcessorKwargs(VideosKwargs, total=False):
    """
    frame_stride (`int`): distance of neighbouring frames of a clip; `None` is the largest that the video allows.
    num_clips (`int`): clips evenly spread over the video, each a view of its own.
    num_crops (`int`): crops evenly spread along the longer side, each a view of its own.
    keep_aspect_ratio (`bool`): a `size` of height and width is what the resized frames have to cover; otherwise they
        are stretched to it.
    """

    frame_stride: int | None
    num_clips: int | None
    num_crops: int | None
    keep_aspect_ratio: bool


class BridleVideoProcessor(BaseVideoProcessor):
    """Turns videos into `pixel_values` (B, frames, 3, height, width) float32.

    With `do_sample_frames`, a clip of `num_frames` frames, `frame_stride` apart, is taken from the middle of each
    video; otherwise all frames are. Then as for images: the shorter side resized to `size["shortest_edge"]`, the middle
    of `crop_size` cut out, scaled and normalised. Files are decoded by PyAV, which brings its own FFmpeg.

    For tests with several views, `num_clips` clips and `num_crops` crops of each make B * num_clips * num_crops rows,
    the views of one video next to each other: average their logits.

    Raises:
        ValueError: no video; one that is empty, has fewer than `num_frames` frames or not 1 or 3 channels, is not of
            uint8 or floats, or holds NaN or inf; several clips without `do_sample_frames` and `num_frames`, or with
            `fps`.
        ImportError: a path or URL, where PyAV is not installed.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    frame_stride = None
    num_clips = 1
    num_crops = 1
    keep_aspect_ratio = False
    valid_kwargs = BridleVideoProcessorKwargs
    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_pixel_settings(self)
        for name, low in (("num_frames", 1), ("frame_stride", 0), ("num_clips", 1), ("num_crops", 1)):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, low, MAX_FRAMES, f"a whole number of {low} to {MAX_FRAMES}", whole=True)

    @classmethod
    def from_dict(cls, video_processor_dict, **kwargs):
        check_kind(video_processor_dict, "video_processor")
        return super().from_dict(video_processor_dict, **kwargs)

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[BridleVideoProcessorKwargs]) -> BatchFeature:
        """
        Args:
            videos: a video or a list of videos: paths, URLs, arrays or tensors (frames, channels, height, width) or
                (frames, height, width, channels), lists of PIL images.
        """
        sampled = kwargs.get("do_sample_frames", self.do_sample_frames)
        counted = (kwargs.get("num_frames") or self.num_frames) and kwargs.get("fps", self.fps) is None
        if (kwargs.get("num_clips") or self.num_clips) > 1 and not (sampled and counted):
            raise ValueError("num_clips is above 1; that takes do_sample_frames=True and num_frames, and no fps.")
        batch = super().preprocess(videos, **kwargs)
        batch["pixel_values"] = batch.pop("pixel_values_videos")
        return batch

    def sample_frames(
        self, metadata, num_frames=None, fps=None, frame_stride=None, num_clips=1, **kwargs
    ) -> np.ndarray:
        """Indices of the frames of all clips, clip after clip."""
        num_frames = self.num_frames if num_frames is None else num_frames
        if fps is not None or num_frames is None:
            return super().sample_frames(metadata, num_frames=num_frames, fps=fps)
        return view_indices(int(metadata.total_num_frames), num_frames, frame_stride, num_clips)

    def _decode_and_sample_videos(self, videos, **kwargs):
        videos = paths_as_text(videos)
        try:
            videos = make_batched_videos(videos)
        except IndexError:
            videos = []
        except ValueError as error:
            raise ValueError(f"videos is {described(videos)}; it takes a video or a list of videos: {error}") from error
        if len(videos) == 0:
            raise ValueError("videos is empty; it takes a video or a list of videos.")
        for video in videos:
            check_video(video)
        return super()._decode_and_sample_videos(videos, **kwargs)

    def fetch_videos(self, video_url_or_urls, sample_indices_fn=None):
        """Decodes paths and URLs, no further than needed: frames (frames, 3, height, width) uint8 and metadata."""
        if isinstance(video_url_or_urls, list):
            return list(zip(*[self.fetch_videos(video, sample_indices_fn) for video in video_url_or_urls], strict=True))
        require_av()
        indices = None

        def choose(facts):
            nonlocal indices
            indices = np.asarray(sample_indices_fn(metadata=metadata_of(facts)))
            return indices

        with opened(video_url_or_urls) as file:
            frames, facts = read_video(file, None if sample_indices_fn is None else choose)
        if facts.damaged:
            logger.warning("%s is damaged in part; there the frame before is taken", video_url_or_urls)
        metadata = metadata_of(facts)
        metadata.frames_indices = np.arange(len(frames)) if indices is None else indices
        return frames, metadata

    def _prepare_input_videos(self, videos, **kwargs) -> list[torch.Tensor]:
        try:
            videos = super()._prepare_input_videos(videos=videos, **kwargs)
        except ValueError as error:
            given = ", ".join(map(described, videos))
            raise ValueError(f"videos has {given}; a video takes 1 or 3 channels: {error}") from error
        return [checked_pixels(video, "videos") for video in videos]

    def _preprocess(self, videos, num_clips=1, num_crops=1, keep_aspect_ratio=False, **kwargs) -> BatchFeature:
        warn_of_small_pixels(videos, "videos", kwargs["do_rescale"])
        size, covered = kwargs["size"], keep_aspect_ratio and kwargs["size"].height
        if kwargs["do_resize"] and (covered or num_clips * num_crops > 1):
            videos = [
                self.resize(video, size=covering_size(video, size) if covered else size, resample=kwargs["resample"])
                for video in videos
            ]
            kwargs |= {"do_resize": False}
        if num_clips * num_crops > 1:
            size = kwargs["crop_size"]
            videos = [
                crop
                for video in videos
                for clip in video.chunk(num_clips)  # (frames, 3, height, width) each
                for crop in spread_crops(clip, (size.height, size.width), num_crops)
            ]
        return super()._preprocess(videos, **kwargs)


def paths_as_text(videos):
    """Convert the `pathlib` paths in arbitrarily nested videos to strings."""
    if isinstance(videos, os.PathLike):
        return os.fspath(videos)
    if isinstance(videos, Mapping):
        raise ValueError(
            f"videos has a dict with {', '.join(map(str, videos))}; a video takes a path, a URL or frames."
        )
    return [paths_as_text(video) for video in videos] if isinstance(videos, list | tuple) else videos


def check_video(video) -> None:
    """Raise a `ValueError` for what is neither a path, a list of paths of frames, nor frames as an array or tensor."""
    if isinstance(video, str | list):
        return
    shape = tuple(getattr(video, "shape", ()))
    if len(shape) != 4 or 0 in shape or {1, 3, 4}.isdisjoint((shape[1], shape[3])):
        raise ValueError(
            f"videos has {described(video)}; a video takes (frames, channels, height, width) or (frames, height, "
            "width, channels) with 1, 3 or 4 channels, and no dimension of 0."
        )
    check_depth(video, "videos")


def opened(video: str):
    """The file at a path or URL, open for reading."""
    if os.path.isfile(video):
        return open(video, "rb")
    if video.startswith(("http://", "https://")):
        return BytesIO(get_session().get(video, follow_redirects=True).raise_for_status().content)
    raise ValueError(f"videos has {video!r}; a video takes the path of a file or a URL.")


def metadata_of(facts: VideoFacts) -> VideoMetadata:
    return VideoMetadata(
        total_num_frames=facts.total,
        fps=float(facts.rate),
        width=facts.width,
        height=facts.height,
        duration=float(facts.total / facts.rate),
        video_backend="pyav",
    )


def spread_crops(video: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """Crops of (..., H, W), evenly spread from end to end along each side; one alone is the middle."""
    spare = [max(0, have - want) for have, want in zip(video.shape[-2:], size, strict=True)]
    shares = np.linspace(0, 1, count) if count > 1 else [0.5]
    corners = [[round(share * room) for room in spare] for share in shares]
    return [video[..., top : top + size[0], left : left + size[1]] for top, left in corners]


__all__ = ["BridleVideoProcessor", "clip_indices"]
