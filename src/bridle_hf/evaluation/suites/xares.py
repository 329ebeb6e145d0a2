"""X-ARES: an encoder of frames, made without arguments.

    BRIDLE_MODEL=runs/mine/final python -m xares.run bridle_hf.evaluation.suites.xares src/tasks/esc50_task.py

X-ARES takes the one name of the module that ends in `Encoder`.
"""

import torch

from .pretrained import PretrainedSounds


class BridleEncoder(PretrainedSounds):
    """The encoder that BRIDLE_MODEL names, or the attribute `source` of a subclass; see `Pretrained` for the rest.

    Attributes:
        source: folder or Hub id, for subclasses.
        sampling_rate, output_dim, hop_size_in_ms: what X-ARES asks for.
    """

    source: str | None = None

    def __init__(self):
        super().__init__(self.source)
        self.output_dim = self.frame_size
        self.hop_size_in_ms = 1000 * self.frame_seconds

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Clips (B, samples), or one (samples,), of any length -> float32 (B, frames, output_dim)."""
        return self.frames(audio).features
