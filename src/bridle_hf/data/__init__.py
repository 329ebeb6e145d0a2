"""Data: streaming with an exact position, decoding, a cache of decoded clips, augmentation and synthesized sets."""

from .arguments import DataArguments
from .augmentation import mixup, roll_magnitude, spec_augment
from .decoding import BadClipError, decode_audio
from .examples import Examples, load_examples
from .modalities import MODALITIES, build_processor, load_processor, modality_of
from .pixels import decode_image, decode_video
from .streaming import ClipLoader, build_loader

__all__ = [
    "MODALITIES",
    "BadClipError",
    "ClipLoader",
    "DataArguments",
    "Examples",
    "build_loader",
    "build_processor",
    "decode_audio",
    "decode_image",
    "decode_video",
    "load_examples",
    "load_processor",
    "mixup",
    "modality_of",
    "roll_magnitude",
    "spec_augment",
]
