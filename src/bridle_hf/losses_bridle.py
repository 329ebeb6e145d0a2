"""Losses as sums and counts, the objective that combines them, and means over real patches."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional as F

PHASES = ("encoder", "tokenizer", "joint")


class LossSum(NamedTuple):
    """A loss as sum and number of items, divided once the items of the whole step are known.

    Attributes:
        sum: () float32.
        count: () float32, how many patches (or other items) `sum` goes over.
    """

    sum: torch.Tensor
    count: torch.Tensor

    @classmethod
    def of_mean(cls, mean: torch.Tensor, count: torch.Tensor) -> "LossSum":
        """From a mean over a batch, such as a regulariser."""
        return cls(mean * count, count)

    @property
    def mean(self) -> torch.Tensor:
        """() 0 where nothing was counted."""
        return self.sum / self.count.clamp(min=1)


def phase_weights(config, phase: str) -> dict[str, float]:
    """The named losses that a phase minimises and their weights (eq. 4; 5 to 7; 8).

    Raises:
        ValueError: an unknown phase.
    """
    if phase not in PHASES:
        raise ValueError(f"`phase` is {phase!r}; it takes one of {', '.join(map(repr, PHASES))}.")
    encoder = {"encoder": 1.0}
    tokenizer = {"codebook": config.codebook_loss_weight, "cosine": config.cosine_loss_weight}
    joint = encoder | {name: config.joint_tokenizer_weight * weight for name, weight in tokenizer.items()}  # eq. 8
    return {"encoder": encoder, "tokenizer": tokenizer, "joint": joint}[phase]


def objective(
    losses: Mapping[str, LossSum], weights: Mapping[str, float], counts: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """The one number that is minimised: the sum over `weights` of weight * sum / count.

    Args:
        losses: by name; those that have no weight are left alone.
        weights: of the losses.
        counts: of each weighted loss over all micro-batches and processes of a step; the losses' own when left out.

    Returns:
        () float32.
    """
    counts = {name: losses[name].count for name in weights} if counts is None else counts
    terms = [weight * (losses[name].sum / counts[name].clamp(min=1)) for name, weight in weights.items()]
    return torch.stack(terms).sum()


def masked_mean(hidden_states, valid=None):
    """Mean over the patches of (B, n, D) that are `valid` (B, n); all of them when that is None."""
    if valid is None:
        return hidden_states.mean(dim=1)
    # in float32 at least, as `mean` adds up: sums of hundreds of patches overflow float16, and bfloat16 rounds counts
    weight = valid.to(torch.promote_types(hidden_states.dtype, torch.float32))[..., None]  # (B, n, 1)
    mean = (hidden_states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return mean.to(hidden_states.dtype)


def count_real(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """() float32, how many of the tokens (B, N, ...) are real: all of them where `valid` (B, N) is None."""
    if valid is None:
        return torch.full((), float(tokens.shape[0] * tokens.shape[1]), device=tokens.device)  # no copy from the host
    return valid.sum(dtype=torch.float32)


def masked_cross_entropy(logits, labels, soft=None) -> LossSum:
    """Eq. 4 over masked patches, and as a mean over codebooks, where the paper has the sum.

    Args:
        logits: (B, S, M, K).
        labels: (B, S, M) codes, -100 in empty slots.
        soft: for labels of several codes, those codes (B, S, M, k) and their shares (B, S, M, k), which sum to 1; the
            term of a label is then - sum_k share_k log p_k.
    """
    count = (labels != -100).sum(dtype=torch.float32)
    if soft is None:
        total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=-100, reduction="sum")
        return LossSum(total, count)
    near, shares = soft
    terms = (shares * logits.float().log_softmax(-1).gather(-1, near)).sum(-1)  # (B, S, M)
    return LossSum(-terms.masked_fill(labels == -100, 0.0).sum(), count)


def cosine_loss(features, teacher, valid=None) -> LossSum:
    """1 - cos over real patches, where eq. 6 prints one minus a ratio of sums. (B, N, D) each, `valid` (B, N)."""
    distance = 1 - F.cosine_similarity(features.float(), teacher.float(), dim=-1)  # (B, N)
    total = distance.sum() if valid is None else (distance * valid.to(distance.dtype)).sum()
    return LossSum(total, count_real(distance, valid))
