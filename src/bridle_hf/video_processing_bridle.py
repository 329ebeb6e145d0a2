"""Video front-end of BRIDLE: frames at a stride, resize, crop, scale to [0, 1], normalise; several views for tests."""

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import is_av_available
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, load_video, make_batched_videos

from .checks_bridle import check_depth, check_kind, checked_pixels, described


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


class BridleVideoProcessorKwargs(VideosKwargs, total=False):
    """
    frame_stride (`int`): distance of neighbouring frames of a clip; `None` is the largest that the video allows.
    num_clips (`int`): clips evenly spread over the video, each a view of its own.
    num_crops (`int`): crops evenly spread along the longer side, each a view of its own.
    """

    frame_stride: int | None
    num_clips: int | None
    num_crops: int | None


class BridleVideoProcessor(BaseVideoProcessor):
    """Turns videos into `pixel_values` (B, frames, 3, height, width) float32.

    With `do_sample_frames`, a clip of `num_frames` frames, `frame_stride` apart, is taken from the middle of each
    video; otherwise all frames are. Then as for images: the shorter side resized to `size["shortest_edge"]`, the middle
    of `crop_size` cut out, scaled and normalised. Files are decoded by PyAV, which brings its own FFmpeg.

    For tests with several views, `num_clips` clips and `num_crops` crops of each make B * num_clips * num_crops rows,
    the views of one video next to each other: average their logits.

    Raises:
        ValueError: no video; one that is empty, has fewer than `num_frames` frames or not 1 or 3 channels, is not of
            uint8 or floats, or holds NaN or inf; several clips without `do_sample_frames`.
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
    valid_kwargs = BridleVideoProcessorKwargs
    model_input_names = ["pixel_values"]

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
        if (kwargs.get("num_clips") or self.num_clips) > 1 and not sampled:
            raise ValueError("num_clips is above 1; that takes do_sample_frames=True and num_frames.")
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
        positions = np.linspace(0, 1, num_clips) if num_clips > 1 else [0.5]
        total = int(metadata.total_num_frames)
        return np.concatenate([clip_indices(total, num_frames, frame_stride, position) for position in positions])

    def _decode_and_sample_videos(self, videos, **kwargs):
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
        """Decodes paths and URLs, no further than needed: frames (frames, height, width, 3) uint8 and metadata."""
        if isinstance(video_url_or_urls, list):
            return list(zip(*[self.fetch_videos(video, sample_indices_fn) for video in video_url_or_urls], strict=True))
        require_av()
        wanted = None

        def indices(metadata, **kwargs):
            nonlocal wanted
            # Some containers, webm among them, do not say how many frames they hold: all are decoded then.
            if not metadata.total_num_frames or sample_indices_fn is None:
                return range(np.iinfo(np.int64).max)
            wanted = np.asarray(sample_indices_fn(metadata=metadata))
            return np.unique(wanted)

        frames, metadata = load_video(video_url_or_urls, backend="pyav", sample_indices_fn=indices)
        if wanted is not None:
            return frames[np.searchsorted(np.unique(wanted), wanted)], metadata
        metadata.total_num_frames = len(frames)
        return (frames if sample_indices_fn is None else frames[sample_indices_fn(metadata=metadata)]), metadata

    def _prepare_input_videos(self, videos, **kwargs) -> list[torch.Tensor]:
        try:
            videos = super()._prepare_input_videos(videos=videos, **kwargs)
        except ValueError as error:
            given = ", ".join(map(described, videos))
            raise ValueError(f"videos has {given}; a video takes 1 or 3 channels: {error}") from error
        return [checked_pixels(video, "videos") for video in videos]

    def _preprocess(self, videos, num_clips=1, num_crops=1, **kwargs) -> BatchFeature:
        if num_clips * num_crops > 1:
            if kwargs["do_resize"]:
                videos = [self.resize(video, size=kwargs["size"], resample=kwargs["resample"]) for video in videos]
            size = kwargs["crop_size"]
            videos = [
                crop
                for video in videos
                for clip in video.chunk(num_clips)  # (frames, 3, height, width) each
                for crop in spread_crops(clip, (size.height, size.width), num_crops)
            ]
            kwargs |= {"do_resize": False}
        return super()._preprocess(videos, **kwargs)


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


def require_av() -> None:
    """Raise a `ModuleNotFoundError` that says what to install where PyAV is missing."""
    if not is_av_available():
        raise ModuleNotFoundError(
            "videos are decoded by PyAV, which is not installed: run `pip install av` or `pip install bridle-hf[av]`.",
            name="av",
        )


def spread_crops(video: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """Crops of (..., H, W), evenly spread from end to end along each side; one alone is the middle."""
    spare = [max(0, have - want) for have, want in zip(video.shape[-2:], size, strict=True)]
    shares = np.linspace(0, 1, count) if count > 1 else [0.5]
    corners = [[round(share * room) for room in spare] for share in shares]
    return [video[..., top : top + size[0], left : left + size[1]] for top, left in corners]


__all__ = ["BridleVideoProcessor", "clip_indices"]
