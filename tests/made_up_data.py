"""Datasets of noise in the layout of real ones, for tests that run recipes at their real size."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
from datasets import Audio, Dataset, Features, Image
from PIL import Image as Picture

from bridle_hf.demo_data.motion import write_video

RATE = 16_000


def png(random: np.random.Generator, height: int = 260, width: int = 300) -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def flac(random: np.random.Generator, seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * random.normal(size=int(seconds * RATE)), RATE, format="FLAC")
    return buffer.getvalue()


def write_table(folder: Path, column: str, feature, samples: list[bytes], split: str = "train", **columns) -> Path:
    """A split as a parquet file: `samples` in `column`, and what else each of them has."""
    rows = [
        {column: {"bytes": sample, "path": None}} | {name: values[i] for name, values in columns.items()}
        for i, sample in enumerate(samples)
    ]
    table = Dataset.from_list(rows)
    folder.mkdir(parents=True, exist_ok=True)
    table.cast(Features(table.features | {column: feature})).to_parquet(folder / f"{split}.parquet")
    return folder


def write_pictures(folder: Path, train: int, test: int = 0) -> Path:
    """ImageNet's columns: image, label; splits train and validation."""
    random = np.random.default_rng(0)
    for split, size in (("train", train), ("validation", test)):
        if size:
            labels = [i % 3 for i in range(size)]
            write_table(folder, "image", Image(), [png(random) for _ in range(size)], split, label=labels)
    return folder


def write_sounds(folder: Path, seconds: list[float], test: int = 0) -> Path:
    """Columns as AudioSet and ESC-50 have them (audio, human_labels, category, fold); splits train and test."""
    random = np.random.default_rng(0)
    for split, lengths in (("train", seconds), ("test", seconds[:test])):
        if lengths:
            columns = {
                "human_labels": [["speech", "music", "rain"][: 1 + i % 3] for i in range(len(lengths))],
                "category": ["dog" if i % 2 else "rain" for i in range(len(lengths))],
                "fold": [2 if i else 1 for i in range(len(lengths))],
            }
            samples = [flac(random, length) for length in lengths]
            write_table(folder, "audio", Audio(decode=False), samples, split, **columns)
    return folder


def write_videos(folder: Path, train: int, test: int = 0) -> Path:
    """A video folder of clips of 2.7 s, 320 x 240, with the column label; splits train and validation."""
    random = np.random.default_rng(0)
    for split, size in (("train", train), ("validation", test)):
        for i in range(size):
            (folder / split).mkdir(parents=True, exist_ok=True)
            still = np.kron(random.integers(0, 256, (15, 20, 3)), np.ones((16, 16, 1))).astype(np.uint8)
            frames = np.stack([np.roll(still, 4 * frame, axis=1) for frame in range(68)])
            write_video(folder / split / f"{split}-{i}.mp4", frames, rate=25)
            with open(folder / split / "metadata.jsonl", "a") as metadata:
                metadata.write(json.dumps({"file_name": f"{split}-{i}.mp4", "label": i % 3}) + "\n")
    return folder


def finite_steps(folder: Path) -> list[int]:
    """The steps in metrics.jsonl of a run that logs all of them; their losses are numbers."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in lines for value in line["losses"].values()), lines
    return [line["step"] for line in lines]
