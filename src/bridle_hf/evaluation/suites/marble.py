"""MARBLE v2: an encoder for its configuration files. Its base class where MARBLE can be imported.

encoder:
  class_path: bridle_hf.evaluation.suites.marble.Bridle_Encoder
  init_args: {pre_trained_folder: runs/mine/final, train_mode: freeze}
"""

import torch
from torch import nn

from .pretrained import PretrainedSounds

try:
    from marble.core.base_encoder import BaseEncoder
except ImportError:
    BaseEncoder = nn.Module

TRAIN_MODES = ("freeze", "full", "lora")


class Bridle_Encoder(BaseEncoder):
    """All layers of an encoder, frozen, trained, or with LoRA matrices by peft.

    Args:
        pre_trained_folder: folder or Hub id; by default what BRIDLE_MODEL names.
        train_mode: "freeze" (always in evaluation mode, no gradients), "full" or "lora".
        pooling: by bands, such as "bands", the frequency patches of a frame stay side by side; see `Pretrained`.
        lora_r, lora_alpha, lora_dropout: of peft's `LoraConfig`, over all linear layers.

    Attributes:
        SAMPLING_RATE, sample_rate: in Hz.
        TOKEN_RATE: frames a second.
        NUM_FEATURES, num_features: numbers in the vector of a frame.
        N_TRANSFORMER_LAYERS, n_transformer_layers: depth; `forward` gives one tensor more.

    Raises:
        ValueError: another `train_mode`.
    """

    NAME = "BRIDLE"

    def __init__(
        self,
        pre_trained_folder: str | None = None,
        train_mode: str = "freeze",
        pooling: str | None = None,
        lora_r: int = 8,
        lora_alpha: int = 16,
        lora_dropout: float = 0.1,
    ):
        super().__init__()
        if train_mode not in TRAIN_MODES:
            raise ValueError(f"train_mode is {train_mode!r}; it takes one of {', '.join(TRAIN_MODES)}.")
        self.train_mode = train_mode
        self.sounds = PretrainedSounds(pre_trained_folder, pooling)
        self.SAMPLING_RATE = self.sample_rate = self.sounds.sampling_rate
        self.TOKEN_RATE = 1 / self.sounds.frame_seconds
        self.NUM_FEATURES = self.num_features = self.sounds.frame_size
        self.N_TRANSFORMER_LAYERS = self.n_transformer_layers = self.sounds.model.config.num_hidden_layers
        if train_mode == "lora":
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=lora_r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules="all-linear")
            self.sounds.model = get_peft_model(self.sounds.model, config)
        else:
            self.requires_grad_(train_mode == "full")
        self.train()

    def train(self, mode: bool = True):
        """As of any module, but a frozen encoder stays in evaluation mode."""
        return super().train(mode and self.train_mode != "freeze")

    def forward(self, x: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, ...]:
        """Waveforms (B, samples) or (B, 1, samples) -> (B, frames, num_features) for each layer, embeddings first."""
        return self.sounds.layer_frames(x)
