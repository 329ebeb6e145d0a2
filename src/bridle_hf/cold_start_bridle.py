"""The cold start: what stands for a tokenizer before there is an encoder to learn from."""

import torch
from torch import nn
from torch.nn import functional as F

from .codebook_bridle import to_default_
from .layers_bridle import BridlePatchEmbeddings, BridlePositions, in_precision_of


class BridleColdStart(nn.Module):
    """What the tokenizer of iteration 1 feeds to its quantizer: a frozen random projection of the patch embeddings."""

    def __init__(self, config):
        super().__init__()
        width, dim = config.hidden_size, config.quantizer_config.codebook_dim
        self.patch_embeddings = BridlePatchEmbeddings(config)
        self.positions = BridlePositions(config, width) if config.cold_start_positions else None
        # frozen, hence a buffer
        self.register_buffer("projection", torch.empty(dim, width, dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of what is frozen, on the CPU, the same in every process and every run."""
        generator = torch.Generator("cpu").manual_seed(0)
        normal = torch.randn(self.projection.shape, generator=generator, device="cpu", dtype=torch.float32)
        return {"projection": normal * self.projection.shape[1] ** -0.5}

    def forward(self, values):
        """(B, ...), padding zero -> (B, N, d)"""
        with torch.autocast(values.device.type, enabled=False):  # cheap enough to be exact
            patches = self.patch_embeddings(self.patch_embeddings.patchify(values))
            if self.positions is not None:
                patches = patches + self.positions(self.patch_embeddings.grid(values), patches)
            return F.linear(patches, self.projection.to(patches.dtype))

    def features(self, quantized):
        """Quantized vectors (B, N, d) led back to patch embeddings (B, N, D) by the transposed projection."""
        quantized = in_precision_of(self.patch_embeddings.projection, quantized)
        return F.linear(quantized, self.projection.t().to(quantized.dtype))
