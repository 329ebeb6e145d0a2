"""Image front-end of BRIDLE: resize, centre crop, scale to [0, 1] and normalise."""

import os
from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .checks_bridle import (
    check_depth,
    check_kind,
    check_pixel_settings,
    checked_pixels,
    described,
    warn_of_small_pixels,
)

try:  # of all imports of a model's code the Hub lets only guarded ones be missing
    from PIL import Image, ImageOps
except ImportError:
    Image = None


class BridleImageProcessorKwargs(ImagesKwargs, total=False):
    """
    keep_aspect_ratio (`bool`): a `size` of height and width is what the resized image has to cover; otherwise the image
        is stretched to it.
    """

    keep_aspect_ratio: bool


def covering_size(pixels: torch.Tensor, size: SizeDict) -> SizeDict:
    """Smallest size that covers `size` and keeps the aspect ratio of an image (..., H, W); `size` if it is the same."""
    height, width = pixels.shape[-2:]
    scale = max(size.height / height, size.width / width)
    return SizeDict(height=max(size.height, round(height * scale)), width=max(size.width, round(width * scale)))


class BridleImageProcessor(TorchvisionBackend):
    """Turns images into `pixel_values` (B, 3, height, width) float32.

    The shorter side is resized to `size["shortest_edge"]`, the middle of `crop_size` is cut out, values are divided by
    255 and normalised with `image_mean` and `image_std`. Grey images and images with transparency become RGB, the
    latter on white. For models whose window is not square, `size` is its height and width, which the resized image
    covers with `keep_aspect_ratio`. Every argument can be given at construction and at each call; the others are those
    of transformers' image processors.

    Raises:
        ValueError: no image; one that is empty, has not 1, 3 or 4 channels, is not of uint8 or floats, or holds NaN or
            inf.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    keep_aspect_ratio = False
    valid_kwargs = BridleImageProcessorKwargs

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_pixel_settings(self)

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        check_kind(image_processor_dict, "image_processor")
        return super().from_dict(image_processor_dict, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens local files with all their channels and bits; transformers' reader drops transparency.

        Pillow gets an open file and not its name: a TIFF file would be memory-mapped, at the wrong size if rotated.
        """
        if Image is not None and isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            with open(image_url_or_urls, "rb") as file, Image.open(file) as image:
                return ImageOps.exif_transpose(image)
        return super().fetch_images(image_url_or_urls)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        """One image or images in any nesting -> a list of images."""
        try:
            flat = super()._prepare_images_structure(images, expected_ndims)
        except (TypeError, ValueError) as error:
            raise ValueError(f"images is {described(images)}; it takes an image or a list of images.") from error
        if len(flat) == 0:
            raise ValueError("images is empty; it takes an image or a list of images.")
        return flat

    def process_image(self, image: Any, *args, **kwargs) -> torch.Tensor:
        """One image of any kind that transformers takes -> (channels, height, width), not resized yet."""
        if Image is not None and isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
        check_depth(image, "images")
        try:
            pixels = super().process_image(image, *args, **kwargs)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"images has {described(image)}; an image takes 1, 3 or 4 channels, first or last, of uint8 or floats: "
                f"{error}"
            ) from error
        if pixels.numel() == 0:
            raise ValueError(f"images has {described(image)}, which is empty; an image takes at least one pixel.")
        return checked_pixels(pixels, "images")

    def _preprocess(self, images, do_resize, size, resample, keep_aspect_ratio=False, **kwargs):
        warn_of_small_pixels(images, "images", kwargs["do_rescale"])
        if do_resize and keep_aspect_ratio and size.height:
            images = [self.resize(image, size=covering_size(image, size), resample=resample) for image in images]
            do_resize = False
        return super()._preprocess(images, do_resize=do_resize, size=size, resample=resample, **kwargs)


__all__ = ["BridleImageProcessor"]
