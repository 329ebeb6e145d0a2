"""Opening of media files: bytes, local paths and URLs."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec
import numpy as np
import torch

from ..video_decoding_bridle import on_white


class BadClipError(ValueError):
    """A sample that cannot be used: corrupt, empty, too short, or not finite. Loaders skip it, count it and name it."""


def is_array(raw: Any) -> bool:
    """Whether a raw value is an array of numbers, decoded already, and not a file."""
    return isinstance(raw, np.ndarray | torch.Tensor | list)


def pixels_of(raw: Any, axes: int) -> np.ndarray:
    """An array of pixels with its channels brought before height and width: uint8 (..., 3, H, W).

    Args:
        raw: (H, W), or (..., H, W, C) or (..., C, H, W), with 1, 3 or 4 channels; with a 4th, the opacity, the pixels
            are laid on white.
        axes: of the array with channels: 3 of an image, 4 of a video.

    Raises:
        BadClipError: another shape, an empty array or values that are not pixels of 8 bits.
    """
    pixels = np.asarray(raw)
    if pixels.dtype.kind in "iu" and pixels.size and 0 <= pixels.min() and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8, copy=False)
    if pixels.ndim == axes - 1:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != axes or not pixels.size:
        raise BadClipError(f"is an array {pixels.shape} of {pixels.dtype}; it takes uint8 of {axes} axes")
    if pixels.shape[-1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, -1, -3)
    elif pixels.shape[-3] not in (1, 3, 4):
        raise BadClipError(f"is an array {pixels.shape}; it takes 1, 3 or 4 channels, last or before height and width")
    channels = pixels.shape[-3]
    return np.ascontiguousarray(pixels.repeat(3, axis=-3) if channels == 1 else on_white(pixels))


@contextmanager
def open_file(sample: dict | str | None) -> Iterator[BinaryIO]:
    """The content of an undecoded column of `datasets`, or the file at a path or URL, which is read only as needed.

    Raises:
        BadClipError: neither is there.
    """
    if isinstance(sample, str):
        sample = {"bytes": None, "path": sample}
    if sample is None or (sample.get("bytes") is None and not sample.get("path")):
        raise BadClipError("holds neither bytes nor a path")
    if sample.get("bytes") is not None:
        yield io.BytesIO(sample["bytes"])
    else:
        with fsspec.open(sample["path"], "rb") as file:
            yield file
