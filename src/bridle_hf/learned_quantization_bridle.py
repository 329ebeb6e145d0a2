"""Residual stages of codebooks that learn by gradient: what the gradient, SimVQ and smoothed quantizers share."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .codebook_bridle import (
    check_choice,
    flatten_rows,
    float32_island,
    nearest_codes,
)
from .quantization_bridle import QuantizerOutput, StagedQuantizer

NORMALIZATIONS = ("once", "none")


class Stage(NamedTuple):
    """What a codebook makes of rows (n, d).

    `vector` (n, d) stands for the rows, with a gradient where it depends on them smoothly; `index` (n,) int64 are their
    codes, free of noise; `loss` () is what the codebook minimises beside the task.
    """

    vector: torch.Tensor
    index: torch.Tensor
    loss: torch.Tensor


class LearnedQuantizer(StagedQuantizer):
    """M codebooks of parameters, each quantizing what the ones before have left; M = 1 is plain vector quantization.

    e_1 = z; stage m makes a vector q_m of e_m; e_{m+1} = e_m - c_{i_m}; q = sum_m q_m. What is subtracted is the code
    itself, also where q_m is a mixture of codes: a stage is trained on the residuals it will see at inference. The
    gradient of the difference is that of e_m - q_m.

    The codes are parameters of the optimizer. They start at random, with length 1 on average, and need no data:
    `initialize_` and `reset_dead_codes_` do nothing. As all quantizers, `forward` is pure.

    Args:
        codebooks: modules that map rows (n, d) and weights (n,) or None to a `Stage`, with codes `embed` (K, d) and
            `nearest(rows) -> (n,)`.
        normalize: "once" scales z to length 1, "none" takes it as it is.
    """

    initialized = True
    init_sample_size = 0

    def __init__(self, codebooks, *, normalize="none"):
        super().__init__()
        check_choice("normalize", normalize, NORMALIZATIONS)
        self.codebooks = nn.ModuleList(codebooks)
        self.num_codebooks, self.normalize = len(self.codebooks), normalize
        self.codebook_size, self.dim = self.codebooks[0].embed.shape

    def estimate(self, rows, total):
        """The output for rows (n, d) that were quantized to `total` (n, d), with the gradient it passes on."""
        return total

    def subtract(self, residual, book):
        """One stage without gradient: residual left (n, d) and codes (n,)."""
        index = book.nearest(residual)
        return residual - F.embedding(index, book.embed), index

    def forward(self, z, mask=None):
        """Quantizes z (..., d); changes no state.

        Args:
            mask: (...,) True or 1 for valid vectors; the others (padding, of any value) are taken for zero vectors and
                stay out of the losses.

        Returns:
            `QuantizerOutput`; `stats` is empty in training mode, for `update_` to be called, and None in eval mode.
        """
        with float32_island(z):
            rows, valid = flatten_rows(z, self.dim, mask)
            rows = self.scale(rows)
            residual, total, codes, losses = rows, torch.zeros_like(rows), [], []
            for book in self.codebooks:
                vector, index, loss = book(residual, valid)
                residual = residual - straight_through(vector, F.embedding(index, book.embed))
                total = total + vector
                codes.append(index)
                losses.append(loss)
            named = {f"codebook_{stage + 1}": loss for stage, loss in enumerate(losses)}
            loss = torch.stack(losses).mean()
            return QuantizerOutput(
                quantized=self.estimate(rows, total).reshape(*z.shape[:-1], self.dim),
                codes=torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks),
                loss=loss,
                losses={"codebook": loss, **named},
                stats={} if self.training else None,
            )

    def initialize_(self, z, generator=None):
        """The codes learn: nothing to set."""

    def update_(self, stats):
        """What a codebook does after an optimizer step; nothing unless its class says otherwise."""

    def reset_dead_codes_(self, z, generator=None) -> int:
        """The codes learn: none is moved."""
        return 0


def straight_through(source, value):
    """`value` exactly, with its gradient led to `source` instead (eq. 2)."""
    return value.detach() + (source - source.detach())


def nearest_directions(rows, codes):
    """Index of the code (K, d) with the greatest cosine to each row (n, d): (n,) int64."""
    return nearest_codes(rows, F.normalize(codes, dim=-1))  # the order needs no normalised rows


def initial_codes(num_codes, dim):
    """(K, d) float32 from the global random state, with length 1 on average."""
    return torch.randn(num_codes, dim, dtype=torch.float32, device="cpu") * dim**-0.5
