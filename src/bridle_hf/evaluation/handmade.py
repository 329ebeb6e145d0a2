"""Hand-made features of clips, for comparison: what a linear probe gets without any encoder."""

from collections.abc import Callable, Iterable

import numpy as np

from .features import batches

PIXELS = 16  # a picture is looked at as so many squares along each side


def logmel_statistics(spectrogram: np.ndarray) -> np.ndarray:
    """(T, F) log-mel frames -> (2 F,): mean and standard deviation of every mel bin."""
    return np.concatenate([spectrogram.mean(axis=0), spectrogram.std(axis=0)])


def logmel_deltas(spectrogram: np.ndarray) -> np.ndarray:
    """(T, F) -> (3 F,): the same, and the mean absolute difference of neighbouring frames."""
    deltas = np.abs(np.diff(spectrogram, axis=0, prepend=spectrogram[:1])).sum(axis=0) / max(1, len(spectrogram) - 1)
    return np.concatenate([logmel_statistics(spectrogram), deltas])


def pixels(picture: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (C * 16 * 16,): the means of 16 x 16 squares; single pixels where there are no more."""
    channels, *sides = picture.shape
    rows, columns = (np.arange(min(side, PIXELS)) * side // min(side, PIXELS) for side in sides)
    sums = np.add.reduceat(np.add.reduceat(picture, rows, axis=1), columns, axis=2)
    sizes = np.outer(np.diff(rows, append=sides[0]), np.diff(columns, append=sides[1]))
    return (sums / sizes).reshape(-1)


def colours(picture: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (2 C,): mean and standard deviation of every channel."""
    flat = picture.reshape(len(picture), -1)
    return np.concatenate([flat.mean(axis=1), flat.std(axis=1)])


def middle_frame(video: np.ndarray) -> np.ndarray:
    """(T, C, H, W): the pixels of one frame."""
    return pixels(video[len(video) // 2])


def frame_differences(video: np.ndarray) -> np.ndarray:
    """(T, C, H, W): the pixels of the mean absolute difference of neighbouring frames."""
    return pixels(np.abs(np.diff(video, axis=0)).mean(axis=0))


HANDMADE: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "audio": {"logmel": logmel_statistics, "logmel-delta": logmel_deltas},
    "image": {"colours": colours, "pixels": pixels},
    "video": {"one-frame": middle_frame, "frame-differences": frame_differences},
}


def handmade_features(examples, describe: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What one of the functions above says about each clip, padding left out: float64 (n, features)."""
    return np.stack([describe(clip) for clip in _clips(examples)])


def _clips(examples) -> Iterable[np.ndarray]:
    for values, mask in batches(examples, batch_size=64):
        for row, clip in enumerate(values.double().numpy()):
            yield clip if mask is None else clip[mask[row].bool().numpy()]
