"""What the front-ends for sounds, images and videos refuse alike."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

MAX_SIDE = 2**14  # pixels of a side of a resized or cropped picture
TINY = torch.finfo(torch.float32).tiny
KINDS = ("feature_extractor", "image_processor", "video_processor")


def check_kind(settings: dict[str, Any], kind: str) -> None:
    """Raise a `ValueError` for saved settings of another kind of front-end.

    transformers' `AutoProcessor` tries one kind after the other and takes the first that does not refuse.
    """
    others = [settings[f"{other}_type"] for other in KINDS if f"{other}_type" in settings]
    if others and f"{kind}_type" not in settings:
        raise ValueError(f"The folder holds the settings of a {others[0]}; this class takes those of a {kind}.")


def check_number(name: str, value: Any, low: float, high: float, takes: str, whole: bool = False) -> None:
    """Raise a `ValueError` for a setting that is no number from `low` to `high`, or with `whole` no whole one.

    Args:
        takes: what the message says that it takes.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and low <= value <= high and (not whole or value == int(value))):
        raise ValueError(f"{name} is {value!r}; it takes {takes}.")


def check_pixel_settings(processor: Any) -> None:
    """Raise a `ValueError` for a setting of an image or video processor with which no picture can be made."""
    for name in ("size", "crop_size"):
        for side, pixels in dict(getattr(processor, name) or {}).items():
            if pixels is not None:
                check_number(f"{name}.{side}", pixels, 1, MAX_SIDE, f"1 to {MAX_SIDE} pixels", whole=True)
    for name, low in (("image_mean", -math.inf), ("image_std", TINY)):
        values = getattr(processor, name)
        values = list(values) if isinstance(values, list | tuple) else [values]
        if len(values) not in (1, 3):
            raise ValueError(f"{name} is {values}; it takes one number, or one for each of red, green and blue.")
        for value in values:
            check_number(name, value, low, math.inf, "positive numbers" if low > 0 else "finite numbers")
    check_number("rescale_factor", processor.rescale_factor, TINY, math.inf, "a positive number")


def described(value: Any) -> str:
    """What an error message calls a value."""
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"a {type(value).__name__}{shape}"


def check_depth(pixels: Any, name: str) -> None:
    """Raise a `ValueError` for integers beyond 0 to 255: 16 bits would be taken for 8 or cut to white.

    Args:
        pixels: an array, a tensor or a PIL image.
    """
    if hasattr(pixels, "dtype"):
        kind = str(pixels.dtype).removeprefix("torch.")
        if isinstance(pixels, torch.Tensor) and not pixels.is_floating_point():
            pixels = pixels.to(torch.int64)  # torch has no minimum of uint16
        in_range = "float" in kind or 0 in pixels.shape or 0 <= pixels.min() <= pixels.max() <= 255
        fits = kind != "bool" and (kind == "uint8" or in_range)
    else:
        kind = getattr(pixels, "mode", "")  # of PIL: "I", "I;16" and "F" are grey of more than 8 bits
        fits = not kind.startswith(("I", "F"))
    if not fits:
        raise ValueError(
            f"{name} has {described(pixels)} of {kind}; pixels take 0 to 255 or arrays of floats: divide 16 bits by "
            "257, multiply booleans by 255."
        )


def checked_pixels(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """Floating point pixels without NaN or inf as they are, integers as uint8: others would be resized beyond 255.

    Raises:
        ValueError: NaN or inf.
    """
    if not pixels.is_floating_point():
        return pixels.to(torch.uint8)
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{name} contains NaN or inf; it takes finite values only.")
    return pixels


def warn_of_small_pixels(pictures: Iterable[torch.Tensor], name: str, do_rescale: bool) -> None:
    """Warn once if float pixels are at most 1 and will still be divided by 255, which makes the picture black."""
    if do_rescale and any(each.is_floating_point() and 0 < each.abs().max() <= 1 for each in pictures):
        logger.warning_once(
            f"{name} has floats no larger than 1; pixels are taken to be in [0, 255]: multiply them by 255, or pass "
            "do_rescale=False."
        )
