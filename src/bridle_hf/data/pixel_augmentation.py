"""Augmentation of images and videos by torchvision: the same crop, flip and operations for all frames of a clip."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from .arguments import DataArguments

BICUBIC = v2.InterpolationMode.BICUBIC
MULTI_SCALES = 4


def build_augmentation(data: DataArguments, processor) -> v2.Transform:
    """What `data` asks for, from uint8 (..., 3, H, W) to normalised float32 (..., 3, h, w) of the processor's size."""
    size = processor.crop_size["height"], processor.crop_size["width"]
    if data.crop == "resized":
        steps = [v2.RandomResizedCrop(size, scale=data.crop_scale, interpolation=BICUBIC, antialias=True)]
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
    """A crop at a random place whose sides are two neighbouring ones of four shares of the shorter side, resized.

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
        crop_height, crop_width = (max(1, round(self.shares[k] * min(height, width))) for k in (first, second))
        return {
            "top": draw(height - crop_height + 1),
            "left": draw(width - crop_width + 1),
            "height": crop_height,
            "width": crop_width,
        }

    def transform(self, inpt, params):
        return v2.functional.resized_crop(inpt, **params, size=self.size, interpolation=BICUBIC, antialias=True)


def cutmix(pixels: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put a box of each clip's neighbour in the batch in its place, and as much of the target (arXiv 1905.04899).

    Args:
        pixels: (B, ..., 3, H, W) normalised images or videos; a video's box is the same in all frames.
        targets: (B, classes) float targets.

    Returns:
        New pixels and targets. Everything random comes from torch's global generator.
    """
    kind = tv_tensors.Image if pixels.ndim == 4 else tv_tensors.Video
    batch = kind(torch.from_numpy(pixels)), torch.from_numpy(targets)
    mixed = v2.CutMix(num_classes=targets.shape[1], labels_getter=lambda pair: pair[1])(*batch)
    return tuple(value.numpy() for value in mixed)


def draw(count: int) -> int:
    """A uniform number below `count`, from torch's generator as everything in torchvision is."""
    return int(torch.randint(count, ()))


@contextmanager
def drawn_from(rng: np.random.Generator) -> Iterator[None]:
    """torch's global generator, which torchvision draws from, starts from `rng` and is put back at the end."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(rng.integers(2**63)))
        yield
