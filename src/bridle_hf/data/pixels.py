"""What images and videos share: augmentation by torchvision, the same for all frames, batches, sizes and baselines."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import ceil

import numpy as np
import torch
from torchvision.transforms import v2

from ..configuration_bridle import BridleConfig
from .arguments import DataArguments

BICUBIC = v2.InterpolationMode.BICUBIC
MULTI_SCALES = 4
UNNORMALISED = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
SQUARES = 16  # along each side of an image, for baselines


def build_augmentation(data: DataArguments, processor) -> v2.Transform:
    """The augmentation of `data`: uint8 (..., 3, H, W) to normalised float32 (..., 3, h, w) of the processor's size."""
    size = processor.crop_size["height"], processor.crop_size["width"]
    if data.crop == "resized":
        aspect = size[1] / size[0]
        ratio = (3 / 4 * aspect, 4 / 3 * aspect)
        steps = [v2.RandomResizedCrop(size, scale=data.crop_scale, ratio=ratio, interpolation=BICUBIC, antialias=True)]
    else:
        steps = [MultiScaleCrop(size, data.crop_scale)]
    if data.flip:
        steps.append(v2.RandomHorizontalFlip())
    if data.rand_augment:
        steps.append(v2.RandAugment(magnitude=data.rand_augment, interpolation=v2.InterpolationMode.BILINEAR))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
    if data.erase:
        steps.append(v2.RandomErasing(p=data.erase))
    return v2.Compose(steps)


class MultiScaleCrop(v2.Transform):
    """A crop at a random place, resized to `size`. Its sides are two neighbouring ones of four shares of the largest
    crop that has the proportions of `size`, the shorter side for a square.

    It is the crop of two-stream networks and VideoMAE (arXiv 1507.02159, section 3.3), but for the places: there five
    fixed ones, here any.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]):
        super().__init__()
        self.size = size
        self.shares = torch.linspace(scale[1], scale[0], MULTI_SCALES).tolist()

    def make_params(self, flat_inputs):
        height, width = v2.functional.get_size(flat_inputs[0])
        first = draw(MULTI_SCALES)
        second = min(max(first + draw(3) - 1, 0), MULTI_SCALES - 1)
        rows, columns = self.size
        largest = min(height, width * rows / columns), min(width, height * columns / rows)
        crop_height, crop_width = (
            max(1, round(self.shares[k] * side)) for k, side in zip((first, second), largest, strict=True)
        )
        return {
            "top": draw(height - crop_height + 1),
            "left": draw(width - crop_width + 1),
            "height": crop_height,
            "width": crop_width,
        }

    def transform(self, inpt, params):
        return v2.functional.resized_crop(inpt, **params, size=self.size, interpolation=BICUBIC, antialias=True)


def draw(count: int) -> int:
    """A uniform number below `count`, from torch's generator as everything in torchvision is."""
    return int(torch.randint(count, ()))


@contextmanager
def drawn_from(rng: np.random.Generator) -> Iterator[None]:
    """torch's global generator, which torchvision draws from, starts from `rng` and is put back at the end."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(rng.integers(2**63)))
        yield


class PixelCollator:
    """Pixels of images, uint8 (3, H, W) each, to batches of a model's inputs: `pixel_values` (B, 3, h, w) float32."""

    def __init__(self, data: DataArguments, processor):
        self.data, self.processor = data, processor
        self.augment = build_augmentation(data, processor)

    def __call__(self, samples: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A training batch, cropped and augmented; all randomness comes from `rng`."""
        with drawn_from(rng):
            values = [self.augment(torch.from_numpy(self.select(sample, rng))).numpy() for sample in samples]
        return {"pixel_values": np.stack(values)}

    def select(self, sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A writable copy of the part of a sample to augment."""
        return sample.copy()

    def plain(self, samples: list[np.ndarray], **options) -> dict[str, np.ndarray]:
        """A batch without augmentation, as the processor makes it."""
        samples = [np.require(sample, requirements="W") for sample in samples]  # torch warns of read-only memory
        batch = self.processor(samples, input_data_format="channels_first", return_tensors="np", **options)
        return {"pixel_values": batch["pixel_values"]}


def pixel_sizes(config: BridleConfig) -> dict:
    """`Modality.sizes` of images."""
    height, width = config.input_size[-2:]
    window = {"height": height, "width": width}
    if height == width:
        return {"size": {"shortest_edge": height}, "crop_size": window}
    return {"size": window, "keep_aspect_ratio": True, "crop_size": window}


def kept_size(data: DataArguments, processor) -> tuple[int, int]:
    """Height and width that a picture kept for training has to cover: at them its smallest crop fills the window."""
    size, crop = processor.size, processor.crop_size
    share = data.crop_scale[0] ** (0.5 if data.crop == "resized" else 1)
    return tuple(
        ceil(max(size.get("shortest_edge") or size.get(side) or 0, crop[side] / share)) for side in ("height", "width")
    )


def pixel_picture(values: np.ndarray, codes: np.ndarray, valid: np.ndarray, grid: tuple[int, ...]) -> tuple:
    """`Modality.picture` of images (C, H, W) and videos (T, C, H, W).

    An image becomes its brightness; of a video, one frame per tubelet stands beside the next.
    """
    frames, rows, columns = (1, *grid)[-3:]
    films = values.reshape(-1, *values.shape[-3:]).mean(axis=1)  # (T, H, W)
    films = films[:: len(films) // frames]  # (frames, H, W)

    def turn(array):
        """(frames, rows, columns, ...) -> (frames * columns, rows from the bottom, ...)"""
        array = np.flip(np.moveaxis(array, 1, 2), axis=2)
        return array.reshape(-1, *array.shape[2:])

    codes, valid = (turn(array.reshape(frames, rows, columns, *array.shape[1:])) for array in (codes, valid))
    flat = (len(codes) * codes.shape[1],)
    return turn(films), codes.reshape(*flat, -1), valid.reshape(flat), (frames * columns, rows)


def square_means(image: np.ndarray) -> np.ndarray:
    """Baseline: (C, H, W) -> (C * 16 * 16,), the means of 16 x 16 squares; single pixels where there are no more."""
    channels, *sides = image.shape
    rows, columns = (np.arange(min(side, SQUARES)) * side // min(side, SQUARES) for side in sides)
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=1), columns, axis=2)
    sizes = np.outer(np.diff(rows, append=sides[0]), np.diff(columns, append=sides[1]))
    return (sums / sizes).reshape(-1)


def measure_pixels(clips: Iterable[np.ndarray], processor=None) -> dict[str, list[float]]:
    """`Modality.measure` of images and videos: mean and (population) standard deviation of red, green and blue, as
    shares of full brightness. Every picture or video counts alike, whatever its size.

    Args:
        clips: uint8, or floats in [0, 1], (..., 3, H, W).
        processor: changes nothing.

    Returns:
        `image_mean` and `image_std`.

    Raises:
        ValueError: `clips` is empty.
    """
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for clip in clips:
        values = clip.astype(np.float32) / (255 if clip.dtype == np.uint8 else 1)
        colours = np.moveaxis(values, -3, 0).reshape(3, -1)
        count += 1
        total += colours.mean(axis=1, dtype=np.float64)
        squares += np.square(colours).mean(axis=1, dtype=np.float64)
    if count == 0:
        raise ValueError("clips is empty; it takes at least one picture.")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    found = {"image_mean": mean, "image_std": std}
    return {key: [round(float(value), 5) for value in values] for key, values in found.items()}


def channel_statistics(image: np.ndarray) -> np.ndarray:
    """Baseline: (C, H, W) -> (2 C,), mean and standard deviation of every channel."""
    flat = image.reshape(len(image), -1)
    return np.concatenate([flat.mean(axis=1), flat.std(axis=1)])
