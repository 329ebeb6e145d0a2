"""Videos: decoding of files and arrays, batches of clips of frames, and the modality."""

import logging
from collections.abc import Callable
from functools import lru_cache, partial

import datasets
import numpy as np

from ..configuration_bridle import BridleConfig
from ..demo_data import write_motion_set
from ..video_decoding_bridle import Recording, read_video, require_av
from ..video_processing_bridle import BridleVideoProcessor, clip_indices, view_indices
from .arguments import DataArguments
from .extensions import video_extensions
from .media import BadClipError, is_array, open_file, pixels_of
from .modality import Modality
from .pixels import (
    UNNORMALISED,
    PixelCollator,
    kept_size,
    measure_pixels,
    pixel_picture,
    pixel_sizes,
    square_means,
)

logger = logging.getLogger(__name__)


def decode_video(
    video, choose: Callable[[int], np.ndarray] | None = None, cover: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode a video or some of its frames.

    Args:
        video: `{"bytes", "path"}` as an undecoded `datasets.Video` column gives it, or a path or URL alone; or decoded
            already, an array as `pixels_of` takes it or a list of PIL images.
        choose: number of frames of the video -> indices of those that are wanted, see `read_video`. `None` is all.
        cover: height and width; frames of a file are made as small as covers them while they are decoded. `None` keeps
            their size.

    Returns:
        uint8 (frames, 3, H, W).

    Raises:
        BadClipError: where the video is missing, corrupt, too large, or `choose` raises a `ValueError`.
        ImportError: PyAV, the extra `av`, is not installed.
    """
    if is_array(video):
        try:
            video = np.stack([np.asarray(frame) for frame in video]) if isinstance(video, list) else video
        except Exception as error:  # images of several sizes, or of files that are damaged
            raise BadClipError(f"cannot be decoded: {error}") from error
        frames = pixels_of(video, 4)
        try:
            return frames if choose is None else frames[choose(len(frames))]
        except ValueError as error:
            raise BadClipError(str(error)) from error
    require_av()
    import av

    try:
        with open_file(video) as file:
            chosen = choose and (lambda facts: choose(facts.total))
            frames, facts = read_video(file, chosen, cover and partial(reduced, cover))
    except BadClipError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadClipError(f"cannot be decoded: {error}") from error
    if facts.damaged:
        warn_of_damage(video if isinstance(video, str) else str(video.get("path")))
    return frames


def reduced(cover: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The smallest height and width that cover `cover` and keep the proportions; never more than there are."""
    scale = min(1, max(cover[0] / height, cover[1] / width))
    return round(scale * height), round(scale * width)


@lru_cache(maxsize=10_000)
def warn_of_damage(path: str) -> None:
    """Say that a part of a video is damaged, once of each."""
    logger.warning("%s is damaged in part; there the frame before is taken", path)


def clip_at(position: float, processor) -> Callable[[int], np.ndarray]:
    """Number of frames of a video -> indices (num_frames,) of a clip at a place in it, from 0, its start, to 1.

    Raises:
        ValueError: when called with fewer frames than a clip has.
    """
    return lambda total: clip_indices(total, processor.num_frames, processor.frame_stride, position)


def video_frames(
    raw,
    data: DataArguments,
    processor,
    rng: np.random.Generator | None = None,
    views: tuple[int, int] | None = None,
) -> np.ndarray:
    """`Modality.decode` of videos: uint8 (frames, 3, H, W), of a random clip with `rng`; or (clips, frames, 3, H, W) of
    the clips of a test with `views`; or all, no larger than training crops of them need to be."""
    if rng is not None:
        return decode_video(raw, clip_at(rng.uniform(), processor))
    if views is not None:
        count, stride = processor.num_frames, processor.frame_stride
        frames = decode_video(raw, lambda total: view_indices(total, count, stride, views[0]))
        return frames.reshape(views[0], count, *frames.shape[1:])
    frames = decode_video(raw, cover=kept_size(data, processor))
    try:
        clip_at(0.5, processor)(len(frames))
    except ValueError as error:
        raise BadClipError(str(error)) from error
    return frames


def video_facts(raw, data: DataArguments, processor, decoded: np.ndarray) -> dict[str, float]:
    """`Modality.facts` of videos. `windows` are clips side by side."""
    *_, height, width = decoded.shape
    facts = {"height": height, "width": width}
    if is_array(raw):
        total, rate = len(raw), None
    else:
        with open_file(raw) as file, Recording(file) as video:
            total, rate = video.facts.total, video.facts.rate
    if not total:  # the file does not say
        return facts | {"windows": 1}
    of_a_clip = clip_indices(total, processor.num_frames, processor.frame_stride, 0.0)
    facts |= {"windows": max(1, total // int(of_a_clip[-1] + 1))}
    return facts | ({"seconds": total / float(rate), "rate": round(float(rate), 3)} if rate else {})


def video_cache_key(data: DataArguments, processor) -> dict:
    """`Modality.cache_key` of videos: shorter ones are not kept, and no pixels that training does not need."""
    return {"num_frames": processor.num_frames, "size": kept_size(data, processor)}


class VideoCollator(PixelCollator):
    """Frames of videos, uint8 (frames, 3, H, W) each, to batches: `pixel_values` (B, T, 3, h, w) float32."""

    def select(self, sample, rng):
        if sample.ndim == 5:  # in place of a clip that could not be decoded, one of a test
            sample = sample[0]
        frames = clip_at(rng.uniform(), self.processor)(len(sample))  # of a clip decoded alone, all of it
        if self.data.flip_time and rng.random() < 0.5:
            frames = frames[::-1]
        return sample[frames]

    def plain(self, samples, views=(1, 1)):
        """With `views=(c, r)` there are c * r rows per video, side by side: c clips along time, r crops of each.

        Samples are whole videos, (frames, 3, H, W), or the c clips of each, (c, frames, 3, H, W).

        Raises:
            ValueError: for another number of clips.
        """
        if samples and samples[0].ndim == 5:
            if len(samples[0]) != views[0]:
                raise ValueError(f"views is {tuple(views)}; these samples hold {len(samples[0])} clips each.")
            return super().plain([clip for sample in samples for clip in sample], num_crops=views[1])
        return super().plain(samples, num_clips=views[0], num_crops=views[1])


def video_sizes(config: BridleConfig) -> dict:
    """`Modality.sizes` of videos."""
    return pixel_sizes(config) | {"num_frames": config.input_size[0], "do_sample_frames": True}


def middle_frame(video: np.ndarray) -> np.ndarray:
    """Baseline: the squares of one frame of (T, C, H, W)."""
    return square_means(video[len(video) // 2])


def frame_differences(video: np.ndarray) -> np.ndarray:
    """Baseline: the squares of the mean absolute difference of neighbouring frames of (T, C, H, W)."""
    return square_means(np.abs(np.diff(video, axis=0)).mean(axis=0))


VIDEO = Modality(
    name="video",
    column_type=datasets.Video,
    column_names=("video",),
    extensions=video_extensions,
    decode=video_frames,
    facts=video_facts,
    cache_key=video_cache_key,
    collator=VideoCollator,
    write_demo_set=write_motion_set,
    axes=("time", "row", "column"),
    has_boxes=True,
    has_views=True,
    processor=BridleVideoProcessor,
    auto_processor="AutoVideoProcessor",
    sizes=video_sizes,
    measure=measure_pixels,
    unnormalised=UNNORMALISED,
    picture=pixel_picture,
    classifier="BridleForVideoClassification",
    auto_classifier="AutoModelForVideoClassification",
    feature_pipeline="BridleVideoFeatureExtractionPipeline",
    task="video-classification",
    baselines={"one-frame": middle_frame, "frame-differences": frame_differences},
)
