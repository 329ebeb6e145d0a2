"""Quantizers: the contract as a base class, the registry, and residual, vector and product quantization.

They take plain keyword arguments and stand alone; `build_quantizer` makes any of them from a `BridleQuantizerConfig`.
`learned_quantization_bridle.py` and `fixed_quantization_bridle.py`, which the config imports, add the others.
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
    check_size,
    check_vectors,
    code_statistics,
    flatten_rows,
    float32_island,
    gather_rows,
    is_first_process,
    mean_square,
    result_dtype,
    sizes_of,
    straight_through,
    sum_of_codes,
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
            take no statistics. EMA codebooks: "counts" (M, K) and "sums" (M, K, d) of this process, K that of the
            largest codebook.
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
        codebook_size: K, that of the largest codebook.
        codebook_sizes: K_m of each of the M codebooks.
        codebooks: M modules with codes `embed` (K_m, d), subtracted from z one after another; () for other structures.
        initialized: False while codebooks wait for `initialize_`. It waits for the device.
        was_set: the same, as Python noted it: no wait.
        init_sample_size: vectors to give to `initialize_`, over all processes; 0 if it needs none.
        learned: whether an optimizer trains it, so that codes mean nothing before training.
        normalizations: values of the option `normalize`.
    """

    initialized = was_set = True
    learned = False
    normalizations = NORMALIZATIONS

    def __init__(self, dim, num_codebooks, codebook_size):
        super().__init__()
        self.codebook_sizes = sizes_of(codebook_size, num_codebooks)
        check_size("dim", dim)
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, max(self.codebook_sizes)
        self.codebooks, self.init_sample_size = (), 0  # of the instance: of the class they would hide a ModuleList

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

    def soft_assign(self, z, k):
        """The k nearest codes of each codebook and their shares, for targets of several codes per codebook.

        Args:
            z: (..., d), finite.
            k: number of codes, 1 to that of the smallest codebook; a ValueError else.

        Returns:
            codes (..., M, k) int64, nearest first, and shares (..., M, k) float32, which sum to 1.
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
        one = {"dim": config.codebook_dim // config.num_codebooks, "num_codebooks": 1}
        sizes = sizes_of(config.codebook_size, config.num_codebooks)
        return ProductQuantizer([from_config(entry.inner_class, config, **one, codebook_size=size) for size in sizes])
    return from_config(entry.inner_class if config.type == "residual" else entry.cls, config)


def from_config(cls, config, **sizes):
    """A quantizer whose arguments are the fields of the config of the same name, `dim` being `codebook_dim`."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values = values | {"dim": config.codebook_dim} | sizes
    return cls(**{name: values[name] for name in arguments(cls) if name in values})


# --- EMA codebooks ----------------------------------------------------------------------------------------------------
class StagedQuantizer(Quantizer):
    """Base class of residual quantizers: each codebook quantizes what the codebooks before it left over.

    A subclass sets `codebooks`, `normalize` and `quantizer_dropout`, and defines one stage in `subtract`.
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

    def stage_weights(self, z, valid):
        """Weights of the rows in each stage, M of (n,): `valid` itself, but for the stages that dropout takes away.

        Quantizer dropout (SoundStream, arXiv 2107.03312): in training a sample is quantized by its first m codebooks
        alone, m drawn evenly from 1 to M. It befalls a sample with probability `quantizer_dropout` (1 in SoundStream;
        less in the improved RVQGAN, arXiv 2306.06546). Codes and residuals are those of all stages all the same.

        Args:
            z: (..., d) of which the first axis is that of the samples.
            valid: (n,) or None.
        """
        if not self.training or self.quantizer_dropout == 0:
            return [valid] * self.num_codebooks
        samples, rows = (1 if z.ndim == 1 else len(z)), z[..., 0].numel()
        kept = torch.randint(1, self.num_codebooks + 1, (samples,), device=z.device)
        whole = torch.rand(samples, device=z.device) >= self.quantizer_dropout
        kept = kept.masked_fill(whole, self.num_codebooks).repeat_interleave(rows // max(samples, 1))  # (n,)
        every = torch.ones(rows, device=z.device) if valid is None else valid
        return [every * (kept > stage) for stage in range(self.num_codebooks)]

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
        codes = check_codes(codes, self.codebook_sizes, fewer=True)
        index = codes.reshape(-1, codes.shape[-1]).split(1, dim=1)  # m of (n, 1)
        with float32_island(codes):
            books = [book.embed for book in self.codebooks[: len(index)]]
            return sum_of_codes(index, books).view(*codes.shape[:-1], self.dim)


@register("residual", num_codebooks=4, codebook_size=256)
class ResidualQuantizer(StagedQuantizer):
    """Residual quantization with EMA codebooks (paper eq. 1-3 and 9-13, and eq. 5 stage by stage).

    e_1 = z; i_m = argmin_i |e_m - c_i|^2; e_{m+1} = e_m - sg[c_{i_m}]; q = sum_m c_{i_m}. Codes are constants for the
    gradient, so the commitment loss of every stage reaches z and no other codebook.
    `loss`: mean over stages of mse(sg[e_m], c) + commitment_weight * mse(e_m, sg[c]); 0 without valid vectors.

    Args:
        dim: d, last dimension of z and of the codes.
        num_codebooks: M.
        codebook_size: K, or a list of one number per codebook.
        ema_decay, ema_epsilon: g and eps of eq. 10-13.
        ema_mode: "counts" is eq. 9-13. "official" is the reference code: the direction of the batch mean is blended
            into the code, and in training a stage subtracts the code as this batch moves it (by the statistics of its
            own process; the stored codes move by those of all processes).
        commitment_weight: beta of eq. 5, for which the paper has no number; 0.25 is the reference code's.
        normalize: "once" scales z to length 1, then applies eq. 1-3; the loss and q are in that space. "per_stage"
            (reference code): each stage searches with its residual scaled to length 1, but subtracts from the unscaled
            one. "none": eq. 1-3.
        codebook_init: "kmeans", "uniform" or "sample", for `initialize_`.
        kmeans_iterations, kmeans_samples_per_code: number of k-means steps, and vectors per code in its sample.
        reset_threshold, reset_min_count: `reset_dead_codes_` moves codes whose count N is below this share of the mean;
            with a `reset_min_count` above 0 those that fewer of its vectors choose (the paper's T_u is 1).
        soft_codes: 0, or the number of nearest codes that `forward` and `encode` mix by inverse squared distance when
            they subtract and sum. `codes` are still the nearest, and `decode(codes)` is their hard sum.
        quantizer_dropout: share of the samples that only the first of the codebooks quantize in training; see
            `stage_weights`. Dropped stages have no part in q, the loss and the statistics.
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
        quantizer_dropout=0.0,
    ):
        super().__init__(dim, num_codebooks, codebook_size)
        check_choice("ema_mode", ema_mode, EMA_MODES)
        check_choice("normalize", normalize, self.normalizations)
        check_choice("codebook_init", codebook_init, CODEBOOK_INITS)
        check_range("ema_decay", ema_decay, 0, 1)
        check_range("soft_codes", soft_codes, 0, min(self.codebook_sizes), "`codebook_size`")
        check_range("quantizer_dropout", quantizer_dropout, 0, 1)
        self.commitment_weight, self.normalize = commitment_weight, normalize
        self.codebook_init, self.kmeans_iterations = codebook_init, kmeans_iterations
        self.reset_threshold, self.reset_min_count = reset_threshold, reset_min_count
        self.soft_codes, self.quantizer_dropout = soft_codes, quantizer_dropout
        self.init_sample_size = self.codebook_size * kmeans_samples_per_code
        rule = "counts" if ema_mode == "counts" else self.official_rule
        self.codebooks = nn.ModuleList(
            Codebook(size, dim, decay=ema_decay, epsilon=ema_epsilon, rule=rule, seed=stage)
            for stage, size in enumerate(self.codebook_sizes)
        )

    @property
    def initialized(self) -> bool:
        """Whether all codebooks were set from data."""
        return all(bool(book.initialized) for book in self.codebooks)

    @property
    def was_set(self) -> bool:
        """As `initialized`, without a wait for the device."""
        return all(book.was_set for book in self.codebooks)

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

    @torch.no_grad()
    def soft_assign(self, z, k):
        check_range("k", k, 1, min(self.codebook_sizes), "the size of the smallest codebook")
        with float32_island(z):
            residual, found = self.flatten(z), []
            for book in self.codebooks:
                found.append(book.soft_nearest(self.search_key(residual), k))
                residual, _ = self.subtract(residual, book)
            near, shares = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))  # (n, M, k)
            shape = *z.shape[:-1], self.num_codebooks, k
            return near.reshape(shape), shares.reshape(shape)

    def forward(self, z, mask=None):
        with float32_island(z):
            rows, valid = flatten_rows(z, self.dim, mask)
            out = self.quantize(self.scale(rows), self.stage_weights(z, valid), z.shape[:-1])
        out.quantized = out.quantized.to(result_dtype(z))
        return out

    def quantize(self, rows, stage_weights, shape):
        """The output for rows (n, d) of M weights (n,) or None, in the shape (..., d) that z had."""
        residual, searches, losses, counts, sums = rows, [], [], [], []
        dropping = self.training and self.quantizer_dropout > 0
        for book, valid in zip(self.codebooks, stage_weights, strict=True):
            key, embed = self.search_key(residual.detach()), book.embed
            near, weights = self.search(book, key)
            if self.training:
                count, key_sum = code_statistics(key, near[:, 0], self.codebook_size, valid)
                counts.append(count)
                sums.append(key_sum)
                if book.rule == "blend":
                    embed = book.averaged(count[: book.num_codes], key_sum[: book.num_codes])[0]
            residual = residual - self.mix(embed, near, weights)  # (n, d)
            if dropping:
                weights = valid[:, None] * (1 if weights is None else weights)  # of the sum q
            searches.append((near, weights, embed))
            losses.append(self.stage_loss(residual, valid))
        named = {f"codebook_{stage + 1}": loss for stage, loss in enumerate(losses)}
        loss = torch.stack(losses).mean()
        found, shares, embeds = zip(*searches, strict=True)
        total = sum_of_codes(found, embeds, shares if self.soft_codes or dropping else None)
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
                book.note_state_()
                residual, _ = self.subtract(residual, book)

    @torch.no_grad()
    def update_(self, stats):
        if stats is None:
            raise ValueError("`stats` is None; it takes the statistics of a forward in training mode.")
        counts, sums = all_reduce_sum_(stats["counts"].clone()), all_reduce_sum_(stats["sums"].clone())
        check_finite("stats", sums)
        for stage, book in enumerate(self.codebooks):
            book.update_(counts[stage, : book.num_codes], sums[stage, : book.num_codes])

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
    """One EMA codebook: `ResidualQuantizer` with M = 1 (paper section 4.2 and appendix C, the baseline).

    With one stage, normalize="per_stage" is "once". ema_mode="official" scales the codes to length 1 after each step,
    and q is the code before that step, as in the reference code.
    """

    official_rule = "blend_unit"

    def __init__(self, dim, codebook_size=1024, *, normalize="once", **options):
        super().__init__(dim, 1, codebook_size, normalize="once" if normalize == "per_stage" else normalize, **options)


# --- Product ----------------------------------------------------------------------------------------------------------
@register("product", num_codebooks=2, codebook_size=320)
class ProductQuantizer(Quantizer):
    """Quantizers side by side, each on its own slice of z (wav2vec 2.0: 2 x 320 codes).

    Args:
        groups: quantizers; group g takes the next `groups[g].dim` numbers of z.

    `loss` is the mean over the groups, `losses` are numbered in their order, and `stats` has the keys "0.counts", ...
    """

    def __init__(self, groups):
        groups = nn.ModuleList(groups)
        sizes = [size for group in groups for size in group.codebook_sizes]
        widths, books = [group.dim for group in groups], [group.num_codebooks for group in groups]
        super().__init__(sum(widths), sum(books), sizes)
        self.groups, self.widths, self.books = groups, widths, books
        self.init_sample_size = max(group.init_sample_size for group in groups)

    @property
    def initialized(self) -> bool:
        """Whether all groups are."""
        return all(group.initialized for group in self.groups)

    @property
    def was_set(self) -> bool:
        """As `initialized`, without a wait for the device."""
        return all(group.was_set for group in self.groups)

    def slices(self, z):
        """Pairs of a group and its slice (..., d_g) of z (..., d)."""
        check_vectors(z, self.dim)
        return zip(self.groups, z.split(self.widths, dim=-1), strict=True)

    def assign(self, z):
        return torch.cat([group.assign(part) for group, part in self.slices(z)], dim=-1)

    def soft_assign(self, z, k):
        found = [group.soft_assign(part, k) for group, part in self.slices(z)]
        return tuple(torch.cat(parts, dim=-2) for parts in zip(*found, strict=True))

    def decode(self, codes):
        codes = check_codes(codes, self.codebook_sizes)
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
