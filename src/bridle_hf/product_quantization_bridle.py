"""Product quantization: slices of a vector, each with a quantizer of its own (wav2vec 2.0: 2 x 320 codes)."""

import torch
from torch import nn

from .codebook_bridle import check_codes, check_vectors
from .quantization_bridle import Quantizer, QuantizerOutput


class ProductQuantizer(Quantizer):
    """Quantizers side by side. The vectors are cut into slices, and codes and quantized slices put together again.

    Args:
        groups: quantizers with the same number of codes; group g takes the next `groups[g].dim` numbers of z.

    `loss` is the mean over the groups, "codebook_1" ... are theirs in order, and `stats` holds "0.counts" and so on.
    """

    def __init__(self, groups):
        super().__init__()
        self.groups = nn.ModuleList(groups)
        sizes = {group.codebook_size for group in self.groups}
        if len(sizes) != 1:
            raise ValueError(f"groups have codebook sizes {sorted(sizes)}, must have one in common")
        self.codebook_size = sizes.pop()
        self.widths = [group.dim for group in self.groups]
        self.books = [group.num_codebooks for group in self.groups]
        self.dim, self.num_codebooks = sum(self.widths), sum(self.books)
        self.init_sample_size = max(group.init_sample_size for group in self.groups)

    @property
    def initialized(self) -> bool:
        """Whether no group waits for data."""
        return all(group.initialized for group in self.groups)

    def slices(self, z):
        """Pairs of a group and its slice (..., d_g) of z (..., d)."""
        check_vectors(z, self.dim)
        return zip(self.groups, z.split(self.widths, dim=-1), strict=True)

    def assign(self, z):
        """`encode` for z that is known to be finite."""
        return torch.cat([group.assign(part) for group, part in self.slices(z)], dim=-1)

    def decode(self, codes):
        """codes (..., M) -> their vectors side by side (..., d) float32."""
        check_codes(codes, self.num_codebooks, self.codebook_size)
        parts = codes.split(self.books, dim=-1)
        return torch.cat([group.decode(part) for group, part in zip(self.groups, parts, strict=True)], dim=-1)

    def forward(self, z, mask=None):
        """Quantizes z (..., d); changes no state. `mask` (...,) is True or 1 for valid vectors."""
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
        """Sets the codebooks that start from data by a sample (..., d); every process must call it."""
        for group, part in self.slices(z):
            group.initialize_(part, generator=generator)

    def update_(self, stats):
        """One step of every group; every process must call it, once per optimizer step. ValueError on None."""
        if stats is None:
            raise ValueError("stats is None, must be the statistics of a forward in training mode")
        for g, group in enumerate(self.groups):
            prefix = f"{g}."
            group.update_({name.removeprefix(prefix): v for name, v in stats.items() if name.startswith(prefix)})

    def reset_dead_codes_(self, z, generator=None) -> int:
        """Moves rarely used codes of the groups that do so and returns how many; every process must call it."""
        return sum(group.reset_dead_codes_(part, generator=generator) for group, part in self.slices(z))
