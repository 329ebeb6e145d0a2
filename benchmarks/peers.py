"""Training steps of transformers' models beside ours, in bfloat16 on one device."""

from collections.abc import Callable, Iterator
from math import prod

import torch
from measuring import Row, random
from models import Training
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from bridle_hf import BridleConfig, BridleForAudioClassification


def stepping(model: PreTrainedModel, inputs: dict[str, torch.Tensor], device: str) -> Callable[[], None]:
    """An optimizer step of a model of transformers, taken as `Training.step` does."""
    model, inputs = model.to(device).train(), {name: value.to(device) for name, value in inputs.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer_rows(
    batch_size: int, device: str, sizes: dict, decoder: dict, frames: int = 1024, side: int = 224, pictures: int = 16
) -> Iterator[Row]:
    """Classification beside AST, and the encoder phase of images and videos beside the masked autoencoders.

    Args:
        sizes, decoder: of all encoders and of all decoders, as config keys; {} takes those of ViT-B, and each config's.
        frames, side, pictures: of a sound, an image and a video.
    """
    labels = torch.arange(batch_size) % 2
    values = {"input_values": random(batch_size, frames, 128), "labels": labels}
    ours = BridleForAudioClassification(BridleConfig(modality="audio", input_size=(frames, 128), **sizes))
    ast = ASTForAudioClassification(ASTConfig(max_length=frames, **sizes))
    steps = [stepping(model, values, device) for model in (ours, ast)]
    yield Row(f"fine-tuning on 10 s, batch {batch_size}", steps[0], {"AST": steps[1]}, batch_size, "clip")
    del ours, ast, steps

    pixels = {"pixel_values": random(batch_size, 3, side, side)}
    mae = stepping(ViTMAEForPreTraining(ViTMAEConfig(image_size=side, **sizes, **decoder)), pixels, device)
    image = {"modality": "image", "input_size": (side, side)}
    ours = Training(image | sizes | decoder, batch_size, "encoder", device=device)
    yield Row(f"encoder phase, images, batch {batch_size}", ours.step, {"ViTMAE": mae}, batch_size, "image")
    del ours, mae

    config = VideoMAEConfig(image_size=side, num_frames=pictures, **sizes, **decoder)
    patches = pictures // config.tubelet_size * (side // config.patch_size) ** 2
    hidden = torch.arange(patches).expand(batch_size, -1) >= patches // 10  # nine of ten
    videos = {"pixel_values": random(batch_size, pictures, 3, side, side), "bool_masked_pos": hidden}
    mae = stepping(VideoMAEForPreTraining(config), videos, device)
    video = {"modality": "video", "input_size": (pictures, side, side)}
    ours = Training(video | sizes | decoder, batch_size, "encoder", device=device)
    assert prod(ours.model.config.grid) == patches
    yield Row(f"encoder phase, videos, batch {batch_size}", ours.step, {"VideoMAE": mae}, batch_size, "video")
