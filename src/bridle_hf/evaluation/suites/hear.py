"""HEAR 2021: the module that its validator and its runner load.

    hear-validator bridle_hf.evaluation.suites.hear -m runs/mine/final -d cpu

The interface: https://hearbenchmark.com/hear-api.html.
"""

import torch

from .pretrained import PretrainedSounds


def load_model(model_file_path: str = "", **options) -> PretrainedSounds:
    """The frozen encoder with HEAR's attributes `sample_rate`, `scene_embedding_size` and `timestamp_embedding_size`.

    Args:
        model_file_path: folder or Hub id; by default what BRIDLE_MODEL names.
        options: `pooling`, `layer`, see `Pretrained`.
    """
    model = PretrainedSounds(model_file_path, **options)
    model.sample_rate = model.sampling_rate
    model.scene_embedding_size, model.timestamp_embedding_size = model.clip_size, model.frame_size
    return model


@torch.no_grad()
def get_scene_embeddings(audio: torch.Tensor, model: PretrainedSounds) -> torch.Tensor:
    """One vector per clip: (n, samples) in [-1, 1] -> float32 (n, scene_embedding_size)."""
    return model.clips(audio)


@torch.no_grad()
def get_timestamp_embeddings(audio: torch.Tensor, model: PretrainedSounds) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of frames and the milliseconds of their middles, evenly spaced and none beyond the clip.

    Args:
        audio: (n, samples) in [-1, 1].

    Returns:
        float32 (n, t, timestamp_embedding_size) and float32 (n, t). A clip shorter than half a frame has one, whose
        time is the clip's end.
    """
    frames = model.frames(audio).features  # (n, T, d)
    end = audio.shape[-1] / model.sampling_rate
    middles = torch.arange(frames.shape[1], dtype=torch.float64, device=frames.device) * model.frame_seconds
    middles += model.half_frame_seconds
    count = max(1, int((middles <= end).sum()))  # the last patch may be padding for the most part
    times = (1000 * middles[:count].clamp(max=end)).float()
    return frames[:, :count], times.expand(len(frames), -1)
