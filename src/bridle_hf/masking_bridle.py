"""Which patches the encoder sees. Pure functions of noise, so that a mask can be repeated, shared and tested."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch


@dataclass
class PatchMask:
    """A mask of (B, N) patches with the same number of kept slots in each row.

    Attributes:
        kept (`torch.LongTensor` of shape (B, k)): patches the encoder sees, in the order they are fed to it.
        masked (`torch.LongTensor` of shape (B, S)): patches to predict, ascending; S is N - k unless only a share of
            the masked patches is predicted.
        kept_valid, masked_valid (`torch.BoolTensor` or `None`): slots that hold a real patch; `None` when all do. Rows
            with padding have fewer patches, so their last slots are empty.
        mask (`torch.LongTensor` of shape (B, N)): 1 for a masked patch, 0 for a kept or padded one.
    """

    kept: torch.Tensor
    masked: torch.Tensor
    mask: torch.Tensor
    kept_valid: torch.Tensor | None = None
    masked_valid: torch.Tensor | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PatchMask":
        return PatchMask(**{name: change(value) for name, value in vars(self).items() if value is not None})

    def to(self, device: torch.device, non_blocking: bool = False) -> "PatchMask":
        return self.map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PatchMask":
        return self.map(torch.Tensor.pin_memory)


def num_kept(grid: tuple[int, ...], mask_ratio: float, mask_type: str) -> int:
    """How many patches of a full grid stay visible: at least one."""
    if mask_type == "random":
        return max(1, int(prod(grid) * (1 - mask_ratio)))
    if mask_type == "tube":
        return grid[0] * max(1, int(prod(grid[1:]) * (1 - mask_ratio)))
    # "2d": each axis hides the same share, so that the rows and columns left over hold 1 - mask_ratio of the patches
    share = (1 - mask_ratio) ** (1 / len(grid))
    return prod(max(1, int(n * share)) for n in grid)


def structured_noise(noise: torch.Tensor, grid: tuple[int, ...], mask_ratio: float, mask_type: str) -> torch.Tensor:
    """Reshape independent noise so that its smallest values form the pattern of `mask_type`.

    Args:
        noise (`torch.Tensor` of shape (B, N)): uniform noise in [0, 1).
    Returns:
        (B, N) noise whose `num_kept` smallest entries are the visible patches.
    """
    if mask_type == "random":
        return noise
    if mask_type == "tube":
        first = noise.view(noise.shape[0], grid[0], -1)[:, :1]  # (B, 1, HW): one draw, repeated over time
        return first.expand(-1, grid[0], -1).reshape(noise.shape)
    share = (1 - mask_ratio) ** (1 / len(grid))
    return hide_lines(noise, grid, [max(1, int(n * share)) for n in grid])


def hide_lines(noise: torch.Tensor, grid: tuple[int, ...], keep: list[int]) -> torch.Tensor:
    """Noise in [0, 2) that is below 1 where every coordinate is among the `keep[axis]` kept ones of its axis.

    A kept coordinate is one of the smallest in the mean of the noise over the other axes.
    """
    field = noise.view(noise.shape[0], *grid)
    hidden = torch.zeros_like(field)
    for axis, count in enumerate(keep):
        others = [d for d in range(1, field.dim()) if d != axis + 1]
        line = field.mean(dim=others) if others else field  # (B, n)
        rank = line.argsort(dim=1).argsort(dim=1)
        shape = [noise.shape[0]] + [1] * len(grid)
        shape[axis + 1] = grid[axis]
        hidden = torch.maximum(hidden, (rank >= count).to(field.dtype).view(shape))
    return (field + hidden).flatten(1)


def mask_from_noise(
    noise: torch.Tensor, num_keep: int, valid: torch.Tensor | None = None, predict_ratio: float = 1.0
) -> PatchMask:
    """Keep the patches with the smallest noise, in ascending order of noise; predict the others.

    Args:
        noise (`torch.Tensor` of shape (B, N)): one number per patch.
        num_keep (`int`): k, for a row without padding. A padded row keeps the same share of its own patches.
        valid (`torch.BoolTensor` of shape (B, N), *optional*): False for padding, which is neither kept nor predicted.
        predict_ratio (`float`): share of the masked patches to predict, those with the smallest noise among them.
    """
    batch_size, num_patches = noise.shape
    num_masked = num_patches - num_keep
    num_predict = max(1, int(num_masked * predict_ratio))
    if valid is None:
        order = noise.argsort(dim=1, stable=True)  # (B, N)
        kept, hidden = order[:, :num_keep], order[:, num_keep:]
        mask = torch.zeros(batch_size, num_patches, dtype=torch.long, device=noise.device).scatter(1, hidden, 1)
        return PatchMask(kept, hidden[:, :num_predict].sort(dim=1).values, mask)

    order = noise.masked_fill(~valid, float("inf")).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)  # (B, N)
    count = valid.sum(dim=1, keepdim=True)  # (B, 1)
    row_keep = (count * num_keep // num_patches).clamp(min=1)
    is_masked = valid & (rank >= row_keep)
    slots = torch.arange(num_keep, device=noise.device)
    kept_valid = slots < row_keep.minimum(count)  # (B, k)
    # a row's patches to predict first and ascending, then empty slots
    patches = torch.arange(num_patches, device=noise.device)
    row_predict = ((count - row_keep) * num_predict // max(1, num_masked)).clamp(min=1)
    predicted = is_masked & (rank < row_keep + row_predict)
    masked = torch.where(predicted, patches, num_patches).sort(dim=1).values[:, :num_predict]
    masked_valid = masked < num_patches
    return PatchMask(
        kept=order[:, :num_keep],
        masked=masked.clamp(max=num_patches - 1),
        mask=is_masked.long(),
        kept_valid=kept_valid,
        masked_valid=masked_valid,
    )


def mask_from_positions(bool_masked_pos: torch.Tensor, valid: torch.Tensor | None = None) -> PatchMask:
    """The mask a caller chose.

    Args:
        bool_masked_pos (`torch.Tensor` of shape (B, N)): true for a patch to predict; the same number in each row.
    Raises:
        ValueError: rows differ in their number of masked patches, or all patches of a row are masked.
    """
    masked = bool_masked_pos.bool()
    counts = masked.sum(dim=1)
    num_masked = int(counts[0])
    if not bool((counts == num_masked).all()):
        raise ValueError(
            f"`bool_masked_pos` masks {counts.tolist()} patches; it takes the same number in every row of the batch."
        )
    if num_masked == masked.shape[1]:
        raise ValueError("`bool_masked_pos` masks every patch; it takes at least one visible patch per row.")
    plan = mask_from_noise(masked.to(torch.float32), masked.shape[1] - num_masked)
    if valid is not None:
        plan.mask = plan.mask * valid
        plan.kept_valid = valid.gather(1, plan.kept)
        plan.masked_valid = valid.gather(1, plan.masked)
    return plan
