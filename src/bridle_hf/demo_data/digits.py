"""Pictures of handwritten digits as real image files, for demos and tests that must not download anything.

The digits are those that scikit-learn brings along, 8 x 8 pixels each. Every picture has one of them off the middle,
larger or smaller, turned a little, white on black, so that single pixels do not say it all.
"""

import os
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from .folder import FOLDS, write_set

SIZE = 32  # pixels, both sides
SCALE = (20.0, 26.0)  # pixels that the 8 of a digit become
SHIFT = 3.0  # pixels off the middle, in every direction
TURN = 15.0  # degrees, to either side
BRIGHTNESS = (0.6, 1.0)


@lru_cache(maxsize=1)
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """The digits (n, 8, 8) in [0, 1] and what they show (n,)."""
    digits = load_digits()
    return digits.images / 16, digits.target


def place_digit(digit: np.ndarray, size: int, centre, scale: float, degrees: float) -> np.ndarray:
    """A digit on a canvas whose opposite edges meet.

    Args:
        digit: (8, 8) in [0, 1].
        size: of the canvas.
        centre: row and column of the digit's centre; what leaves at an edge comes in at the other.
        scale: pixels that the 8 of the digit become.
        degrees: turn, counterclockwise.

    Returns:
        (size, size) in [0, 1]: how much of each pixel the digit covers.
    """
    rows, columns = np.indices((size, size))
    rows, columns = (
        (axis - middle + size / 2) % size - size / 2 for axis, middle in zip((rows, columns), centre, strict=True)
    )
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = np.stack([cos * rows + sin * columns, cos * columns - sin * rows])
    return map_coordinates(digit, turned * (8 / scale) + 3.5, order=1, mode="constant")


def paint(ink: np.ndarray) -> np.ndarray:
    """Levels (H, W) in [0, 1] to a grey picture, uint8 (H, W, 3)."""
    return np.round(255 * ink).astype(np.uint8)[..., None].repeat(3, axis=-1)


def draw_picture(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture of a digit (8, 8): uint8 (SIZE, SIZE, 3)."""
    centre = (SIZE - 1) / 2 + rng.uniform(-SHIFT, SHIFT, size=2)
    ink = place_digit(digit, SIZE, centre, rng.uniform(*SCALE), rng.uniform(-TURN, TURN))
    return paint(rng.uniform(*BRIGHTNESS) * ink)


def write_digit_set(folder: str | os.PathLike, seed: int = 0, pictures_per_digit: int = 1) -> Path:
    """Write the pictures as an image dataset folder, or leave the folder alone where that set is already there.

    `folder/train` holds PNG files (32 x 32) and `metadata.jsonl` with the columns `label` (0 to 9) and `fold`
    (1 to 5; pictures of one handwritten digit are in one fold). The same seed gives the same files.

    Args:
        folder: new folder, or one that this function wrote; a set of another seed or size is replaced.
        seed: of everything random.
        pictures_per_digit: pictures of each of the 1797 handwritten digits.

    Raises:
        FileExistsError: where `folder` holds anything else.
    """
    receipt = {"set": "digits", "seed": seed, "pictures_per_digit": pictures_per_digit}
    return write_set(folder, receipt, partial(_write_pictures, seed=seed, pictures_per_digit=pictures_per_digit))


def _write_pictures(folder: Path, seed: int, pictures_per_digit: int) -> Iterator[dict]:
    digits, labels = digit_images()
    order = np.random.default_rng(seed).permutation(len(digits) * pictures_per_digit)
    for number, place in enumerate(tqdm(order, desc="drawing", unit=" pictures")):
        take, index = divmod(int(place), len(digits))
        name = f"{number:05d}.png"
        Image.fromarray(draw_picture(digits[index], np.random.default_rng([seed, index, take]))).save(folder / name)
        yield {"file_name": name, "label": int(labels[index]), "fold": index % FOLDS + 1}
