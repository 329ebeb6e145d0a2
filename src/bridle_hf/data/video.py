"""Videos: decoding by PyAV, which bundles FFmpeg, batches of clips of frames, and the modality."""

from collections.abc import Callable

import datasets
import numpy as np

from ..configuration_bridle import BridleConfig
from ..demo_data import write_motion_set
from ..video_processing_bridle import BridleVideoProcessor, clip_indices, require_av
from .arguments import DataArguments
from .extensions import video_extensions
from .media import BadClipError, is_array, open_file, pixels_of
from .modality import Modality
from .pixels import PixelCollator, pixel_picture, pixel_sizes, square_means

SLACK = 2  # frames by which a header or a mean frame rate may overstate a video's length


def decode_video(video, choose: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
    """Decode a video or some of its frames.

    Args:
        video: `{"bytes", "path"}` as an undecoded `datasets.Video` column gives it, or a path or URL alone; or decoded
            already, an array as `pixels_of` takes it or a list of PIL images.
        choose: number of frames of the video -> indices of those that are wanted, ascending. Decoding starts at the
            key frame before the first of them and ends at the last; a file is not read as a whole. `None` is all.

    Returns:
        uint8 (frames, 3, H, W).

    Raises:
        BadClipError: where the video is missing, corrupt, shorter than it says, or `choose` raises a `ValueError`.
        ImportError: PyAV, the extra `av`, is not installed.
    """
    if is_array(video):
        frames = pixels_of(np.stack([np.asarray(frame) for frame in video]) if isinstance(video, list) else video, 4)
        try:
            return frames if choose is None else frames[choose(len(frames))]
        except ValueError as error:
            raise BadClipError(str(error)) from error
    require_av()
    import av

    try:
        with open_file(video) as file, av.open(file) as container:
            stream = container.streams.video[0]
            if choose is None:
                frames = [_pixels(frame) for frame in container.decode(stream)]
            else:
                frames = _decode_chosen(container, stream, choose(count_frames(container, stream)))
            return np.stack(frames)
    except BadClipError:
        raise
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:  # no video stream, or no frame in it
        raise BadClipError(f"cannot be decoded: {error}") from error


def count_frames(container, stream) -> int:
    """Frames of a video stream: what its header says, or else what its duration comes to (webm says no more)."""
    if stream.frames:
        return stream.frames
    duration = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
    return round(float(duration * (stream.average_rate or 0)))


def _decode_chosen(container, stream, indices: np.ndarray) -> list[np.ndarray]:
    """A frame for each of the ascending indices, which may repeat. Frames are told apart by their times."""
    rate, start = stream.average_rate, stream.start_time or 0
    if indices[0] > 0:
        container.seek(start + int(indices[0] / rate / stream.time_base), stream=stream)
    frames, number = [], -1
    for frame in container.decode(stream):
        number = round((frame.pts - start) * stream.time_base * rate)
        while len(frames) < len(indices) and indices[len(frames)] <= number:
            frames.append(_pixels(frame))
        if len(frames) == len(indices):
            return frames
    if frames and indices[-1] <= number + SLACK:
        return frames + [frames[-1]] * (len(indices) - len(frames))
    raise BadClipError(f"ends before frame {indices[len(frames)] + 1}")


def _pixels(frame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24").transpose(2, 0, 1)  # (3, H, W)


def random_frames(total: int, processor, rng: np.random.Generator) -> np.ndarray:
    """Indices (num_frames,) of a clip at a random place in a video of `total` frames.

    The only place that draws it: when a file is decoded in part, and when a batch is made. In a video decoded in part
    the batch takes all frames there are.

    Raises:
        ValueError: the video has fewer frames than a clip.
    """
    return clip_indices(total, processor.num_frames, processor.frame_stride, rng.uniform())


def video_frames(raw, data: DataArguments, processor, rng: np.random.Generator | None = None) -> np.ndarray:
    """`Modality.decode` of videos: all frames, uint8 (frames, 3, H, W), or with `rng` those of a random clip."""
    if rng is not None:
        return decode_video(raw, lambda total: random_frames(total, processor, rng))
    frames = decode_video(raw)
    try:
        clip_indices(len(frames), processor.num_frames, processor.frame_stride)
    except ValueError as error:
        raise BadClipError(str(error)) from error
    return frames


def video_cache_key(data: DataArguments, processor) -> dict:
    """`Modality.cache_key` of videos: shorter ones are not kept."""
    return {"num_frames": processor.num_frames}


class VideoCollator(PixelCollator):
    """Frames of videos, uint8 (frames, 3, H, W) each, to batches: `pixel_values` (B, T, 3, h, w) float32."""

    def select(self, sample, rng):
        return sample[random_frames(len(sample), self.processor, rng)]

    def plain(self, samples, views=(1, 1)):
        """With `views=(c, r)` there are c * r rows per video, side by side: c clips along time, r crops of each."""
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
    cache_key=video_cache_key,
    collator=VideoCollator,
    write_demo_set=write_motion_set,
    axes=("time", "row", "column"),
    has_boxes=True,
    has_views=True,
    processor=BridleVideoProcessor,
    auto_processor="AutoVideoProcessor",
    sizes=video_sizes,
    picture=pixel_picture,
    classifier="BridleForVideoClassification",
    auto_classifier="AutoModelForVideoClassification",
    feature_pipeline="BridleVideoFeatureExtractionPipeline",
    task="video-classification",
    baselines={"one-frame": middle_frame, "frame-differences": frame_differences},
)
