"""What the tokenizer and the pretraining model return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class BridleTokenizerOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape (1,)): the codebook loss (eq. 5).
        features (`torch.FloatTensor` of shape (B, N, D)): the estimator's guess of the encoder's features.
        codes (`torch.LongTensor` of shape (B, N, M)).
        quantizer_stats (`dict`): what `BridleTokenizer.update_` takes; `None` in evaluation.
        projected (`torch.FloatTensor` of shape (B, N, d)): what the quantizer received, without gradient.
    """

    loss: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    losses: dict | None = None
    quantizer_stats: dict | None = None
    projected: torch.FloatTensor | None = None


@dataclass
class BridleForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape (1,)): what the phase minimises.
        losses (`dict[str, torch.FloatTensor]`): its parts by name.
        logits (`torch.FloatTensor` of shape (B, S, M, K)): predictions for the S masked patches of each row, ascending;
            K is that of the largest codebook, and -inf stands for codes that another one does not have.
        labels (`torch.LongTensor` of shape (B, S, M)): the codes they should be, -100 in empty slots.
        codes (`torch.LongTensor` of shape (B, N, M)): the tokenizer's codes of all patches.
        mask (`torch.LongTensor` of shape (B, N)): 1 where a patch was to be predicted.
        quantizer_stats (`dict`): for `BridleTokenizer.update_`, where the tokenizer is training.
    """

    loss: torch.FloatTensor | None = None
    losses: dict | None = None
    logits: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    codes: torch.LongTensor | None = None
    mask: torch.LongTensor | None = None
    quantizer_stats: dict | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class BridleFeaturesOutput(ModelOutput):
    """
    Args:
        features (`torch.FloatTensor` of shape (B, d), or (B, T, d) of frames): with several layers (B, L, ...).
        times (`torch.FloatTensor` of shape (T,)): of the frames of sounds, the seconds at which each begins.
        frame_mask (`torch.LongTensor` of shape (B, T)): of frames, 0 for padding.
    """

    features: torch.FloatTensor | None = None
    times: torch.FloatTensor | None = None
    frame_mask: torch.LongTensor | None = None
