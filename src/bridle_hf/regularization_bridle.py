"""Regularisers of smoothed assignments (T. Morita, 2026): what keeps every code in use and assignments near one-hot."""

import torch

from .codebook_bridle import check_choice, float32_island

DIVERGENCES = ("ce", "l2")

# Numbers looked at together when neighbours are searched: the search needs this much memory beside p, whatever K is.
BLOCK = 1 << 24


def knn_regularizer(p, num_neighbors=1, divergence="ce", mask=None, *, log_p=None, num_vertices=None, generator=None):
    """Mean divergence of the vertices of the simplex from the assignments nearest to them (eq. 13).

    Vertex e_m is the assignment that is code m alone. Pulling its nearest assignments to it keeps code m in use and
    these assignments sharp. The neighbours are those of this process; one assignment may be near several vertices.

    Args:
        p: (N, K) assignments, each a distribution over K codes.
        num_neighbors: how many assignments are pulled to a vertex. Where `mask` leaves fewer, they all are.
        divergence: "ce", -log p_m, or "l2", |e_m - p|^2 = 1 - 2 p_m + |p|^2. It orders the neighbours too.
        mask: (N,) True or 1 for assignments that count; None where all do.
        log_p: (N, K) log of p where it is known: the log of a p that has become 0 is cut at the smallest float32.
        num_vertices: a random subset of this many vertices (section 5.3); None takes all.
        generator: torch.Generator of that draw, on the CPU.

    Returns:
        () float32; 0 where no assignment counts.

    Raises:
        ValueError: a p that is no matrix, another divergence, more neighbours than assignments, more vertices than
            codes, or a mask of another length.
    """
    check_choice("divergence", divergence, DIVERGENCES)
    check_assignments(p, mask)
    num_rows, num_codes = p.shape
    if num_rows == 0:
        return p.float().sum()
    check_range("num_neighbors", num_neighbors, num_rows, "the number of assignments")
    if num_vertices is not None:
        check_range("num_vertices", num_vertices, num_codes, "the number of codes")
        vertices = torch.randperm(num_codes, generator=generator)[:num_vertices].to(p.device)
    else:
        vertices = torch.arange(num_codes, device=p.device)
    with float32_island(p):
        nearness, square = p.float(), None
        if divergence == "l2":
            square = nearness.square().sum(-1)  # (N,)
        elif log_p is not None:
            nearness = log_p.float()
        else:
            nearness = nearness.clamp(min=torch.finfo(torch.float32).tiny).log()
        valid = None if mask is None else mask > 0
        near = nearest_rows(nearness.detach(), square, valid, vertices, num_neighbors)  # (k, m)
        found = nearness[near, vertices]
        distance = -found if square is None else 1 - 2 * found + square[near]
        if valid is None:
            return distance.mean()
        counts = valid[near]
        return torch.where(counts, distance, 0.0).sum() / counts.sum().clamp(min=1)


@torch.no_grad()
def nearest_rows(nearness, square, valid, vertices, num_neighbors):
    """Rows of `nearness` (N, K) nearest to each vertex, nearest first: (num_neighbors, len(vertices)).

    The search is exact, a block of vertices at a time. `square` (N,) is |p|^2 where the order is that of |e_m - p|^2.
    """
    blocks = []
    for block in vertices.split(max(1, BLOCK // len(nearness))):
        score = nearness[:, block]
        if square is not None:
            score = 2 * score - square[:, None]
        if valid is not None:
            score = score.masked_fill(~valid[:, None], -torch.inf)
        blocks.append(score.topk(num_neighbors, dim=0).indices)
    return torch.cat(blocks, dim=1)


def perplexity_regularizer(p, mask=None):
    """1 - exp(entropy of the mean assignment) / K, 0 where all codes are used alike on average (eq. 11-12).

    The paper prints the perplexity itself as the loss; it is to be maximised, hence the sign.

    Args:
        p: (N, K) assignments, each a distribution over K codes.
        mask: (N,) True or 1 for assignments that count; None where all do.

    Returns:
        () float32; 0 where no assignment counts.

    Raises:
        ValueError: a p that is no matrix, or a mask of another length.
    """
    check_assignments(p, mask)
    with float32_island(p):
        weight = p.new_ones(len(p), dtype=torch.float32) if mask is None else (mask > 0).float()
        count = weight.sum()
        mean = torch.where(weight[:, None] > 0, p.float(), 0.0).sum(0) / count.clamp(min=1)  # (K,)
        # The slope of x log x at 0 is infinite: a code that underflows would make the gradient NaN.
        entropy = torch.special.entr(mean.clamp(min=torch.finfo(torch.float32).tiny)).sum()
        return (1 - entropy.exp() / p.shape[1]) * (count > 0)


def check_assignments(p, mask):
    if p.ndim != 2 or not p.is_floating_point():
        raise ValueError(f"p is {tuple(p.shape)} {p.dtype}, must be floating point (N, K)")
    if mask is not None and mask.shape != p.shape[:1]:
        raise ValueError(f"mask is {tuple(mask.shape)}, must be {tuple(p.shape[:1])}, one per assignment")


def check_range(name, value, most, what):
    if not 1 <= value <= most:
        raise ValueError(f"{name} is {value}, must be from 1 to {what}, {most}")
