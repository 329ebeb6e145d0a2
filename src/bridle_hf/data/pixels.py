"""Bytes of images and videos to pixels: Pillow decodes images, PyAV, which bundles FFmpeg, decodes videos."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from ..video_processing_bridle import require_av
from .decoding import BadClipError, open_file

SLACK = 2  # frames by which a header or a mean frame rate may overstate a video's length


def decode_image(image: dict | str | None) -> np.ndarray:
    """Decode one image, turned as its EXIF data says.

    Args:
        image: `{"bytes", "path"}` as an undecoded `datasets.Image` column gives it, or a path or URL alone.

    Returns:
        uint8 (3, H, W).

    Raises:
        BadClipError: where the image is missing, corrupt or cut off.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_file(image) as file:
                picture = ImageOps.exif_transpose(Image.open(io.BytesIO(file.read())))
            if picture.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut to white
                picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
            pixels = np.asarray(picture.convert("RGB"))
    except BadClipError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers do: OSError, SyntaxError, struct.error
        raise BadClipError(f"cannot be decoded: {error}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_video(video: dict | str | None, choose: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
    """Decode a video or some of its frames.

    Args:
        video: `{"bytes", "path"}` as an undecoded `datasets.Video` column gives it, or a path or URL alone.
        choose: number of frames of the video -> indices of those that are wanted, ascending. Decoding starts at the
            key frame before the first of them and ends at the last; a file is not read as a whole. `None` is all.

    Returns:
        uint8 (frames, 3, H, W).

    Raises:
        BadClipError: where the video is missing, corrupt, shorter than it says, or `choose` raises a `ValueError`.
        ImportError: PyAV, the extra `av`, is not installed.
    """
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
