"""Data: modalities, streaming with an exact position, a cache of decoded samples, labelled sets."""

from .arguments import DataArguments
from .audio_augmentation import roll_magnitude, spec_augment
from .audio_decoding import decode_audio
from .examples import Examples, load_examples
from .image import decode_image
from .labels import LabelError
from .media import BadClipError, UnusableDataError
from .mixing import cutmix, mixup
from .modalities import MODALITIES, build_processor, load_processor, modality_of
from .modality import Modality
from .streaming import ClipLoader, build_loader
from .video import decode_video

__all__ = [
    "MODALITIES",
    "BadClipError",
    "ClipLoader",
    "DataArguments",
    "Examples",
    "LabelError",
    "Modality",
    "UnusableDataError",
    "build_loader",
    "build_processor",
    "cutmix",
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
