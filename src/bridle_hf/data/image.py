"""Images: decoding by Pillow, batches of pixels, and the modality."""

import io
import warnings

import datasets
import numpy as np
from PIL import Image, ImageOps

from ..demo_data import write_digit_set
from ..image_processing_bridle import BridleImageProcessor
from .arguments import DataArguments
from .extensions import image_extensions
from .media import BadClipError, is_array, open_file, pixels_of, read_whole
from .modality import Modality
from .pixels import PixelCollator, channel_statistics, pixel_picture, pixel_sizes, square_means


def decode_image(image) -> np.ndarray:
    """Decode one image, turned as its EXIF data says.

    Args:
        image: `{"bytes", "path"}` as an undecoded `datasets.Image` column gives it, or a path or URL alone; or decoded
            already, a PIL image or an array as `pixels_of` takes it.

    Returns:
        uint8 (3, H, W).

    Raises:
        BadClipError: where the image is missing, corrupt or cut off.
    """
    if is_array(image):
        return pixels_of(image, axes=3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, Image.Image):
                picture = image
            else:
                with open_file(image) as file:
                    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(read_whole(file))))
            if picture.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut to white
                picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
            pixels = np.asarray(picture.convert("RGB"))
    except BadClipError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers do: OSError, SyntaxError, struct.error
        raise BadClipError(f"cannot be decoded: {error}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_pixels(raw, data: DataArguments, processor, rng: np.random.Generator | None = None) -> np.ndarray:
    """`Modality.decode` of images: uint8 (3, H, W), always the whole."""
    return decode_image(raw)


IMAGE = Modality(
    name="image",
    column_type=datasets.Image,
    column_names=("image", "img"),
    extensions=image_extensions,
    decode=image_pixels,
    collator=PixelCollator,
    write_demo_set=write_digit_set,
    axes=("row", "column"),
    has_boxes=True,
    processor=BridleImageProcessor,
    auto_processor="AutoImageProcessor",
    sizes=pixel_sizes,
    picture=pixel_picture,
    classifier="BridleForImageClassification",
    auto_classifier="AutoModelForImageClassification",
    task="image-classification",
    baselines={"colours": channel_statistics, "pixels": square_means},
)
