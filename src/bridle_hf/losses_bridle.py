"""Means over the patches that count: pooled features and the losses of pretraining."""

from torch.nn import functional as F


def masked_mean(hidden_states, valid=None):
    """Mean over the patches of (B, n, D) that are `valid` (B, n); all of them when that is None."""
    if valid is None:
        return hidden_states.mean(dim=1)
    weight = valid.to(hidden_states.dtype)[..., None]  # (B, n, 1)
    return (hidden_states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def masked_cross_entropy(logits, labels):
    """Eq. 4 as a mean over masked patches and codebooks; float32. (B, S, M, K), (B, S, M) with -100 for empty slots."""
    # an all-padding batch has a loss of zero, not NaN
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def cosine_loss(features, teacher, valid=None):
    """Eq. 6 as a mean of 1 - cos over real patches, float32. (B, N, D) each, `valid` (B, N)."""
    distance = 1 - F.cosine_similarity(features.float(), teacher.float(), dim=-1)  # (B, N)
    if valid is None:
        return distance.mean()
    weight = valid.to(distance.dtype)
    return (distance * weight).sum() / weight.sum().clamp(min=1)
