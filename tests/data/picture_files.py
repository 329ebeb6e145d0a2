"""Writers of small datasets of real image and video files, whose clips can be told apart by their brightness."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bridle_hf.demo_data.motion import write_video

LEVELS = 10 * np.arange(24)  # brightness of the picture or video of each index, and steps that survive a codec


def picture(index: int, size: int = 20) -> np.ndarray:
    """uint8 (size, size, 3)"""
    return np.full((size, size, 3), LEVELS[index], dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def counting_video(path: Path, frames: int = 20, size: int = 32, first: int = 0, codec: str = "libx264") -> Path:
    """A video whose n-th frame has brightness 10 (first + n)."""
    levels = 10 * (first + np.arange(frames))
    pixels = np.broadcast_to(levels[:, None, None, None], (frames, size, size, 3)).astype(np.uint8)
    write_video(path, np.ascontiguousarray(pixels), rate=10, codec=codec)
    return path


def numbers(clip: np.ndarray) -> list[int]:
    """uint8 (frames, 3, H, W) -> the number of each frame of `counting_video`."""
    return np.round(clip.mean(axis=(1, 2, 3)) / 10).astype(int).tolist()


def write_folder(folder: Path, files: dict[str, bytes]) -> str:
    """An image or video folder with the columns index and kind."""
    (folder / "train").mkdir(parents=True)
    with open(folder / "train" / "metadata.jsonl", "w") as metadata:
        for index, (name, content) in enumerate(files.items()):
            (folder / "train" / name).write_bytes(content)
            metadata.write(json.dumps({"file_name": name, "index": index, "kind": "ab"[index % 2]}) + "\n")
    return str(folder)
