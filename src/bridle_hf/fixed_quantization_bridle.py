"""Quantizers whose set of codes is fixed: random projections (BEST-RQ) and finite scalar quantization (FSQ).

There is no codebook that moves. `RandomProjectionQuantizer` is frozen as a whole (arXiv 2202.01855); of `FSQQuantizer`
an optimizer trains the linear maps to and from a grid of whole numbers (arXiv 2309.15505).
"""

from math import prod
from numbers import Integral

import torch
from torch import nn
from torch.nn import functional as F

from .codebook_bridle import (
    check_codes,
    check_vectors,
    flatten_rows,
    float32_island,
    nearest_codes,
    result_dtype,
    straight_through,
    to_default_,
)
from .quantization_bridle import Quantizer, QuantizerOutput, register


# --- Random projection ------------------------------------------------------------------------------------------------
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
        check_vectors(z, self.dim)
        with float32_island(z):
            rows = F.layer_norm(z.reshape(-1, self.dim).float(), (self.dim,))
            # Keys are not normalised: codes have length 1, so |key| does not change their order.
            codes = [nearest_codes(rows @ self.projection[m], self.embed[m]) for m in range(self.num_codebooks)]
            return torch.stack(codes, dim=-1).reshape(*z.shape[:-1], self.num_codebooks)

    def decode(self, codes):
        codes = check_codes(codes, self.codebook_sizes)
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


# --- Finite scalar quantization ---------------------------------------------------------------------------------------
def check_levels(levels):
    """Raise a `ValueError` for levels that `FSQQuantizer` does not take."""
    whole = isinstance(levels, list | tuple) and all(isinstance(level, Integral) for level in levels)
    if not whole or not levels or min(levels) < 3 or max(levels) > 1000:
        got = tuple(levels) if isinstance(levels, list) else levels
        raise ValueError(f"`levels` is {got!r}; it takes whole numbers from 3 to 1000, one per dimension.")


@register("fsq")
class FSQQuantizer(Quantizer):
    """Finite scalar quantization (FSQ, arXiv 2309.15505): rounds a few bounded numbers; there is no codebook to search.

    A learned linear map takes z to one number x_i per level L_i. tanh bounds x_i to L_i whole numbers, from
    -floor(L_i / 2) on (if L_i is even, half a step lower than symmetric), and rounding passes the gradient straight
    through. A second linear map takes the whole numbers, divided by floor(L_i / 2), to q (..., d). The code writes them
    in mixed radix, the first level counting fastest: M = 1, K = prod(levels). The loss is 0; the gradient of the task
    through q trains both maps.

    Args:
        dim: d.
        levels: L_1, L_2, ..., each from 3 to 1000. The paper takes (8, 6, 5) for K near 2^8, (8, 5, 5, 5) for 2^10,
            (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14 and (8, 8, 8, 5, 5, 5) for 2^16.
    """

    learned = True
    # tanh reaches its ends at infinity only: its range is a little wider than the levels, by less than half a step.
    margin = 1e-3

    def __init__(self, dim, levels=(8, 5, 5, 5)):
        check_levels(levels)
        super().__init__(dim, 1, prod(levels))
        self.start_levels = tuple(levels)
        # explicit dtypes, which survive loading in bfloat16
        self.register_buffer("levels", torch.empty(len(levels), dtype=torch.float32))
        self.project_in = nn.Linear(dim, len(levels), dtype=torch.float32)
        self.project_out = nn.Linear(len(levels), dim, dtype=torch.float32)
        to_default_(self)

    def default_state(self):
        """Name -> tensor of what is not trained, on the CPU. Deterministic."""
        return {"levels": torch.tensor(self.start_levels, dtype=torch.float32, device="cpu")}

    def extra_repr(self):
        return f"levels={self.start_levels}"

    def bound(self, rows):
        """Rows (n, d) as numbers (n, len(levels)) that round to -floor(L / 2), ..., ceil(L / 2) - 1."""
        numbers = self.project_in(rows)
        numbers = numbers.masked_fill(~numbers.isfinite(), torch.nan)  # tanh would hide an inf
        half = (self.levels - 1) * (1 + self.margin) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (numbers + (offset / half).atanh()).tanh() * half - offset

    def place_values(self):
        """What one step of each level adds to the code: (len(levels),) int64."""
        levels = self.levels.long()
        return levels.cumprod(0) // levels

    def codes_of(self, whole):
        """Codes (n,) int64 of whole numbers (n, len(levels)); NaN counts as 0."""
        digits = (whole.nan_to_num() + self.levels // 2).long()
        return (digits * self.place_values()).sum(-1)

    def vectors_of(self, whole):
        """Vectors (n, d) of whole numbers (n, len(levels))."""
        return self.project_out(whole / (self.levels // 2))

    @torch.no_grad()
    def assign(self, z):
        with float32_island(z):
            rows, _ = flatten_rows(z, self.dim)
            return self.codes_of(self.bound(rows).round()).reshape(*z.shape[:-1], 1)

    def decode(self, codes):
        codes = check_codes(codes, self.codebook_sizes)
        with float32_island(codes):
            digits = codes.reshape(-1, 1) // self.place_values() % self.levels.long()
            return self.vectors_of(digits - self.levels // 2).reshape(*codes.shape[:-1], self.dim)

    def forward(self, z, mask=None):
        with float32_island(z):
            rows, _ = flatten_rows(z, self.dim, mask)
            bounded = self.bound(rows)
            whole = straight_through(bounded, bounded.round())
            zero = rows.new_zeros(())
            quantized = self.vectors_of(whole).reshape(*z.shape[:-1], self.dim)
            codes = self.codes_of(whole.detach()).reshape(*z.shape[:-1], 1)
        quantized = quantized.to(result_dtype(z))
        return QuantizerOutput(quantized=quantized, codes=codes, loss=zero, losses={"codebook": zero})
