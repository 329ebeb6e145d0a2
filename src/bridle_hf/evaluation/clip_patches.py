"""The patches of clips, as many as each has: what an attentive probe looks at."""

from collections.abc import Sequence

import numpy as np
import torch


class ClipPatches:
    """Vectors of the patches of n clips, in float16: half the memory, and finer than what a probe can tell apart.

    Args:
        clips: one array per clip, (N, D), or of several layers (L, N, D); N may differ, and is at least 1.

    Raises:
        ValueError: clips of other shapes, or numbers that are not finite or too large for float16.
    """

    def __init__(self, clips: Sequence[np.ndarray | torch.Tensor]):
        self.clips = [clip[None] if clip.ndim == 2 else clip for clip in map(_half, clips)]
        shapes = {(clip.ndim, clip.shape[0], clip.shape[-1]) for clip in self.clips}
        if len(shapes) != 1 or self.clips[0].ndim != 3 or min(clip.shape[1] for clip in self.clips) < 1:
            raise ValueError(
                f"clips: got arrays of shapes {sorted({tuple(clip.shape) for clip in self.clips})[:3]}; it takes "
                "(patches, D) or (layers, patches, D) for each clip, with at least one patch."
            )
        if not all(bool(clip.isfinite().all()) for clip in self.clips):
            raise ValueError("features: got NaN or inf, or more than float16 holds; they must be finite")

    @property
    def width(self) -> int:
        return self.clips[0].shape[-1]

    @property
    def num_layers(self) -> int:
        return self.clips[0].shape[0]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows) -> "ClipPatches":
        """Some of the clips, by number or by a mask; they share their memory."""
        chosen = object.__new__(ClipPatches)
        chosen.clips = [self.clips[row] for row in np.arange(len(self.clips))[rows]]
        return chosen

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All clips together: float16 (n, L, N, D), zeros behind the patches of a shorter clip; and valid (n, N)."""
        most = max(clip.shape[1] for clip in self.clips)
        values = torch.zeros(len(self), self.num_layers, most, self.width, dtype=torch.float16)
        valid = torch.zeros(len(self), most, dtype=torch.bool)
        for row, clip in enumerate(self.clips):
            values[row, :, : clip.shape[1]] = clip
            valid[row, : clip.shape[1]] = True
        return values, valid

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over all patches, float32 (L, 1, D)."""
        number, total, squares = 0, 0.0, 0.0
        for clip in self.clips:
            number, total = number + clip.shape[1], total + clip.double().sum(dim=1)
        mean = total / number
        for clip in self.clips:
            squares = squares + (clip.double() - mean[:, None]).square().sum(dim=1)
        return mean[:, None].float(), (squares / number).sqrt()[:, None].float()


def _half(clip: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(clip).to("cpu", torch.float16)
