"""Images: decoding by Pillow, batches of pixels, and the modality."""

import io
import logging
from functools import lru_cache

import datasets
import numpy as np
from PIL import Image, ImageOps

from ..demo_data import write_digit_set
from ..image_processing_bridle import BridleImageProcessor
from .arguments import DataArguments
from .extensions import image_extensions
from .media import BadClipError, is_array, open_file, pixels_of, read_whole
from .modality import Modality
from .pixels import (
    UNNORMALISED,
    PixelCollator,
    channel_statistics,
    measure_pixels,
    pixel_picture,
    pixel_sizes,
    square_means,
)

logger = logging.getLogger(__name__)

DARKEST = 2**14  # a maximum below it may be that of 10, 12 or 14 bits as well as of a dark picture of 16


def decode_image(image) -> np.ndarray:
    """Decode one image, turned as its EXIF data says and laid on white where it is transparent.

    Args:
        image: `{"bytes", "path"}` as an undecoded `datasets.Image` column gives it, or a path or URL alone; or decoded
            already, a PIL image or an array as `pixels_of` takes it.

    Returns:
        uint8 (3, H, W).

    Raises:
        BadClipError: where the image is missing, corrupt, cut off or larger than Pillow opens (179 million pixels), or
            is grey and what its white is cannot be told.
    """
    if is_array(image):
        return pixels_of(image, axes=3)
    try:
        if isinstance(image, Image.Image):
            picture = image
        else:
            with open_file(image) as file:
                picture = Image.open(io.BytesIO(read_whole(file)))
                if getattr(picture, "is_animated", False):
                    _say_first()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):  # grey of more than 8 bits, which Pillow would cut to white
            picture = Image.fromarray(_to_8_bits(np.asarray(picture)))
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        pixels = np.asarray(picture.convert("RGB"))
    except BadClipError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers do: OSError, SyntaxError, struct.error
        raise BadClipError(f"cannot be decoded: {error}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@lru_cache(maxsize=1)  # once a process
def _say_first() -> None:
    logger.warning("there are pictures of several pages or frames; the first is taken of each.")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits -> uint8.

    Raises:
        BadClipError: floating point values, or values of which 16 bits are not the only possible depth.
    """
    if grey.dtype.kind in "iu" and grey.min() >= 0 and (grey.max() == 0 or DARKEST <= grey.max() <= 65535):
        return (grey // 257).astype(np.uint8)
    raise BadClipError(
        f"is grey with {grey.dtype} values from {grey.min():g} to {grey.max():g}, which do not tell what white is: "
        "save it with 8 bits, or stretched to the 65535 of 16 bits"
    )


def image_pixels(raw, data: DataArguments, processor, rng: np.random.Generator | None = None) -> np.ndarray:
    """`Modality.decode` of images: uint8 (3, H, W), always the whole."""
    return decode_image(raw)


def picture_facts(raw, data: DataArguments, processor, decoded: np.ndarray) -> dict[str, float]:
    """`Modality.facts` of images."""
    _, height, width = decoded.shape
    return {"height": height, "width": width, "windows": 1}


IMAGE = Modality(
    name="image",
    column_type=datasets.Image,
    column_names=("image", "img"),
    extensions=image_extensions,
    decode=image_pixels,
    facts=picture_facts,
    collator=PixelCollator,
    write_demo_set=write_digit_set,
    axes=("row", "column"),
    has_boxes=True,
    processor=BridleImageProcessor,
    auto_processor="AutoImageProcessor",
    sizes=pixel_sizes,
    measure=measure_pixels,
    unnormalised=UNNORMALISED,
    picture=pixel_picture,
    classifier="BridleForImageClassification",
    auto_classifier="AutoModelForImageClassification",
    task="image-classification",
    baselines={"colours": channel_statistics, "pixels": square_means},
)
