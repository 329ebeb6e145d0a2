"""Smoothed quantizers (T. Morita, 2026): mixtures of codes in training, the code with the greatest weight after it."""

from math import log

import torch
from torch import nn
from torch.nn import functional as F

from .codebook_bridle import check_choice, mean_square, to_default_
from .learned_quantization_bridle import (
    LearnedQuantizer,
    Stage,
    initial_codes,
    nearest_directions,
    straight_through,
)
from .regularization_bridle import knn_regularizer, perplexity_regularizer

GUMBELS = ("none", "soft", "hard")
REGULARIZERS = ("none", "perplexity", "knn_ce", "knn_l2")

# Where the temperature of the softmax may go. At 1 and K = 256 no weight can pass 0.03, at 0.01 every row is one code.
TEMPERATURES = (0.01, 1.0)


class SmoothedCodebook(nn.Module):
    """One codebook: p = softmax(cos(z, Q) / t), and q = p Q in training, Q[argmax p] in evaluation.

    State: `embed` Q (K, d) and `log_t` (1,) are float32 parameters, `tau` () is a buffer. The arguments are those of
    `SmoothedQuantizer`.
    """

    def __init__(
        self,
        num_codes,
        dim,
        *,
        temperature=0.1,
        gumbel="none",
        gumbel_schedule=(1.0, 1.0, 1.0),
        regularizer="knn_ce",
        regularizer_weight=1.0,
        num_neighbors=1,
        num_vertices=None,
        commitment_weight=0.0,
    ):
        super().__init__()
        check_choice("gumbel", gumbel, GUMBELS)
        check_choice("regularizer", regularizer, REGULARIZERS)
        low, high = TEMPERATURES
        if not low <= temperature <= high:
            raise ValueError(f"temperature is {temperature}, must be from {low} to {high}")
        self.start_temperature, self.gumbel, self.gumbel_schedule = temperature, gumbel, gumbel_schedule
        self.regularizer, self.regularizer_weight = regularizer, regularizer_weight
        self.num_neighbors, self.num_vertices = num_neighbors, num_vertices
        self.commitment_weight = commitment_weight
        self.embed = nn.Parameter(torch.empty(num_codes, dim, dtype=torch.float32))
        # One element and no scalar: FSDP2 shards no scalars.
        self.log_t = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.register_buffer("tau", torch.empty((), dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before any training; the codes are drawn anew at every call."""
        return {
            "embed": initial_codes(*self.embed.shape),
            "log_t": torch.full((1,), log(self.start_temperature), dtype=torch.float32, device="cpu"),
            "tau": torch.full((), float(self.gumbel_schedule[0]), dtype=torch.float32, device="cpu"),
        }

    @property
    def temperature(self):
        """t (1,), kept in its range; at the ends of it a gradient can still lead it back."""
        low, high = TEMPERATURES
        return straight_through(self.log_t, self.log_t.clamp(log(low), log(high))).exp()

    @torch.no_grad()
    def nearest(self, rows):
        """(n, d) -> (n,) int64."""
        return nearest_directions(rows, self.embed)

    def log_assignments(self, rows):
        """log p of rows (n, d): (n, K)."""
        cosine = F.linear(F.normalize(rows, dim=-1), F.normalize(self.embed, dim=-1))
        return (cosine / self.temperature).log_softmax(-1)

    def forward(self, rows, valid=None):
        if not self.training:
            index = self.nearest(rows)
            return Stage(F.embedding(index, self.embed), index, rows.new_zeros(()))
        log_p = self.log_assignments(rows)
        p = weights = log_p.exp()
        if self.gumbel != "none":
            weights = F.gumbel_softmax(log_p, tau=self.tau, hard=self.gumbel == "hard")
        index = log_p.detach().max(-1).indices  # (n,)
        vector = weights @ self.embed  # (n, d)
        loss = self.regularizer_weight * self.regularize(p, log_p, valid)
        if self.commitment_weight > 0:
            loss = loss + self.commitment_weight * mean_square(rows - vector, valid)
        return Stage(vector, index, loss)

    def regularize(self, p, log_p, valid):
        """The regulariser of the assignments without noise: ()."""
        if self.regularizer == "none":
            return p.new_zeros(())
        if self.regularizer == "perplexity":
            return perplexity_regularizer(p, valid)
        divergence = self.regularizer.removeprefix("knn_")
        return knn_regularizer(p, self.num_neighbors, divergence, valid, log_p=log_p, num_vertices=self.num_vertices)

    @torch.no_grad()
    def update_(self):
        """Leads t back into its range and cools the Gumbel noise by a step."""
        low, high = TEMPERATURES
        self.log_t.clamp_(log(low), log(high))
        _, end, decay = self.gumbel_schedule
        self.tau.mul_(decay).clamp_(min=end)


class SmoothedQuantizer(LearnedQuantizer):
    """Smoothed quantization: differentiable in training, hard in evaluation, M residual stages.

    Codes and features meet by their cosine; the vectors returned are the codes as they are. `loss` is the regulariser,
    mean over the stages, and 0 in evaluation. The paper has no commitment loss; without one nothing but the task brings
    q near z, and what a residual stage takes is not what the stages before could not express.

    Args:
        dim: d, last dimension of z and of the codes.
        num_codebooks: M.
        codebook_size: K.
        temperature: of the softmax at the start; it is learned, one a codebook, between 0.01 and 1.
        gumbel: "none" is the softmax, "soft" the Gumbel-softmax, "hard" its one-hot with straight-through gradient.
        gumbel_schedule: start, end and decay a step of the Gumbel temperature tau. (1, 1, 1) is the paper's;
            wav2vec 2.0 has (2, 0.5, 0.999995).
        regularizer: "knn_ce", "knn_l2", "perplexity" or "none". With Gumbel noise it sees the assignments without it.
        regularizer_weight: of the loss.
        num_neighbors: of the KNN regularisers, a process.
        num_vertices: a random subset of the vertices for them; None takes all.
        commitment_weight: of |z - q|^2, mean over rows and dimensions, which moves both; 0 leaves it out.
        normalize: "once" scales z to length 1, "none" takes it as it is: only stages after the first notice.
    """

    def __init__(self, dim, num_codebooks=1, codebook_size=1024, *, normalize="none", **options):
        books = [SmoothedCodebook(codebook_size, dim, **options) for _ in range(num_codebooks)]
        super().__init__(books, normalize=normalize)

    def update_(self, stats):
        """One step of the temperatures; once per optimizer step. `stats` is that of `forward` and holds nothing."""
        for book in self.codebooks:
            book.update_()
