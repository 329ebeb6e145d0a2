"""Features of single clips to padded batches."""

import numpy as np

from .arguments import DataArguments
from .augmentation import roll_magnitude, spec_augment


def pad_features(
    features: list[np.ndarray], max_frames: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pad or crop clips to one length.

    Args:
        features: clips of (frames, mel bins).
        max_frames: frames T of the result.
        rng: draws the start of the crop of a longer clip; without it the crop is the clip's beginning.

    Returns:
        (B, T, mel bins) float32, 0 where padded, and the valid frames (B,) int64.
    """
    batch = np.empty((len(features), max_frames, features[0].shape[1]), dtype=np.float32)
    lengths = np.array([min(len(clip), max_frames) for clip in features], dtype=np.int64)
    for row, clip, length in zip(batch, features, lengths, strict=True):
        spare = len(clip) - length
        start = rng.integers(spare + 1) if rng is not None and spare else 0
        row[:length] = clip[start : start + length]
        row[length:] = 0
    return batch, lengths


def frame_mask(lengths: np.ndarray, max_frames: int) -> np.ndarray:
    """(B, T) int64: 1 for a frame of the clip, 0 for padding."""
    return (np.arange(max_frames) < lengths[:, None]).astype(np.int64)


class TrainingCollator:
    """Clips to an augmented training batch; all randomness comes from the generator of the call."""

    def __init__(self, data: DataArguments, feature_extractor):
        self.data = data
        self.max_frames = data.max_frames or feature_extractor.max_length
        normalized = feature_extractor.do_normalize
        self.mean = feature_extractor.mean if normalized else 0.0
        self.scale = 2 * feature_extractor.std if normalized else 1.0

    def __call__(self, features: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`input_values` (B, T, mel bins) float32 and `attention_mask` (B, T) int64."""
        data = self.data
        values, lengths = pad_features(features, self.max_frames, rng)
        roll_magnitude(values, lengths, rng, mean=self.mean, scale=self.scale, roll=data.roll, gain=data.gain)
        if data.frequency_mask or data.time_mask:
            spec_augment(values, lengths, rng, frequency_mask=data.frequency_mask, time_mask=data.time_mask)
        return {"input_values": values, "attention_mask": frame_mask(lengths, self.max_frames)}
