"""Clips from their files to a model's inputs, as one reader of a training run makes them, beside its first steps alone;
and from a cache."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from measuring import Row, random
from PIL import Image

from bridle_hf import BridleConfig
from bridle_hf.data import MODALITIES, DataArguments, build_loader, build_processor
from bridle_hf.data.audio_decoding import decode_audio
from bridle_hf.demo_data.motion import write_video


def row(name: str, modality: str, encoded: bytes, alone: dict, **processor) -> Row:
    """A clip decoded, cut, augmented and collated with the defaults of a modality."""
    kind, data, rng = MODALITIES[modality], DataArguments("bench"), np.random.default_rng(0)
    processor = build_processor(BridleConfig(modality=modality), **processor)
    collate, raw = kind.collator(data, processor), {"bytes": encoded, "path": None}
    return Row(name, lambda: collate([kind.decode(raw, data, processor, rng)], rng), alone, unit="clip")


def loading_rows(seconds: float = 10.0, side: int = 256) -> Iterator[Row]:
    """Sounds in three forms, an image and a video of the paper's data sets' usual sizes.

    Args:
        seconds: of sounds and videos.
        side: shorter side of images and videos in pixels.
    """
    for form, rate in (("OGG", 44_100), ("FLAC", 44_100), ("FLAC", 16_000)):
        file = io.BytesIO()
        soundfile.write(file, (random(int(seconds * rate)) / 10).clamp(-1, 1).numpy(), rate, format=form)
        alone = {
            "decoding": lambda file=file: soundfile.read(io.BytesIO(file.getvalue())),
            "decoding and resampling": lambda file=file: decode_audio({"bytes": file.getvalue(), "path": None}, 16_000),
        }
        yield row(f"load a sound, {seconds:g} s, {form}, {rate / 1000:g} kHz", "audio", file.getvalue(), alone)

    yield from cached_rows(seconds)
    picture = scene(3 * side // 2, 2 * side)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=90)
    alone = {"decoding": lambda: np.asarray(Image.open(io.BytesIO(file.getvalue())))}
    yield row(f"load an image, JPEG, {picture.shape[1]} x {picture.shape[0]}", "image", file.getvalue(), alone)

    width, frames = 4 * side // 3 // 2 * 2, int(25 * seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        steps = np.linspace(0, picture.shape[1] - width, frames).astype(int)
        write_video(path, np.stack([picture[:side, step : step + width] for step in steps]), 25)
        encoded = path.read_bytes()
    alone = {"decoding the whole of it": lambda: [frame for frame in av.open(io.BytesIO(encoded)).decode(video=0)]}
    yield row(
        f"load a video, 16 frames of {seconds:g} s, H.264, {width} x {side}", "video", encoded, alone, frame_stride=4
    )


def cached_rows(seconds: float, clips: int = 32) -> Iterator[Row]:
    """Batches of Ogg files through the loader of a training run: decoded each time, and from both kinds of cache."""
    processor = build_processor(BridleConfig(modality="audio"))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(clips):
            noise = (random(int(seconds * 44_100)) / 10).clamp(-1, 1).numpy()
            soundfile.write(Path(folder, f"{number}.ogg"), noise, 44_100)

        def loading(**settings):
            data = DataArguments(folder, cache_dir=f"{folder}/cache", **settings)
            loader = build_loader(data, processor, batch_size=clips, seed=0)
            return lambda: next(loader)

        half, eight = loading(cache=True), loading(cache=True, cache_dtype="int8")
        yield Row(f"load a cached sound, {seconds:g} s, int8", eight, {"float16": half}, clips, "clip")
        yield Row(f"load a cached sound, {seconds:g} s, float16", half, {"decoding it": loading()}, clips, "clip")


def scene(height: int, width: int) -> np.ndarray:
    """Colours that change slowly, with a little noise, as photographs do: uint8 (H, W, 3)."""
    coarse = torch.nn.functional.interpolate(random(1, 3, height // 16, width // 16), (height, width), mode="bicubic")
    pixels = 128 + 48 * coarse[0] + 4 * random(3, height, width)
    return pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()
