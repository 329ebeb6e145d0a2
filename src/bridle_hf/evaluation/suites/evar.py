"""EVAR (nttcslab/eval-audio-repr): its class of audio representations. Its base class where EVAR can be imported.

In a checkout of EVAR, `evar/ar_bridle.py` is the line

    from bridle_hf.evaluation.suites.evar import AR_Bridle

and `lineareval.py` gets the line `import evar.ar_bridle`.
"""

import torch
from torch import nn

from .pretrained import PretrainedSounds

try:
    from evar.ar_base import BaseAudioRepr
except ImportError:

    class BaseAudioRepr(nn.Module):
        """Stands in for EVAR's base class of the same name."""

        def __init__(self, cfg):
            super().__init__()
            self.cfg = cfg


class AR_Bridle(BaseAudioRepr):
    """An encoder with the keys of its configuration file.

    Args:
        cfg: mapping with `weight_file`, a folder or Hub id; `sample_rate`, that of the model; `feature_d`, the numbers
            in a vector; and `pooling` and `layer` as of `Pretrained`.

    Raises:
        ValueError: `sample_rate` or `feature_d` is not the model's.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self.sounds = PretrainedSounds(cfg["weight_file"], cfg.get("pooling"), cfg.get("layer"))
        for key, value in (("sample_rate", self.sounds.sampling_rate), ("feature_d", self.sounds.clip_size)):
            if cfg.get(key, value) != value:
                raise ValueError(f"{key} is {cfg[key]}; this model, pooled by {self.sounds.pooling!r}, takes {value}.")

    def precompute(self, device, data_loader):
        """Nothing: mean and deviation are those of the pretraining."""

    def encode_frames(self, batch_audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) -> vectors of frames (B, D, T)."""
        return self.sounds.frames(batch_audio).features.transpose(1, 2)

    def forward(self, batch_audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) -> vectors of clips (B, feature_d)."""
        return self.sounds.clips(batch_audio)
