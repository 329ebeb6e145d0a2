"""Mixing of the samples of a batch and of their targets, for fine-tuning."""

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


def mixup(
    features: np.ndarray, targets: np.ndarray, rng: np.random.Generator, *, alpha: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each sample with another of its batch, and their targets alike: weight * a + (1 - weight) * b.

    Args:
        features: (B, ...) normalised log-mel features or pixels. Audio is mixed as features, not as waveforms.
        targets: (B, classes) float targets, one-hot or multi-hot.
        rng: draws the pairs and one weight per sample, from Beta(alpha, alpha).
        alpha: 10 keeps most weights between 0.3 and 0.7.

    Returns:
        Mixed features and targets, as new arrays of the same types.
    """
    partner = rng.permutation(len(features))
    weight = rng.beta(alpha, alpha, size=len(features)).astype(features.dtype)
    of_sample = weight.reshape(-1, *[1] * (features.ndim - 1))
    mixed = of_sample * features + (1 - of_sample) * features[partner]
    weight = weight[:, None].astype(targets.dtype)
    return mixed, weight * targets + (1 - weight) * targets[partner]


def cutmix(pixels: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace a box of each sample by that of its neighbour in the batch, and as much of the target (arXiv 1905.04899).

    Args:
        pixels: (B, ..., 3, H, W) normalised images or videos; a video's box is the same in all frames.
        targets: (B, classes) float targets.

    Returns:
        New pixels and targets. Everything random comes from torch's global generator, see `drawn_from`.
    """
    kind = tv_tensors.Image if pixels.ndim == 4 else tv_tensors.Video
    batch = kind(torch.from_numpy(pixels)), torch.from_numpy(targets)
    mixed = v2.CutMix(num_classes=targets.shape[1], labels_getter=lambda pair: pair[1])(*batch)
    return tuple(value.numpy() for value in mixed)
