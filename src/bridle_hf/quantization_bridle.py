"""EMA quantizers, residual and vector, and random projection. They take plain keyword arguments and stand alone.

One interface: `encode(z) -> codes`, `decode(codes) -> vectors`, `forward(z, mask) -> QuantizerOutput`. `forward` is
pure; codebooks move only in `initialize_`, `update_` and `reset_dead_codes_`. Results are float32, under autocast too.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .codebook_bridle import (
    Codebook,
    all_reduce_sum_,
    broadcast_,
    check_choice,
    check_codes,
    check_finite,
    check_vectors,
    code_statistics,
    flatten_rows,
    float32_island,
    gather_rows,
    is_first_process,
    mean_square,
    nearest_codes,
    sum_of_codes,
    to_default_,
)

EMA_MODES = ("counts", "official")
CODEBOOK_INITS = ("kmeans", "uniform", "sample")
NORMALIZATIONS = ("once", "per_stage", "none")


@dataclass
class QuantizerOutput(ModelOutput):
    """
    Args:
        quantized: (..., d) float32, sum of the chosen codes; its gradient goes to z unchanged (straight-through).
        codes: (..., M) int64.
        loss: () float32, the codebook loss.
        losses: name -> (); "codebook" is the mean over the stages, "codebook_1" ... "codebook_M" are the stages.
        stats: "counts" (M, K) and "sums" (M, K, d) of this process, detached, to be added up over micro-batches and
            given to `update_`; None in eval mode and for a frozen quantizer.
    """

    quantized: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    stats: dict[str, torch.FloatTensor] | None = None


class Quantizer(nn.Module):
    """What all quantizers share. A class that builds on it sets `dim`; its `assign` says which codes vectors get."""

    def _apply(self, fn, recurse=True):
        """Moves to devices, not to dtypes: codes meet float32 vectors, and `half()` would round them to other codes."""

        def move(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def encode(self, z):
        """(..., d) -> codes (..., M) int64. ValueError on NaN or inf."""
        check_vectors(z, self.dim)
        check_finite("z", z)
        return self.assign(z)


class StagedQuantizer(Quantizer):
    """Codebooks one after the other, each for what those before have left: what all residual quantizers share.

    A class that builds on it sets `codebooks`, each with codes `embed` (K, d), and `dim`, `num_codebooks`,
    `codebook_size` and `normalize`; it says what a stage does in `subtract`.
    """

    def scale(self, rows):
        """Rows (n, d) as the first stage takes them: of length 1 where normalize is "once"."""
        return F.normalize(rows, dim=-1) if self.normalize == "once" else rows

    def flatten(self, z):
        """(..., d) -> (n, d) float32, as the first stage takes them."""
        return self.scale(flatten_rows(z, self.dim)[0])

    @torch.no_grad()
    def assign(self, z):
        """`encode` for z that is known to be finite; looking would make the host wait for the device."""
        with float32_island(z):
            residual, codes = self.flatten(z), []
            for book in self.codebooks:
                residual, index = self.subtract(residual, book)
                codes.append(index)
            return torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks)

    def decode(self, codes):
        """codes (..., M) -> sum of their vectors (..., d) float32, in the scaled space where normalize is "once"."""
        check_codes(codes, self.num_codebooks, self.codebook_size)
        index = codes.reshape(-1, self.num_codebooks).split(1, dim=1)  # M of (n, 1)
        return sum_of_codes(index, [book.embed for book in self.codebooks]).view(*codes.shape[:-1], self.dim)


class ResidualQuantizer(StagedQuantizer):
    """Residual quantization with EMA codebooks (paper eq. 1-3, 5 and 9-13).

    e_1 = z; i_m = argmin_i |e_m - c_i|^2; e_{m+1} = e_m - sg[c_{i_m}]; q = sum_m c_{i_m}. Codes are constants for the
    gradient: stage m + 1 never pulls at the codes of stage m, while the commitment of every stage reaches z.
    Codebook loss: mean over stages of mse(sg[e_m], c) + commitment_weight * mse(e_m, sg[c]).

    Args:
        dim: d, last dimension of z and of the codes.
        num_codebooks: M.
        codebook_size: K.
        ema_decay, ema_epsilon: g and eps of eq. 10-13.
        ema_mode: "counts" (eq. 9-13) or "official": the reference code blends the direction of the batch mean into the
            code, and in training a stage subtracts the code as this batch moves it. `forward` moves it with the
            statistics of its own process, the stored codes move with those of all.
        commitment_weight: beta.
        normalize: "once": z is scaled to length 1, then plain RQ; the loss and q live in that space. "per_stage": each
            stage searches for the scaled copy of its residual but subtracts from the residual as it stands (reference
            code). "none": eq. 1-3.
        codebook_init, kmeans_iterations, kmeans_samples_per_code: what `initialize_` does; `init_sample_size` is the
            number of vectors, over all processes, that it should be given.
        reset_threshold: `reset_dead_codes_` moves codes with less than this share of the mean count.
        soft_codes: 0, or how many nearest codes are mixed by inverse squared distance where `forward` and `encode`
            subtract and sum; `codes` stay the nearest ones, and `decode(codes)` is the hard sum.

    In training mode `forward` also returns the statistics that `update_` takes. NaN or inf in z makes the loss of
    `forward` NaN or inf, which a training loop looks for, and is an error everywhere else. Without a valid vector the
    loss is 0.
    """

    official_rule = "blend"

    def __init__(
        self,
        dim,
        num_codebooks=4,
        codebook_size=256,
        *,
        ema_decay=0.99,
        ema_epsilon=1e-5,
        ema_mode="counts",
        commitment_weight=0.25,
        normalize="once",
        codebook_init="kmeans",
        kmeans_iterations=10,
        kmeans_samples_per_code=64,
        reset_threshold=0.1,
        soft_codes=0,
    ):
        super().__init__()
        check_choice("ema_mode", ema_mode, EMA_MODES)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_choice("codebook_init", codebook_init, CODEBOOK_INITS)
        if not 0 <= soft_codes <= codebook_size:
            raise ValueError(f"soft_codes is {soft_codes}, must be from 0 to codebook_size {codebook_size}")
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.commitment_weight, self.normalize = commitment_weight, normalize
        self.codebook_init, self.kmeans_iterations = codebook_init, kmeans_iterations
        self.reset_threshold, self.soft_codes = reset_threshold, soft_codes
        self.init_sample_size = codebook_size * kmeans_samples_per_code
        rule = "counts" if ema_mode == "counts" else self.official_rule
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, dim, decay=ema_decay, epsilon=ema_epsilon, rule=rule, seed=stage)
            for stage in range(num_codebooks)
        )

    @property
    def initialized(self) -> bool:
        """Whether every codebook was set from data."""
        return all(bool(book.initialized) for book in self.codebooks)

    def search_key(self, residual):
        """What a stage searches for and averages."""
        return F.normalize(residual, dim=-1) if self.normalize == "per_stage" else residual

    def search(self, book, key):
        """Nearest codes of each key (n, d): index (n, k), nearest first, and weights (n, k), None for k = 1."""
        if self.soft_codes == 0:
            return book.nearest(key)[:, None], None
        return book.soft_nearest(key, self.soft_codes)

    def mix(self, embed, near, weights):
        """What a search stands for in the codes `embed` (K, d): (n, d)."""
        if weights is None:
            return F.embedding(near[:, 0], embed)
        return (weights[:, :, None] * F.embedding(near, embed)).sum(1)

    def subtract(self, residual, book):
        """One stage without gradient or statistics: residual left (n, d) and codes (n,)."""
        near, weights = self.search(book, self.search_key(residual))
        return residual - self.mix(book.embed, near, weights), near[:, 0]

    def forward(self, z, mask=None):
        """Quantizes z (..., d); changes no state.

        Args:
            mask: (...,) True or 1 for valid vectors; the others (padding, of any value) are taken for zero vectors and
                stay out of losses and statistics.
        """
        with float32_island(z):
            rows, valid = flatten_rows(z, self.dim, mask)
            return self.quantize(self.scale(rows), valid, z.shape[:-1])

    def quantize(self, rows, valid, shape):
        residual, searches, losses, counts, sums = rows, [], [], [], []
        for book in self.codebooks:
            key, embed = self.search_key(residual.detach()), book.embed
            near, weights = self.search(book, key)
            if self.training:
                count, key_sum = code_statistics(key, near[:, 0], self.codebook_size, valid)
                counts.append(count)
                sums.append(key_sum)
                if book.rule == "blend":
                    embed = book.averaged(count, key_sum)[0]
            residual = residual - self.mix(embed, near, weights)  # (n, d)
            searches.append((near, weights, embed))
            losses.append(self.stage_loss(residual, valid))
        named = {f"codebook_{stage + 1}": loss for stage, loss in enumerate(losses)}
        loss = torch.stack(losses).mean()
        found, shares, embeds = zip(*searches, strict=True)
        total = sum_of_codes(found, embeds, shares if self.soft_codes else None)
        # what is added is zero, its gradient is not
        quantized = total + (rows - rows.detach()) if rows.requires_grad else total
        return QuantizerOutput(
            quantized=quantized.reshape(*shape, self.dim),
            codes=torch.stack([near[:, 0] for near in found], dim=-1).reshape(*shape, self.num_codebooks),
            loss=loss,
            losses={"codebook": loss, **named},
            stats={"counts": torch.stack(counts), "sums": torch.stack(sums)} if self.training else None,
        )

    def stage_loss(self, error, valid):
        """mse(sg[e], c) + beta mse(e, sg[c]) of error e - c (n, d), mean over valid rows and dimensions: ()."""
        error = mean_square(error, valid)
        return error.detach() + self.commitment_weight * error

    @torch.no_grad()
    def initialize_(self, z, generator=None):
        """Sets all codebooks from a sample; every process must call it.

        The vectors of all processes are gathered, the codes computed once, on the first process, and broadcast.

        Args:
            z: (..., d) valid vectors of this process; `init_sample_size` over all processes are enough.
            generator: torch.Generator of the draws; only that of the first process counts.

        Raises:
            ValueError: NaN or inf, or fewer vectors than codes.
        """
        with float32_island(z):
            residual = gather_rows(self.flatten(z))
            check_finite("z", residual)
            if len(residual) < self.codebook_size:
                raise ValueError(
                    f"z holds {len(residual)} vectors over all processes, initialize_ takes at least one per code, "
                    f"{self.codebook_size}, better {self.init_sample_size}"
                )
            for book in self.codebooks:
                key = self.search_key(residual)
                if is_first_process():
                    book.initialize_(key, self.codebook_init, iterations=self.kmeans_iterations, generator=generator)
                book.broadcast_()
                residual, _ = self.subtract(residual, book)

    @torch.no_grad()
    def update_(self, stats):
        """One EMA step of all codebooks; every process must call it, once per optimizer step.

        Args:
            stats: of `forward` in this process, or their sums over several micro-batches. Left as they are.

        Raises:
            ValueError: None (a forward in eval mode), or NaN or inf; the codebooks are then untouched.
        """
        if stats is None:
            raise ValueError("stats is None, must be the statistics of a forward in training mode")
        counts, sums = all_reduce_sum_(stats["counts"].clone()), all_reduce_sum_(stats["sums"].clone())
        check_finite("stats", sums)
        for stage, book in enumerate(self.codebooks):
            book.update_(counts[stage], sums[stage])

    @torch.no_grad()
    def reset_dead_codes_(self, z, generator=None) -> int:
        """Moves rarely used codes to random inputs of their stage and returns how many; every process must call it.

        Args:
            z: (..., d) valid vectors of this process, gathered over processes.
            generator: of the draws; only that of the first process counts.
        """
        with float32_island(z):
            residual = gather_rows(self.flatten(z))
            check_finite("z", residual)
            moved = torch.zeros((), dtype=torch.int64, device=residual.device)
            for book in self.codebooks:
                key = self.search_key(residual)
                if is_first_process():
                    moved += book.reset_dead_(key, self.reset_threshold, generator)
                book.broadcast_()
                residual, _ = self.subtract(residual, book)
            return int(broadcast_(moved))


class VectorQuantizer(ResidualQuantizer):
    """A single codebook: `ResidualQuantizer` with M = 1 (paper section 3, the BEATs-style baseline).

    With one stage, normalize="per_stage" is "once". ema_mode="official" scales the codes to length 1 after each step,
    and q is the code as it was before the step, as in the reference code.
    """

    official_rule = "blend_unit"

    def __init__(self, dim, codebook_size=1024, *, normalize="once", **options):
        super().__init__(dim, 1, codebook_size, normalize="once" if normalize == "per_stage" else normalize, **options)


class RandomProjectionQuantizer(Quantizer):
    """M frozen random projections, each with a frozen random codebook of unit length (BEST-RQ, arXiv 2202.01855).

    Each z is brought to mean 0 and variance 1 (without that few codes are used), projected, and gets the code with the
    nearest direction. Nothing is learned: no loss, no statistics, and the verbs that change state do nothing.

    Args:
        dim: d of z.
        projection_dim: dimension of the codes.

    `decode` leads each code back through the transpose of its projection and takes the mean over the M.
    """

    def __init__(self, dim, num_codebooks=1, codebook_size=1024, *, projection_dim=16):
        super().__init__()
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.projection_dim = projection_dim
        self.init_sample_size = 0
        shapes = {
            "projection": (num_codebooks, dim, projection_dim),
            "embed": (num_codebooks, codebook_size, projection_dim),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape, dtype=torch.float32))
        to_default_(self)

    initialized = True

    def default_state(self):
        """Name -> tensor of the frozen state, on the CPU, equal at every call."""
        generator = torch.Generator("cpu").manual_seed(0)
        options = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        bound = (6 / (self.dim + self.projection_dim)) ** 0.5
        projection = (torch.rand(self.num_codebooks, self.dim, self.projection_dim, **options) * 2 - 1) * bound
        embed = torch.randn(self.num_codebooks, self.codebook_size, self.projection_dim, **options)
        return {"projection": projection, "embed": F.normalize(embed, dim=-1)}

    @torch.no_grad()
    def assign(self, z):
        """`encode` for z that is known to be finite."""
        with float32_island(z):
            rows = F.layer_norm(z.reshape(-1, self.dim).float(), (self.dim,))
            # |key| only scales the products, and the codes are of unit length: the order needs no normalised key.
            codes = [nearest_codes(rows @ self.projection[m], self.embed[m]) for m in range(self.num_codebooks)]
            return torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks)

    def decode(self, codes):
        """codes (..., M) -> (..., d) float32."""
        check_codes(codes, self.num_codebooks, self.codebook_size)
        with float32_island(codes):
            vectors = [
                F.embedding(codes[..., m], self.embed[m]) @ self.projection[m].t() for m in range(self.num_codebooks)
            ]
            return torch.stack(vectors).mean(0)

    def forward(self, z, mask=None):
        """Codes of z (..., d), 0 where mask (...,) is False; the loss is 0 and there are no statistics.

        NaN or inf in z shows in `quantized`, as it does in the losses of the other quantizers.
        """
        if mask is not None:
            z = torch.where(mask[..., None] > 0, z, 0.0)
        codes = self.assign(z.masked_fill(~torch.isfinite(z.float().sum()), 0.0))
        with float32_island(z):
            rows = z.float()
            zero = rows.new_zeros(())
            quantized = self.decode(codes) + (rows - rows.detach())
        return QuantizerOutput(quantized=quantized, codes=codes, loss=zero, losses={"codebook": zero})

    def initialize_(self, z, generator=None):
        """Frozen: nothing to set."""

    def update_(self, stats):
        """Frozen: nothing to update."""

    def reset_dead_codes_(self, z, generator=None) -> int:
        """Frozen: no code is moved."""
        return 0
