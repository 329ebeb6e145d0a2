"""Residual quantization beside vector-quantize-pytorch and beside the one product no search can do without."""

from collections.abc import Iterator

import torch
from measuring import Row, random
from vector_quantize_pytorch import ResidualVQ

from bridle_hf import ResidualQuantizer


def build(
    vectors: int, dim: int, stages: int, codes: int, device: str = "cpu"
) -> tuple[ResidualQuantizer, torch.Tensor]:
    """A quantizer whose codes come from the vectors (n, d) that it is measured with."""
    z = random(vectors, dim)
    quantizer = ResidualQuantizer(dim, stages, codes, codebook_init="sample")
    quantizer.initialize_(z, generator=torch.Generator().manual_seed(0))
    return quantizer.to(device), z.to(device)


@torch.no_grad()
def quantize(quantizer: torch.nn.Module, z: torch.Tensor, training: bool) -> None:
    """A forward pass; in training with the EMA step that follows it."""
    output = quantizer.train(training)(z)
    if training and isinstance(quantizer, ResidualQuantizer):
        quantizer.update_(output.stats)


def quantizer_rows(
    vectors: int = 8192, dim: int = 256, stages: int = 4, codes: int = 256, device: str = "cpu"
) -> Iterator[Row]:
    """One forward pass in eval mode, and one in training with its EMA step; vector-quantize-pytorch takes its own."""
    quantizer, z = build(vectors, dim, stages, codes, device)
    peer = ResidualVQ(dim=dim, num_quantizers=stages, codebook_size=codes).to(device)
    products = random(dim, stages * codes).to(device)
    for training in (False, True):
        yield Row(
            f"RQ {stages} x {codes}, {vectors} x {dim}, {'training with EMA' if training else 'eval'}",
            lambda training=training: quantize(quantizer, z, training),
            {
                "vector-quantize-pytorch": lambda training=training: quantize(peer, z[None], training),
                "floor: one product": lambda: z @ products,
            },
            vectors,
            "vector",
        )
