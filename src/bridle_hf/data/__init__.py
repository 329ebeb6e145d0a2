"""Audio data: streaming with an exact position, decoding, a feature cache, augmentation and a synthesized sound set."""

from .arguments import DataArguments
from .augmentation import mixup, roll_magnitude, spec_augment
from .decoding import BadClipError, decode_audio
from .examples import Examples, load_examples
from .streaming import ClipLoader, build_loader
from .synthetic import write_sound_set

__all__ = [
    "BadClipError",
    "ClipLoader",
    "DataArguments",
    "Examples",
    "build_loader",
    "decode_audio",
    "load_examples",
    "mixup",
    "roll_magnitude",
    "spec_augment",
    "write_sound_set",
]
