"""SUPERB by s3prl: an upstream.

In a checkout of s3prl, `s3prl/upstream/example/expert.py` becomes the line

    from bridle_hf.evaluation.suites.superb import UpstreamExpert

and `python run_downstream.py -u customized_upstream -k runs/mine/final ...` loads it.
"""

import torch

from .pretrained import PretrainedSounds


class UpstreamExpert(PretrainedSounds):
    """All layers of an encoder, for weighted sums.

    Args:
        ckpt: folder or Hub id; by default what BRIDLE_MODEL names. `pooling` is that of BRIDLE_POOLING.
        model_config: not used; s3prl gives it.
    """

    def __init__(self, ckpt: str | None = None, model_config: str | None = None, **kwargs):
        super().__init__(ckpt)
        self.output_dim = self.frame_size

    def get_downsample_rates(self, key: str) -> int:
        """Samples from a frame to the next."""
        return self.frame_samples

    def forward(self, wavs: list[torch.Tensor]) -> dict:
        """Clips (samples,) of any lengths -> (B, frames, D) for each layer, zero where a clip is padded.

        The first of `hidden_states` are the patch embeddings; `last_hidden_state` is the last of them.
        """
        states = self.layer_frames(wavs)
        return {"hidden_states": list(states), "last_hidden_state": states[-1]}
