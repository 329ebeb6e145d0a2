"""How well the tokenizer's codebooks reproduce what they get: energy left after each codebook."""

import torch
from accelerate import Accelerator

from ..codebook_training_bridle import project, real_patches


@torch.no_grad()
def residual_energy(model: torch.nn.Module, codes: torch.Tensor, batch: dict, accelerator: Accelerator) -> list[float]:
    """Share of the tokens' energy that is left after each codebook; empty for quantizers without residuals."""
    quantizer, valid = model.tokenizer.quantizer, batch.get("valid")
    if not quantizer.codebooks:
        return []
    codes = real_patches(codes, valid)  # (n, M)
    with accelerator.autocast():
        tokens = project(model, batch)
    left = quantizer.flatten(tokens)  # (n, d)
    energy = [left.square().sum()]
    for stage, book in enumerate(quantizer.codebooks):
        left = left - book.embed[codes[:, stage]]
        energy.append(left.square().sum())
    energy = accelerator.reduce(torch.stack(energy), "sum")
    return (energy[1:] / energy[0]).tolist()
