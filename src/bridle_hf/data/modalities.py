"""What audio, images and videos differ in outside the model: the one table that data, training and evaluation read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from ..configuration_bridle import BridleConfig
from ..demo_data import write_digit_set, write_motion_set, write_sound_set
from ..feature_extraction_bridle import BridleFeatureExtractor
from ..image_processing_bridle import BridleImageProcessor
from ..modeling_bridle import (
    BridleForAudioClassification,
    BridleForImageClassification,
    BridleForVideoClassification,
)
from ..video_processing_bridle import BridleVideoProcessor, clip_indices
from .arguments import DataArguments
from .collation import AudioCollator, PixelCollator, VideoCollator
from .decoding import BadClipError, clip_features
from .pixels import decode_image, decode_video


@dataclass(frozen=True)
class Modality:
    """One kind of input.

    Attributes:
        name: of the modality in `BridleConfig`.
        column_type, column_names: the type of a dataset's column that holds it, and its names where it has no type.
        processor: the front-end's class.
        sizes: the arguments of the processor that follow from a model's config.
        decode: (raw value of the column, data, processor, generator) -> one clip as the collator takes it, and a
            `BadClipError` for one that cannot be used. With a generator it is a random part where the whole is costly.
        kept_settings: the settings of a processor and of `data` that a clip decoded as a whole depends on.
        collator: makes batches of decoded clips, see `data.collation`.
        classifier: the model class with a classification head.
        write_set: writes the synthesized data set that a recipe calls `synthetic`.
    """

    name: str
    column_type: type
    column_names: tuple[str, ...]
    processor: type
    sizes: Callable[[BridleConfig], dict]
    decode: Callable[..., np.ndarray]
    kept_settings: Callable[..., dict]
    collator: type
    classifier: type
    write_set: Callable[[Path], Path]


PADDING_KEYS = ("max_length", "padding_side", "padding_value", "return_attention_mask", "auto_map", "processor_class")


def decode_sound(raw, data: DataArguments, processor, rng=None) -> np.ndarray:
    """Log-mel features (frames, mel bins): all of them, or as many as are trained on at a random place."""
    return clip_features(raw, processor, data.min_seconds, data.max_frames or processor.max_length, rng)


def sound_settings(data: DataArguments, processor) -> dict:
    settings = {key: value for key, value in processor.to_dict().items() if key not in PADDING_KEYS}
    return settings | {"min_seconds": data.min_seconds}


def spectrogram_sizes(config: BridleConfig) -> dict:
    max_length, num_mel_bins = config.input_size
    return {"max_length": max_length, "num_mel_bins": num_mel_bins, "pad_to_multiple_of": config.patch_size[0]}


def decode_picture(raw, data: DataArguments, processor, rng=None) -> np.ndarray:
    """Pixels, uint8 (3, H, W)."""
    return decode_image(raw)


def decode_frames(raw, data: DataArguments, processor, rng: np.random.Generator | None = None) -> np.ndarray:
    """All frames, uint8 (frames, 3, H, W), or those of a clip at a random place."""

    def choose(total: int, position: float = 0.5) -> np.ndarray:
        return clip_indices(total, processor.num_frames, processor.frame_stride, position)

    if rng is not None:
        return decode_video(raw, lambda total: choose(total, rng.uniform()))
    frames = decode_video(raw)
    try:
        choose(len(frames))
    except ValueError as error:
        raise BadClipError(str(error)) from error
    return frames


def picture_sizes(config: BridleConfig) -> dict:
    height, width = config.input_size[-2:]
    return {"size": {"shortest_edge": max(height, width)}, "crop_size": {"height": height, "width": width}}


def video_sizes(config: BridleConfig) -> dict:
    return picture_sizes(config) | {"num_frames": config.input_size[0], "do_sample_frames": True}


MODALITIES = {
    modality.name: modality
    for modality in (
        Modality(
            name="audio",
            column_type=datasets.Audio,
            column_names=("audio",),
            processor=BridleFeatureExtractor,
            sizes=spectrogram_sizes,
            decode=decode_sound,
            kept_settings=sound_settings,
            collator=AudioCollator,
            classifier=BridleForAudioClassification,
            write_set=write_sound_set,
        ),
        Modality(
            name="image",
            column_type=datasets.Image,
            column_names=("image", "img"),
            processor=BridleImageProcessor,
            sizes=picture_sizes,
            decode=decode_picture,
            kept_settings=lambda data, processor: {},
            collator=PixelCollator,
            classifier=BridleForImageClassification,
            write_set=write_digit_set,
        ),
        Modality(
            name="video",
            column_type=datasets.Video,
            column_names=("video",),
            processor=BridleVideoProcessor,
            sizes=video_sizes,
            decode=decode_frames,
            kept_settings=lambda data, processor: {"num_frames": processor.num_frames},
            collator=VideoCollator,
            classifier=BridleForVideoClassification,
            write_set=write_motion_set,
        ),
    )
}


def modality_of(processor) -> Modality:
    """The modality that a processor belongs to.

    Raises:
        TypeError: it belongs to none.
    """
    for modality in MODALITIES.values():
        if isinstance(processor, modality.processor):
            return modality
    takes = ", ".join(modality.processor.__name__ for modality in MODALITIES.values())
    raise TypeError(f"processor is a {type(processor).__name__}; it takes one of {takes}.")


def build_processor(config: BridleConfig, **settings):
    """The processor for a model, of its input size unless `settings` says otherwise."""
    modality = MODALITIES[config.modality]
    return modality.processor(**modality.sizes(config) | settings)


def load_processor(source: str, **changes):
    """The processor saved beside the model in the folder or Hub repository `source`, with some settings changed."""
    modality = MODALITIES[BridleConfig.from_pretrained(source).modality]
    return modality.processor.from_pretrained(source, **changes)
