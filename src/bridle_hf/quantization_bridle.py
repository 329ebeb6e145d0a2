"""Quantizers: the contract as a base class, the registry, and residual, vector, product and random projection.

They take plain keyword arguments and stand alone; `build_quantizer` makes any of them from a `BridleQuantizerConfig`.
`learned_quantization_bridle.py`, which the config imports, adds those that an optimizer trains.
"""

from dataclasses import dataclass, fields
from inspect import Parameter, signature
from typing import NamedTuple

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
    check_range,
    check_vectors,
    code_statistics,
    flatten_rows,
    float32_island,
    gather_rows,
    is_first_process,
    mean_square,
    nearest_codes,
    result_dtype,
    straight_through,
    sum_of_codes,
    to_default_,
    unit,
)

EMA_MODES = ("counts", "official")
CODEBOOK_INITS = ("kmeans", "uniform", "sample")
NORMALIZATIONS = ("once", "per_stage", "none")


# --- The contract -----------------------------------------------------------------------------------------------------
@dataclass
class QuantizerOutput(ModelOutput):
    """
    Args:
        quantized: (..., d), the vectors that the codes stand for, in the dtype of z; float32 under autocast. Its
            gradient reaches z as the class says: unchanged (straight-through) unless noted.
        codes: (..., M) int64.
        loss: () float32, the quantizer's own loss.
        losses: name -> (). "codebook" is `loss`; "codebook_1", "codebook_2", ... are those of the stages or groups, if
            they have any.
        stats: input of `update_`, detached, to be summed over micro-batches; None in eval mode and for quantizers that
            take no statistics. EMA codebooks: "counts" (M, K) and "sums" (M, K, d) of this process.
    """

    quantized: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    stats: dict[str, torch.FloatTensor] | None = None


class Quantizer(nn.Module):
    """Base class of all quantizers: vectors z (..., d) become M codes in [0, K), and codes become vectors again.

    A quantizer defines `assign`, `decode` and `forward`. The methods that change state end with an underscore and do
    nothing by default. Everything else is pure. State and results are float32, under autocast and in a model cast to
    another dtype, too; `quantized` alone has the dtype of z, for the layer behind it.

    Attributes:
        dim: d.
        num_codebooks: M.
        codebook_size: K.
        codebooks: M modules with codes `embed` (K, d), subtracted from z one after the other; () for other structures.
        initialized: False while codebooks wait for `initialize_`.
        init_sample_size: vectors to give to `initialize_`, over all processes; 0 if it needs none.
        learned: whether an optimizer trains it, so that codes mean nothing before training.
        normalizations: values of the option `normalize`.
    """

    initialized = True
    learned = False
    normalizations = NORMALIZATIONS

    def __init__(self, dim, num_codebooks, codebook_size):
        super().__init__()
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.codebooks = ()  # of the instance: an attribute of the class would hide a ModuleList of that name
        self.init_sample_size = 0

    def assign(self, z):
        """Codes (..., M) int64 of finite z (..., d): `encode` without its checks, which make the host wait."""
        raise NotImplementedError

    def decode(self, codes):
        """Vectors (..., d) float32 of codes (..., M). ValueError for other shapes, dtypes or values."""
        raise NotImplementedError

    def forward(self, z, mask=None):
        """Quantize z (..., d) without changing state.

        Args:
            mask: (...,) True or 1 for valid vectors. Others (padding of any value) count as zero vectors and stay out
                of losses and statistics.

        Returns:
            `QuantizerOutput`. NaN or inf in z appears in `loss` or `quantized`, where a training loop looks for it.
        """
        raise NotImplementedError

    def encode(self, z):
        """Codes (..., M) int64 of z (..., d). ValueError for NaN or inf."""
        check_vectors(z, self.dim)
        check_finite("z", z)
        return self.assign(z)

    def initialize_(self, z, generator=None):
        """Set the codebooks from a sample. Call it in every process.

        Args:
            z: (..., d) valid vectors of this process.
            generator: torch.Generator of the draws; only that of process 0 is used.

        Raises:
            ValueError: NaN or inf, or fewer vectors over all processes than codes.
        """

    def update_(self, stats):
        """Move the codebooks by one step. Call it in every process, once per optimizer step.

        Args:
            stats: from `forward` in this process, or their sum over micro-batches. Not modified.

        Raises:
            ValueError: None where statistics are needed, or NaN or inf; the codebooks are then unchanged.
        """

    def reset_dead_codes_(self, z, generator=None) -> int:
        """Move rarely used codes to random vectors and return their number. Call it in every process.

        Args:
            z: (..., d) valid vectors of this process.
            generator: torch.Generator of the draws; only that of process 0 is used.
        """
        return 0

    def _apply(self, fn, recurse=True):
        """Move to devices but keep dtypes: codes are compared with float32 vectors, and `half()` would round them."""

        def move(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


# --- The registry: from the fields of a config to a quantizer ---------------------------------------------------------
class QuantizerType(NamedTuple):
    """A `type` of `BridleQuantizerConfig`.

    Fields:
        cls: its class.
        num_codebooks, codebook_size: defaults of M and K. M = 1 means one codebook, which may be an `inner` type.
        inner_class: the class that stands inside `residual` and `product` for it.
    """

    cls: type[Quantizer]
    num_codebooks: int
    codebook_size: int
    inner_class: type[Quantizer]


QUANTIZERS: dict[str, QuantizerType] = {}


def register(name, num_codebooks=1, codebook_size=1024, inner_class=None):
    """Class decorator that makes a quantizer the `type` of that name; arguments as in `QuantizerType`.

    Fields of the config reach the class by the names of its arguments.
    """

    def add(cls):
        QUANTIZERS[name] = QuantizerType(cls, num_codebooks, codebook_size, inner_class or cls)
        return cls

    return add


def arguments(cls):
    """Name -> `inspect.Parameter` of a class. `**options` stands for the keyword-only arguments of its base class."""
    own = dict(signature(cls).parameters)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own.values()):
        inherited = {name: p for name, p in arguments(cls.__base__).items() if p.kind is Parameter.KEYWORD_ONLY}
        own = inherited | {name: p for name, p in own.items() if p.kind is not Parameter.VAR_KEYWORD}
    return own


def inner_types(structure):
    """Types that may be `inner` in a structure, "residual" or "product"."""
    single = [name for name, entry in QUANTIZERS.items() if entry.num_codebooks == 1]
    if structure == "residual":  # one quantizer with M stages
        single = [name for name in single if "num_codebooks" in arguments(QUANTIZERS[name].inner_class)]
    return tuple(single)


def build_quantizer(config, cold_start=False):
    """Quantizer of a `BridleQuantizerConfig`.

    Args:
        cold_start: build the frozen tokenizer of iteration 1. Codebooks that learn by gradient mean nothing before
            training, so `residual` EMA codebooks of the same shape, set by k-means, take their place.

    Raises:
        ValueError: unknown type.
    """
    check_choice("type", config.type, tuple(QUANTIZERS))
    entry = QUANTIZERS[config.codebook_type]
    if cold_start and entry.cls.learned:
        return from_config(ResidualQuantizer, config)
    if config.type == "product":
        sizes = {"dim": config.codebook_dim // config.num_codebooks, "num_codebooks": 1}
        return ProductQuantizer([from_config(entry.inner_class, config, **sizes) for _ in range(config.num_codebooks)])
    return from_config(entry.inner_class if config.type == "residual" else entry.cls, config)


def from_config(cls, config, **sizes):
    """A quantizer whose arguments are the fields of the config of the same name, `dim` being `codebook_dim`."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values = values | {"dim": config.codebook_dim} | sizes
    return cls(**{name: values[name] for name in arguments(cls) if name in values})


# --- EMA codebooks ----------------------------------------------------------------------------------------------------
class StagedQuantizer(Quantizer):
    """Base class of residual quantizers: each codebook quantizes what the codebooks before it left over.

    A subclass sets `codebooks` and `normalize`, and defines one stage in `subtract`.
    """

    def subtract(self, residual, book):
        """One stage without gradient: the residual it leaves (n, d) and its codes (n,)."""
        raise NotImplementedError

    def scale(self, rows):
        """Rows (n, d) as the first stage receives them: of length 1 if normalize is "once"."""
        return unit(rows) if self.normalize == "once" else rows

    def flatten(self, z):
        """Vectors (..., d) as the first stage receives them: (n, d) float32."""
        return self.scale(flatten_rows(z, self.dim)[0])

    @torch.no_grad()
    def assign(self, z):
        with float32_island(z):
            residual, codes = self.flatten(z), []
            for book in self.codebooks:
                residual, index = self.subtract(residual, book)
                codes.append(index)
            return torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks)

    def decode(self, codes):
        """Sum of the codes' vectors (..., d) float32, in the scaled space if normalize is "once".

        Args:
            codes: (..., M), or those of the first m codebooks alone, (..., m): a coarser vector.
        """
        check_codes(codes, self.num_codebooks, self.codebook_size, fewer=True)
        index = codes.reshape(-1, codes.shape[-1]).split(1, dim=1)  # m of (n, 1)
        with float32_island(codes):
            books = [book.embed for book in self.codebooks[: len(index)]]
            return sum_of_codes(index, books).view(*codes.shape[:-1], self.dim)


@register("residual", num_codebooks=4, codebook_size=256)
class ResidualQuantizer(StagedQuantizer):
    """Residual quantization with EMA codebooks (paper eq. 1-3, 5 and 9-13).

    e_1 = z; i_m = argmin_i |e_m - c_i|^2; e_{m+1} = e_m - sg[c_{i_m}]; q = sum_m c_{i_m}. Codes are constants for the
    gradient, so the commitment loss of every stage reaches z and no other codebook.
    `loss`: mean over stages of mse(sg[e_m], c) + commitment_weight * mse(e_m, sg[c]); 0 without valid vectors.

    Args:
        dim: d, last dimension of z and of the codes.
        num_codebooks: M.
        codebook_size: K.
        ema_decay, ema_epsilon: g and eps of eq. 10-13.
        ema_mode: "counts" is eq. 9-13. "official" is the reference code: the direction of the batch mean is blended
            into the code, and in training a stage subtracts the code as this batch moves it (by the statistics of its
            own process; the stored codes move by those of all processes).
        commitment_weight: beta.
        normalize: "once" scales z to length 1, then applies eq. 1-3; the loss and q are in that space. "per_stage"
            (reference code): each stage searches with its residual scaled to length 1, but subtracts from the unscaled
            one. "none": eq. 1-3.
        codebook_init: "kmeans", "uniform" or "sample", for `initialize_`.
        kmeans_iterations, kmeans_samples_per_code: number of k-means steps, and vectors per code in its sample.
        reset_threshold, reset_min_count: `reset_dead_codes_` moves codes whose count N is below this share of the mean;
            with a `reset_min_count` above 0 those that fewer of its vectors choose (the paper's T_u is 1).
        soft_codes: 0, or the number of nearest codes that `forward` and `encode` mix by inverse squared distance when
            they subtract and sum. `codes` are still the nearest, and `decode(codes)` is their hard sum.
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
        reset_min_count=0,
        soft_codes=0,
    ):
        super().__init__(dim, num_codebooks, codebook_size)
        check_choice("ema_mode", ema_mode, EMA_MODES)
        check_choice("normalize", normalize, self.normalizations)
        check_choice("codebook_init", codebook_init, CODEBOOK_INITS)
        check_range("ema_decay", ema_decay, 0, 1)
        check_range("soft_codes", soft_codes, 0, codebook_size, "`codebook_size`")
        self.commitment_weight, self.normalize = commitment_weight, normalize
        self.codebook_init, self.kmeans_iterations = codebook_init, kmeans_iterations
        self.reset_threshold, self.reset_min_count, self.soft_codes = reset_threshold, reset_min_count, soft_codes
        self.init_sample_size = codebook_size * kmeans_samples_per_code
        rule = "counts" if ema_mode == "counts" else self.official_rule
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, dim, decay=ema_decay, epsilon=ema_epsilon, rule=rule, seed=stage)
            for stage in range(num_codebooks)
        )

    @property
    def initialized(self) -> bool:
        """Whether all codebooks were set from data."""
        return all(bool(book.initialized) for book in self.codebooks)

    def search_key(self, residual):
        """The vectors that a stage searches for and averages: (n, d)."""
        return F.normalize(residual, dim=-1) if self.normalize == "per_stage" else residual

    def search(self, book, key):
        """Codes of each key (n, d): index (n, k), nearest first, and weights (n, k); k = 1 and None for hard codes."""
        if self.soft_codes == 0:
            return book.nearest(key)[:, None], None
        return book.soft_nearest(key, self.soft_codes)

    def mix(self, embed, near, weights):
        """The vectors found by `search` in codes `embed` (K, d): (n, d)."""
        if weights is None:
            return F.embedding(near[:, 0], embed)
        return (weights[:, :, None] * F.embedding(near, embed)).sum(1)

    def subtract(self, residual, book):
        near, weights = self.search(book, self.search_key(residual))
        return residual - self.mix(book.embed, near, weights), near[:, 0]

    def forward(self, z, mask=None):
        with float32_island(z):
            rows, valid = flatten_rows(z, self.dim, mask)
            out = self.quantize(self.scale(rows), valid, z.shape[:-1])
        out.quantized = out.quantized.to(result_dtype(z))
        return out

    def quantize(self, rows, valid, shape):
        """The output for rows (n, d) of weight `valid` (n,), in the shape (..., d) that z had."""
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
        quantized = straight_through(rows, total) if rows.requires_grad else total
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
        # computed once, in process 0, on the vectors of all processes
        with float32_island(z):
            residual = gather_rows(self.flatten(z))
            check_finite("z", residual)
            if len(residual) < self.codebook_size:
                raise ValueError(
                    f"`z` holds {len(residual)} vectors over all processes; `initialize_` takes at least one per code, "
                    f"{self.codebook_size}, better {self.init_sample_size}."
                )
            for book in self.codebooks:
                key = self.search_key(residual)
                if is_first_process():
                    book.initialize_(key, self.codebook_init, iterations=self.kmeans_iterations, generator=generator)
                book.broadcast_()
                residual, _ = self.subtract(residual, book)

    @torch.no_grad()
    def update_(self, stats):
        if stats is None:
            raise ValueError("`stats` is None; it takes the statistics of a forward in training mode.")
        counts, sums = all_reduce_sum_(stats["counts"].clone()), all_reduce_sum_(stats["sums"].clone())
        check_finite("stats", sums)
        for stage, book in enumerate(self.codebooks):
            book.update_(counts[stage], sums[stage])

    @torch.no_grad()
    def reset_dead_codes_(self, z, generator=None) -> int:
        with float32_island(z):
            residual = gather_rows(self.flatten(z))
            check_finite("z", residual)
            moved = torch.zeros((), dtype=torch.int64, device=residual.device)
            for book in self.codebooks:
                key = self.search_key(residual)
                if is_first_process():
                    moved += book.reset_dead_(key, self.reset_threshold, generator, self.reset_min_count)
                book.broadcast_()
                residual, _ = self.subtract(residual, book)
            return int(broadcast_(moved))


@register("vector", inner_class=ResidualQuantizer)
class VectorQuantizer(ResidualQuantizer):
    """One EMA codebook: `ResidualQuantizer` with M = 1 (paper section 3, the BEATs-style baseline).

    With one stage, normalize="per_stage" is "once". ema_mode="official" scales the codes to length 1 after each step,
    and q is the code before that step, as in the reference code.
    """

    official_rule = "blend_unit"

    def __init__(self, dim, codebook_size=1024, *, normalize="once", **options):
        super().__init__(dim, 1, codebook_size, normalize="once" if normalize == "per_stage" else normalize, **options)


# --- Product and random projection ------------------------------------------------------------------------------------
@register("product", num_codebooks=2, codebook_size=320)
class ProductQuantizer(Quantizer):
    """Quantizers side by side, each on its own slice of z (wav2vec 2.0: 2 x 320 codes).

    Args:
        groups: quantizers of one codebook size; group g takes the next `groups[g].dim` numbers of z.

    `loss` is the mean over the groups, `losses` are numbered in their order, and `stats` has the keys "0.counts", ...
    """

    def __init__(self, groups):
        groups = nn.ModuleList(groups)
        sizes = {group.codebook_size for group in groups}
        if len(sizes) != 1:
            raise ValueError(f"`groups` have codebook sizes {sorted(sizes)}; they take one size in common.")
        widths, books = [group.dim for group in groups], [group.num_codebooks for group in groups]
        super().__init__(sum(widths), sum(books), sizes.pop())
        self.groups, self.widths, self.books = groups, widths, books
        self.init_sample_size = max(group.init_sample_size for group in groups)

    @property
    def initialized(self) -> bool:
        """Whether all groups are."""
        return all(group.initialized for group in self.groups)

    def slices(self, z):
        """Pairs of a group and its slice (..., d_g) of z (..., d)."""
        check_vectors(z, self.dim)
        return zip(self.groups, z.split(self.widths, dim=-1), strict=True)

    def assign(self, z):
        return torch.cat([group.assign(part) for group, part in self.slices(z)], dim=-1)

    def decode(self, codes):
        check_codes(codes, self.num_codebooks, self.codebook_size)
        parts = codes.split(self.books, dim=-1)
        return torch.cat([group.decode(part) for group, part in zip(self.groups, parts, strict=True)], dim=-1)

    def forward(self, z, mask=None):
        outputs = [group(part, mask) for group, part in self.slices(z)]
        loss = torch.stack([output.loss for output in outputs]).mean()
        stages = [value for output in outputs for name, value in output.losses.items() if name != "codebook"]
        named = {f"codebook_{number}": value for number, value in enumerate(stages, start=1)}
        stats = {
            f"{g}.{name}": value for g, output in enumerate(outputs) for name, value in (output.stats or {}).items()
        }
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1),
            codes=torch.cat([output.codes for output in outputs], dim=-1),
            loss=loss,
            losses={"codebook": loss, **named},
            stats=None if all(output.stats is None for output in outputs) else stats,
        )

    def initialize_(self, z, generator=None):
        for group, part in self.slices(z):
            group.initialize_(part, generator=generator)

    def update_(self, stats):
        for g, group in enumerate(self.groups):
            prefix, given = f"{g}.", None
            if stats is not None:
                given = {name.removeprefix(prefix): v for name, v in stats.items() if name.startswith(prefix)}
            group.update_(given)

    def reset_dead_codes_(self, z, generator=None) -> int:
        return sum(group.reset_dead_codes_(part, generator=generator) for group, part in self.slices(z))


@register("random_projection", num_codebooks=4, codebook_size=256)
class RandomProjectionQuantizer(Quantizer):
    """M frozen random projections, each with a frozen random codebook of unit length (BEST-RQ, arXiv 2202.01855).

    Each z is brought to mean 0 and variance 1 (otherwise few codes are used) and projected; its code is the one with
    the nearest direction. The loss is 0.

    Args:
        dim: d.
        num_codebooks: M.
        codebook_size: K.
        projection_dim: dimension of the codes.
    """

    def __init__(self, dim, num_codebooks=1, codebook_size=1024, *, projection_dim=16):
        super().__init__(dim, num_codebooks, codebook_size)
        self.projection_dim = projection_dim
        shapes = {
            "projection": (num_codebooks, dim, projection_dim),
            "embed": (num_codebooks, codebook_size, projection_dim),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape, dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the frozen state, on the CPU. Deterministic."""
        generator = torch.Generator("cpu").manual_seed(0)
        options = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        bound = (6 / (self.dim + self.projection_dim)) ** 0.5
        projection = (torch.rand(self.num_codebooks, self.dim, self.projection_dim, **options) * 2 - 1) * bound
        embed = torch.randn(self.num_codebooks, self.codebook_size, self.projection_dim, **options)
        return {"projection": projection, "embed": F.normalize(embed, dim=-1)}

    @torch.no_grad()
    def assign(self, z):
        with float32_island(z):
            rows = F.layer_norm(z.reshape(-1, self.dim).float(), (self.dim,))
            # Keys are not normalised: codes have length 1, so |key| does not change their order.
            codes = [nearest_codes(rows @ self.projection[m], self.embed[m]) for m in range(self.num_codebooks)]
            return torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks)

    def decode(self, codes):
        check_codes(codes, self.num_codebooks, self.codebook_size)
        with float32_island(codes):
            return self.vectors_of(codes)

    def vectors_of(self, codes):
        """Mean over the M codes of their vectors, led back by the transposed projections: (..., d) float32."""
        vectors = [
            F.embedding(codes[..., m], self.embed[m]) @ self.projection[m].t() for m in range(self.num_codebooks)
        ]
        return torch.stack(vectors).mean(0)

    def forward(self, z, mask=None):
        if mask is not None:
            z = torch.where(mask[..., None] > 0, z, 0.0)
        codes = self.assign(z.masked_fill(~torch.isfinite(z.float().sum()), 0.0))
        with float32_island(z):
            rows = z.float()
            zero = rows.new_zeros(())
            quantized = straight_through(rows, self.vectors_of(codes))
        quantized = quantized.to(result_dtype(z))
        return QuantizerOutput(quantized=quantized, codes=codes, loss=zero, losses={"codebook": zero})
