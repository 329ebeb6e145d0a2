"""Codebooks that an optimizer trains: hard codes (VQ-VAE, SimVQ), and smoothed codes with their regularisers.

`GradientQuantizer` is the VQ of VQ-VAE (arXiv 1711.00937), `SimVQQuantizer` learns one linear map of frozen codes
(arXiv 2411.02038), the rotation is arXiv 2410.06424, `SmoothedQuantizer` and its regularisers are T. Morita (2026).
Equation numbers are Morita's.
"""

from math import log
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .codebook_bridle import (
    SHORTEST,
    check_choice,
    check_range,
    flatten_rows,
    float32_island,
    mean_square,
    nearest_codes,
    result_dtype,
    sizes_of,
    straight_through,
    to_default_,
    unit,
)
from .quantization_bridle import QuantizerOutput, StagedQuantizer, register

DISTANCES = ("euclidean", "cosine")
ESTIMATORS = ("ste", "rotation")
GUMBELS = ("none", "soft", "hard")
REGULARIZERS = ("none", "perplexity", "knn_ce", "knn_l2")
DIVERGENCES = ("ce", "l2")

# Range of the temperature of the softmax. At 1 and K = 256 no weight exceeds 0.03; at 0.01 every assignment is one-hot.
TEMPERATURES = (0.01, 1.0)

# Upper bound for weights of losses; it also rejects NaN and inf.
MOST_WEIGHT = 1e6

# Elements per block of the search for neighbours, which bounds its memory whatever K is.
BLOCK = 1 << 24


# --- Residual stages of learned codebooks -----------------------------------------------------------------------------
class CodebookOutput(NamedTuple):
    """Output of one codebook for rows (n, d).

    Fields:
        vector: (n, d) what the rows are quantized to, with a gradient where it depends on them smoothly.
        index: (n,) int64, their codes, without noise.
        loss: (), the codebook's own loss.
    """

    vector: torch.Tensor
    index: torch.Tensor
    loss: torch.Tensor


class LearnedQuantizer(StagedQuantizer):
    """M codebooks of parameters, each quantizing what the codebooks before it left over.

    e_1 = z; stage m turns e_m into a vector q_m; e_{m+1} = e_m - c_{i_m}; q = sum_m q_m. A stage subtracts its hard
    code even if q_m is a mixture of codes, so that the next stage is trained on the residuals of inference; the
    gradient of the difference is that of e_m - q_m.

    New codes are random, with length 1 on average. They need no data, and no EMA or reset.

    Args:
        codebooks: modules that map rows (n, d) and their weights (n,) or None to a `CodebookOutput`, and have codes
            `embed` (K, d) and `nearest(rows) -> (n,)`.
        normalize: "once" scales z to length 1, "none" leaves it as it is.
        quantizer_dropout: share of the samples that only the first of the codebooks quantize in training; see
            `stage_weights`. Dropped stages have no part in q and the loss.
    """

    learned = True
    normalizations = ("once", "none")

    def __init__(self, codebooks, *, normalize="none", quantizer_dropout=0.0):
        check_choice("normalize", normalize, self.normalizations)
        check_range("quantizer_dropout", quantizer_dropout, 0, 1)
        dim = codebooks[0].embed.shape[1]
        super().__init__(dim, len(codebooks), [len(book.embed) for book in codebooks])
        self.codebooks, self.normalize = nn.ModuleList(codebooks), normalize
        self.quantizer_dropout = quantizer_dropout

    def estimate(self, rows, total):
        """The output for rows (n, d) quantized to `total` (n, d), with its gradient."""
        return total

    def search_key(self, residual):
        """The vectors that a stage searches for: (n, d), of length 1 where it searches by cosine."""
        return residual

    def subtract(self, residual, book):
        index = book.nearest(residual)
        return residual - F.embedding(index, book.embed), index

    def forward(self, z, mask=None):
        with float32_island(z):
            rows, valid = flatten_rows(z, self.dim, mask)
            rows = self.scale(rows)
            residual, total, codes, losses = rows, torch.zeros_like(rows), [], []
            for book, weight in zip(self.codebooks, self.stage_weights(z, valid), strict=True):
                vector, index, loss = book(residual, weight)
                residual = residual - straight_through(vector, F.embedding(index, book.embed))
                total = total + (vector if weight is valid else weight[:, None] * vector)
                codes.append(index)
                losses.append(loss)
            named = {f"codebook_{stage + 1}": loss for stage, loss in enumerate(losses)}
            loss = torch.stack(losses).mean()
            quantized = self.estimate(rows, total).reshape(*z.shape[:-1], self.dim)
        return QuantizerOutput(
            quantized=quantized.to(result_dtype(z)),
            codes=torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks),
            loss=loss,
            losses={"codebook": loss, **named},
            stats={} if self.training else None,  # nothing to add up, but `update_` is to be called
        )


def nearest_directions(rows, codes):
    """Code (K, d) with the greatest cosine to each row (n, d): (n,) int64."""
    # The length of a row does not change the order, unless it is so small that rounding of the codes' lengths does.
    short = torch.linalg.vector_norm(rows, dim=-1, keepdim=True) < 0.01
    rows = torch.where(short, F.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny), rows)
    return nearest_codes(rows, F.normalize(codes, dim=-1))


def initial_codes(num_codes, dim):
    """(K, d) float32 from the global random state, with length 1 on average."""
    return torch.randn(num_codes, dim, dtype=torch.float32, device="cpu") * dim**-0.5


# --- Hard codes -------------------------------------------------------------------------------------------------------
def rotate(source, target):
    """`target` exactly, with the gradient of the rotation and scaling that takes `source` to it (eq. 3-4).

    q = (|q| / |e|) R e with R = I - 2 r r^T + 2 q^ e^^T, where r is the unit vector halfway between e^ and q^. Rotation
    and scale are constants for the gradient, which keeps its angle to q rather than its direction. Both (n, d). Where e
    has no length, there is nothing to rotate, and the gradient reaches it unchanged.
    """
    target = target.detach()
    e, q = F.normalize(source.detach(), dim=-1), F.normalize(target, dim=-1)
    r = F.normalize(e + q, dim=-1)
    length = source.detach().norm(dim=-1, keepdim=True)
    scale = target.norm(dim=-1, keepdim=True) / length.clamp(min=SHORTEST)

    def along(x):
        return (source * x).sum(-1, keepdim=True)

    rotated = scale * (source - 2 * along(r) * r + 2 * along(e) * q)
    return straight_through(torch.where(length > SHORTEST, rotated, source), target)  # without the rounding error


class NearestCodebook(nn.Module):
    """One codebook of hard codes: loss |sg[e] - c|^2 + beta |e - sg[c]|^2, mean over rows and dimensions.

    Args:
        distance: "euclidean" or "cosine" search. Codes and losses do not depend on it.
        commitment_weight: beta.
    """

    def __init__(self, distance, commitment_weight):
        super().__init__()
        self.distance, self.commitment_weight = distance, commitment_weight

    @torch.no_grad()
    def nearest(self, rows):
        """(n, d) -> (n,) int64."""
        return (nearest_codes if self.distance == "euclidean" else nearest_directions)(rows, self.embed)

    def forward(self, rows, valid=None):
        index = self.nearest(rows)
        code = F.embedding(index, self.embed)  # (n, d)
        loss = mean_square(rows.detach() - code, valid)
        loss = loss + self.commitment_weight * mean_square(rows - code.detach(), valid)
        return CodebookOutput(code.detach(), index, loss)


class GradientCodebook(NearestCodebook):
    """Codes that are parameters: `embed` (K, d) float32."""

    def __init__(self, num_codes, dim, distance, commitment_weight):
        super().__init__(distance, commitment_weight)
        self.embed = nn.Parameter(torch.empty(num_codes, dim, dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before training, drawn anew at every call."""
        return {"embed": initial_codes(*self.embed.shape)}


class SimVQCodebook(NearestCodebook):
    """Codes Q = Q' W with frozen normal Q' (K, d), a buffer, and a learned W (d, d), `weight`: all codes move together.

    W starts as the identity. Q' depends on `seed` alone.
    """

    def __init__(self, num_codes, dim, distance, commitment_weight, seed=0):
        super().__init__(distance, commitment_weight)
        self.seed = seed
        self.register_buffer("frozen", torch.empty(num_codes, dim, dtype=torch.float32))
        self.weight = nn.Parameter(torch.empty(dim, dim, dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before training, on the CPU. Deterministic."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        frozen = torch.randn(self.frozen.shape, generator=generator, dtype=torch.float32, device="cpu")
        return {
            "frozen": frozen * self.frozen.shape[1] ** -0.5,
            "weight": torch.eye(len(self.weight), dtype=torch.float32, device="cpu"),
        }

    @property
    def embed(self):
        """(K, d)."""
        return self.frozen @ self.weight


@register("gradient")
class GradientQuantizer(LearnedQuantizer):
    """Hard codes that are parameters, in M residual stages. `loss` is the codebook and commitment loss, their mean.

    Args:
        dim: d.
        num_codebooks: M.
        codebook_size: K, or a list of one number per codebook.
        distance: "euclidean" or "cosine" search.
        estimator: gradient from q to z, through all stages at once: "ste" (unchanged) or "rotation".
        commitment_weight: beta.
        normalize, quantizer_dropout: as in `LearnedQuantizer`.
    """

    def __init__(
        self,
        dim,
        num_codebooks=1,
        codebook_size=1024,
        *,
        distance="euclidean",
        estimator="ste",
        commitment_weight=1.0,
        normalize="none",
        quantizer_dropout=0.0,
    ):
        check_choice("distance", distance, DISTANCES)
        check_choice("estimator", estimator, ESTIMATORS)
        options, sizes = (dim, distance, commitment_weight), sizes_of(codebook_size, num_codebooks)
        books = [self.codebook(stage, size, *options) for stage, size in enumerate(sizes)]
        super().__init__(books, normalize=normalize, quantizer_dropout=quantizer_dropout)
        self.estimator = estimator

    def codebook(self, stage, *options):
        """The codebook of a stage."""
        return GradientCodebook(*options)

    def estimate(self, rows, total):
        return (straight_through if self.estimator == "ste" else rotate)(rows, total)

    def search_key(self, residual):
        return unit(residual) if self.codebooks[0].distance == "cosine" else residual


@register("simvq")
class SimVQQuantizer(GradientQuantizer):
    """`GradientQuantizer` with codes Q = Q' W, Q' frozen and W learned, in every stage."""

    def codebook(self, stage, *options):
        return SimVQCodebook(*options, seed=stage)


def check_gumbel_schedule(schedule):
    """Raise a `ValueError` unless it is three numbers above 0."""
    if len(schedule) != 3 or not min(schedule) > 0:
        raise ValueError(f"`gumbel_schedule` is {schedule}; it takes start, end and decay, above 0.")


# --- Smoothed codes ---------------------------------------------------------------------------------------------------
class SmoothedCodebook(nn.Module):
    """One codebook: p = softmax(cos(z, Q) / t); q = p Q in training and Q[argmax p] in evaluation.

    State, float32: parameters Q `embed` (K, d) and `log_t` (1,), buffer `tau` (). Arguments as in `SmoothedQuantizer`.
    """

    def __init__(
        self,
        num_codes,
        dim,
        *,
        temperature,
        gumbel,
        gumbel_schedule,
        regularizer,
        regularizer_weight,
        num_neighbors,
        num_vertices,
        commitment_weight,
        codebook_weight,
    ):
        super().__init__()
        self.start_temperature, self.gumbel, self.gumbel_schedule = temperature, gumbel, gumbel_schedule
        self.regularizer, self.regularizer_weight = regularizer, regularizer_weight
        self.num_neighbors, self.num_vertices = num_neighbors, num_vertices
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.embed = nn.Parameter(torch.empty(num_codes, dim, dtype=torch.float32))
        self.log_t = nn.Parameter(torch.empty(1, dtype=torch.float32))  # not a scalar: FSDP2 shards none
        self.register_buffer("tau", torch.empty((), dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before training; the codes are drawn anew at every call."""
        return {
            "embed": initial_codes(*self.embed.shape),
            "log_t": torch.full((1,), log(self.start_temperature), dtype=torch.float32, device="cpu"),
            "tau": torch.full((), float(self.gumbel_schedule[0]), dtype=torch.float32, device="cpu"),
        }

    @property
    def temperature(self):
        """t (1,), clamped to its range with a straight-through gradient, which can lead it back from the ends."""
        low, high = TEMPERATURES
        return straight_through(self.log_t, self.log_t.clamp(log(low), log(high))).exp()

    @torch.no_grad()
    def nearest(self, rows):
        """(n, d) -> (n,) int64."""
        return nearest_directions(rows, self.embed)

    def log_assignments(self, rows):
        """log p of rows (n, d): (n, K)."""
        cosine = F.linear(unit(rows), unit(self.embed))
        return (cosine / self.temperature).log_softmax(-1)

    def forward(self, rows, valid=None):
        if not self.training:
            index = self.nearest(rows)
            return CodebookOutput(F.embedding(index, self.embed), index, rows.new_zeros(()))
        log_p = self.log_assignments(rows)
        p = weights = log_p.exp()
        if self.gumbel != "none":
            tau = self.tau.clone()  # `update_` may move it before the backward pass
            weights = F.gumbel_softmax(log_p, tau=tau, hard=self.gumbel == "hard")
        index = log_p.detach().max(-1).indices  # (n,)
        vector = weights @ self.embed  # (n, d)
        loss = self.regularizer_weight * self.regularize(p, log_p, valid)
        if self.commitment_weight > 0:
            loss = loss + self.commitment_weight * mean_square(rows - vector, valid)
        if self.codebook_weight > 0:
            code = F.embedding(index, self.embed)  # of inference, in place of the mixture
            loss = loss + self.codebook_weight * mean_square(rows.detach() - code, valid)
        return CodebookOutput(vector, index, loss)

    def regularize(self, p, log_p, valid):
        """The regulariser of the noise-free assignments: ()."""
        if self.regularizer == "none":
            return p.new_zeros(())
        if self.regularizer == "perplexity":
            return perplexity_regularizer(p, valid)
        divergence = self.regularizer.removeprefix("knn_")
        return knn_regularizer(p, self.num_neighbors, divergence, valid, log_p=log_p, num_vertices=self.num_vertices)

    @torch.no_grad()
    def update_(self):
        """Clamp t to its range and take one step of the schedule of tau."""
        low, high = TEMPERATURES
        self.log_t.clamp_(log(low), log(high))
        _, end, decay = self.gumbel_schedule
        self.tau.mul_(decay).clamp_(min=end)


@register("smoothed")
class SmoothedQuantizer(LearnedQuantizer):
    """Smoothed quantization: mixtures of codes in training, hard codes in evaluation, in M residual stages.

    The search is by cosine; the vectors returned are the codes as they are. `loss` is the regulariser, mean over
    stages, and 0 in evaluation. In the paper only the task loss pulls q towards z, so later stages need not encode what
    earlier stages missed. With a `codebook_weight` they do, as stages of k-means would.

    Args:
        dim: d.
        num_codebooks: M.
        codebook_size: K, or a list of one number per codebook.
        temperature: start of t, learned per codebook, 0.01 to 1.
        gumbel: "none" (softmax), "soft" (Gumbel-softmax) or "hard" (one-hot, with straight-through gradient).
        gumbel_schedule: start, end and decay per step of the Gumbel temperature tau. (1, 1, 1) is the paper's,
            (2, 0.5, 0.999995) that of wav2vec 2.0.
        regularizer: "knn_ce", "knn_l2", "perplexity" or "none", of the assignments without Gumbel noise.
        regularizer_weight: its weight in the loss.
        num_neighbors: neighbours per vertex in the KNN regularisers, per process.
        num_vertices: size of the random subset of vertices for them; None takes all.
        commitment_weight: weight of |z - q|^2, mean over rows and dimensions, which moves both.
        codebook_weight: weight of |sg[z] - c|^2 for the hard code c, mean over rows and dimensions, which moves codes.
        normalize, quantizer_dropout: as in `LearnedQuantizer`; "once" matters after the first stage only.
    """

    def __init__(
        self,
        dim,
        num_codebooks=1,
        codebook_size=1024,
        *,
        temperature=0.1,
        gumbel="none",
        gumbel_schedule=(1.0, 1.0, 1.0),
        regularizer="knn_ce",
        regularizer_weight=1.0,
        num_neighbors=1,
        num_vertices=None,
        commitment_weight=0.0,
        codebook_weight=0.0,
        normalize="none",
        quantizer_dropout=0.0,
    ):
        check_choice("gumbel", gumbel, GUMBELS)
        check_choice("regularizer", regularizer, REGULARIZERS)
        check_range("temperature", temperature, *TEMPERATURES)
        check_gumbel_schedule(gumbel_schedule)
        for name, weight in (
            ("regularizer_weight", regularizer_weight),
            ("commitment_weight", commitment_weight),
            ("codebook_weight", codebook_weight),
        ):
            check_range(name, weight, 0, MOST_WEIGHT)
        options = {
            "temperature": temperature,
            "gumbel": gumbel,
            "gumbel_schedule": gumbel_schedule,
            "regularizer": regularizer,
            "regularizer_weight": regularizer_weight,
            "num_neighbors": num_neighbors,
            "num_vertices": num_vertices,
            "commitment_weight": commitment_weight,
            "codebook_weight": codebook_weight,
        }
        books = [SmoothedCodebook(size, dim, **options) for size in sizes_of(codebook_size, num_codebooks)]
        super().__init__(books, normalize=normalize, quantizer_dropout=quantizer_dropout)

    def search_key(self, residual):
        return unit(residual)

    def update_(self, stats):
        for book in self.codebooks:
            book.update_()


# --- Regularisers of smoothed assignments -----------------------------------------------------------------------------
def knn_regularizer(p, num_neighbors=1, divergence="ce", mask=None, *, log_p=None, num_vertices=None, generator=None):
    """Mean divergence of the vertices of the simplex from their nearest assignments (eq. 13).

    Vertex e_m is the one-hot assignment to code m. Pulling its nearest assignments to it keeps code m in use and these
    assignments sharp. Neighbours are among the assignments given, in training those of one process and micro-batch. One
    assignment may be a neighbour of several vertices.

    Args:
        p: (N, K) assignments, each a distribution over K codes.
        num_neighbors: assignments pulled to each vertex; all of them if `mask` leaves fewer.
        divergence: "ce", -log p_m, or "l2", |e_m - p|^2 = 1 - 2 p_m + |p|^2. It also defines the neighbours.
        mask: (N,) True or 1 for assignments that count; None if all do.
        log_p: (N, K) log of p if known; otherwise the log of a p that underflowed is cut at the smallest float32.
        num_vertices: size of a random subset of the vertices (section 5.3); None takes all.
        generator: torch.Generator of that draw, on the CPU.

    Returns:
        () float32; 0 if no assignment counts.

    Raises:
        ValueError: p is no matrix, unknown divergence, more neighbours than assignments, more vertices than codes, or a
            mask of another length.
    """
    check_choice("divergence", divergence, DIVERGENCES)
    check_assignments(p, mask)
    num_rows, num_codes = p.shape
    if num_rows == 0:
        return p.float().sum()
    check_range("num_neighbors", num_neighbors, 1, num_rows, "the number of assignments")
    if num_vertices is not None:
        check_range("num_vertices", num_vertices, 1, num_codes, "the number of codes")
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

    The search is exact, in blocks of vertices. With `square` (N,), |p|^2, the order is that of |e_m - p|^2.
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
    """1 - exp(entropy of the mean assignment) / K, 0 if all codes are used equally on average (eq. 11-12).

    The paper prints the perplexity itself as the loss, but it is to be maximised. The mean is over the assignments
    given, in training over those of one process and micro-batch.

    Args:
        p: (N, K) assignments, each a distribution over K codes.
        mask: (N,) True or 1 for assignments that count; None if all do.

    Returns:
        () float32; 0 if no assignment counts.

    Raises:
        ValueError: p is no matrix, or a mask of another length.
    """
    check_assignments(p, mask)
    with float32_island(p):
        weight = p.new_ones(len(p), dtype=torch.float32) if mask is None else (mask > 0).float()
        count = weight.sum()
        mean = torch.where(weight[:, None] > 0, p.float(), 0.0).sum(0) / count.clamp(min=1)  # (K,)
        # x log x has infinite slope at 0, so a code that underflows would make the gradient NaN.
        entropy = torch.special.entr(mean.clamp(min=torch.finfo(torch.float32).tiny)).sum()
        return (1 - entropy.exp() / p.shape[1]) * (count > 0)


def check_assignments(p, mask):
    """Raise a `ValueError` unless p is floating point (N, K) and `mask` None or (N,)."""
    if p.ndim != 2 or not p.is_floating_point():
        raise ValueError(f"`p` is {tuple(p.shape)} {p.dtype}; it takes floating point (N, K).")
    if mask is not None and mask.shape != p.shape[:1]:
        raise ValueError(f"`mask` is {tuple(mask.shape)}; it takes {tuple(p.shape[:1])}, one per assignment.")
