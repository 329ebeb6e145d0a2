"""Augmentation of log-mel features: roll and gain, and SpecAugment.

It acts on normalised features x = (logmel - mean) / scale, with scale = 2 std, so that decoded features can be cached:
a roll by frames is a roll of the waveform by hops, and a gain of the waveform adds a constant to the log-mel.
"""

import numpy as np

FLOOR = float(np.log(np.finfo(np.float32).eps))  # what Kaldi's filter bank gives for digital silence
TOLERANCE = np.float32(1e-2)  # features kept in half precision miss the floor by a little


def roll_magnitude(
    features: np.ndarray,
    lengths: np.ndarray,
    rng: np.random.Generator,
    *,
    mean: float,
    scale: float,
    roll: bool = True,
    gain: bool = True,
) -> np.ndarray:
    """Roll each clip in time and scale its waveform (the roll-magnitude augmentation of AudioMAE and BRIDLE).

    Args:
        features: (B, T, F) or (B, T, C, F) normalised log-mel features; changed in place.
        lengths: (B,) valid frames; the roll goes round inside them.
        rng: source of the shifts and gains.
        mean, scale: the normalisation of the features: x = (logmel - mean) / scale.
        roll: roll by a uniform number of frames.
        gain: multiply the waveform by g = 0.5 + Beta(10, 10), that is, add 2 log(g) to the log-mel. Digital silence
            stays where it is, and nothing falls below it.

    Returns:
        `features`.
    """
    floor = np.float32((FLOOR - mean) / scale)
    steps = rng.integers(lengths)
    shifts = np.float32(2 * np.log(0.5 + rng.beta(10, 10, size=len(features))) / scale)
    # Clip by clip, since one clip stays in the processor's cache and a batch does not.
    for padded, length, step, shift in zip(features, lengths, steps, shifts, strict=True):
        clip = padded[:length]
        if roll:
            clip[:] = np.roll(clip, step, axis=0)
        if gain:
            clip += shift * (clip > floor + TOLERANCE)
            np.maximum(clip, floor, out=clip)
    return features


def spec_augment(
    features: np.ndarray,
    lengths: np.ndarray,
    rng: np.random.Generator,
    *,
    frequency_mask: float = 48 / 128,
    time_mask: float = 192 / 1024,
) -> np.ndarray:
    """Set one band of mel bins and one stretch of frames of each clip to 0, the mean (SpecAugment).

    Args:
        features: (B, T, F) or (B, T, C, F) normalised log-mel features; changed in place.
        lengths: (B,) valid frames.
        rng: source of widths and starts. A width is uniform between 0 and the widest, a start uniform where it fits.
        frequency_mask, time_mask: widest mask as a share of F and of the clip's valid frames. The defaults are
            AudioMAE's 48 of 128 bins and 192 of 1024 frames.

    Returns:
        `features`.
    """
    bins = features.shape[-1]
    for clip, length in zip(features, lengths, strict=True):
        width = rng.integers(int(frequency_mask * bins) + 1)
        start = rng.integers(bins - width + 1)
        clip[..., start : start + width] = 0
        width = rng.integers(int(time_mask * length) + 1)
        start = rng.integers(length - width + 1)
        clip[start : start + width] = 0
    return features
