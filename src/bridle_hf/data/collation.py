"""Decoded clips to batches of a model's inputs: augmented ones for training, plain ones for tests."""

import numpy as np
import torch

from ..video_processing_bridle import clip_indices
from .arguments import DataArguments
from .augmentation import roll_magnitude, spec_augment
from .pixel_augmentation import build_augmentation, drawn_from


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


class AudioCollator:
    """Log-mel features of clips, (frames, mel bins) each, to batches of a model's inputs.

    Both kinds hold `input_values` (B, T, mel bins) float32 and `attention_mask` (B, T) int64.
    """

    def __init__(self, data: DataArguments, feature_extractor):
        self.data = data
        self.max_frames = data.max_frames or feature_extractor.max_length
        self.sampling_rate = feature_extractor.sampling_rate
        normalized = feature_extractor.do_normalize
        self.mean = feature_extractor.mean if normalized else 0.0
        self.scale = 2 * feature_extractor.std if normalized else 1.0

    def __call__(self, clips: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A training batch, cropped at random and augmented; all randomness comes from `rng`."""
        data = self.data
        values, lengths = pad_features(clips, self.max_frames, rng)
        roll_magnitude(values, lengths, rng, mean=self.mean, scale=self.scale, roll=data.roll, gain=data.gain)
        if data.frequency_mask or data.time_mask:
            spec_augment(values, lengths, rng, frequency_mask=data.frequency_mask, time_mask=data.time_mask)
        return {"input_values": values, "attention_mask": frame_mask(lengths, self.max_frames)}

    def test(self, clips: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The clips as they are, cropped from their beginning."""
        values, lengths = pad_features(clips, self.max_frames)
        return {"input_values": values, "attention_mask": frame_mask(lengths, self.max_frames)}


class PixelCollator:
    """Pixels of images, uint8 (3, H, W) each, to batches of a model's inputs: `pixel_values` (B, 3, h, w) float32."""

    def __init__(self, data: DataArguments, processor):
        self.processor = processor
        self.augment = build_augmentation(data, processor)

    def __call__(self, clips: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A training batch, cropped and augmented; all randomness comes from `rng`."""
        with drawn_from(rng):
            values = [self.augment(torch.from_numpy(self.select(clip, rng))).numpy() for clip in clips]
        return {"pixel_values": np.stack(values)}

    def select(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What of a decoded clip is augmented, in memory of its own."""
        return clip.copy()

    def test(self, clips: list[np.ndarray], **options) -> dict[str, np.ndarray]:
        """The clips as the processor gives them, without chance."""
        clips = [np.require(clip, requirements="W") for clip in clips]  # a mapped one is not writable, torch complains
        batch = self.processor(clips, input_data_format="channels_first", return_tensors="np", **options)
        return {"pixel_values": batch["pixel_values"]}


class VideoCollator(PixelCollator):
    """Frames of videos, uint8 (frames, 3, H, W) each, to batches: `pixel_values` (B, T, 3, h, w) float32."""

    def select(self, clip, rng):
        indices = clip_indices(len(clip), self.processor.num_frames, self.processor.frame_stride, rng.uniform())
        return clip[indices]

    def test(self, clips, views=(1, 1)):
        """With (c, r) views there are c * r rows a video, side by side: c clips along time, r crops of each."""
        return super().test(clips, num_clips=views[0], num_crops=views[1])
