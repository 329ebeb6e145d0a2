"""The smallest model that has every part, and inputs for it."""

import torch

from bridle_hf import BridleConfig

PARTS = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "estimator_num_hidden_layers": 1,
    "quantizer_config": {"num_codebooks": 2, "codebook_size": 8, "codebook_dim": 8},
}


def tiny_config(modality="audio", **options):
    return BridleConfig(modality=modality, **(PARTS | options))


def values_for(config, batch_size=2, size=None):
    """Random inputs (B, [frames,] [channels,] height, width) of a model."""
    size = list(size or config.input_size)
    if config.modality != "audio":
        size.insert(len(size) - 2, config.num_channels)
    return torch.randn(batch_size, *size)


def padded_pair(frames, padded, mel=8):
    """A clip alone, a batch of it beside a longer one with rubbish in its padding, and the batch's attention mask."""
    clip = torch.randn(1, frames, mel)
    batch = torch.randn(2, padded, mel)
    batch[0, :frames] = clip[0]
    batch[0, frames:] = float("nan")
    attention_mask = torch.arange(padded) < torch.tensor([[frames], [padded]])
    return clip, batch, attention_mask.long()


def fill_codebooks_(model):
    """Codebooks that were set, so that codes differ."""
    for name, buffer in model.named_buffers():
        if name.endswith("embed"):
            buffer.normal_()
