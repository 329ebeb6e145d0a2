"""The table of modalities, shared by data, training, evaluation and the Hub, and their processors."""

import inspect

from transformers import BaseImageProcessor

from ..configuration_bridle import MODALITY_DEFAULTS, MOST_PATCHES, BridleConfig
from ..feature_extraction_bridle import MAX_CHANNELS
from .arguments import DataArguments
from .audio import AUDIO
from .image import IMAGE
from .modality import Modality
from .video import VIDEO

MODALITIES = {modality.name: modality for modality in (AUDIO, IMAGE, VIDEO)}


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
    """The processor for a model, of its input size unless `settings` says otherwise.

    Raises:
        ValueError: a setting that it does not take, or other channels or mel bins than the model's.
    """
    check_channels(config)
    modality = MODALITIES[config.modality]
    return _fitting(modality.processor(**modality.sizes(config) | settings), config)


def load_processor(source: str, config_changes: dict | None = None, **changes):
    """The processor saved beside the model in the folder or Hub repository `source`, with some settings changed.

    Args:
        config_changes: what else changes in the model's config; the sizes follow another `input_size`.

    Raises:
        ValueError: as of `build_processor`.
    """
    config, config_changes = BridleConfig.from_pretrained(source), config_changes or {}
    modality = MODALITIES[config.modality]
    if unknown := changes.keys() - _settings(modality.processor):
        raise ValueError(f"{modality.processor.__name__} has no setting {', '.join(map(repr, sorted(unknown)))}.")
    if {"input_size", "num_channels"} & config_changes.keys():
        config = BridleConfig(**config.to_dict() | config_changes)
        check_channels(config)
        changes = modality.sizes(config) | changes
    return _fitting(modality.processor.from_pretrained(source, **changes), config)


def check_channels(config: BridleConfig) -> None:
    """Raise a `ValueError` for a number of channels that the processor of the modality does not make."""
    made = MODALITY_DEFAULTS[config.modality]["num_channels"]
    if config.modality == "audio" and config.num_channels > MAX_CHANNELS:
        raise ValueError(f"`num_channels` is {config.num_channels}; audio data takes 1 to {MAX_CHANNELS}.")
    if config.modality != "audio" and config.num_channels != made:
        kind = "grey, transparent and coloured pictures all become red, green, blue"
        raise ValueError(f"`num_channels` is {config.num_channels}; {config.modality} data takes {made}: {kind}.")


def check_window(data: DataArguments, config: BridleConfig) -> None:
    """Raise a `ValueError` if the window, `data.max_frames`, is shorter than one patch or has too many patches."""
    patch, most = config.patch_size[0], MOST_PATCHES // config.grid[-1] * config.patch_size[0]
    if data.max_frames is not None and not patch <= data.max_frames <= most:
        raise ValueError(
            f"`data.max_frames` is {data.max_frames}; it takes from {patch}, the frames of a patch, to {most}."
        )


def _fitting(processor, config: BridleConfig):
    """The processor, if the model takes what it makes."""
    if config.modality == "audio" and processor.num_mel_bins != config.input_size[-1]:
        raise ValueError(
            f"num_mel_bins of the processor is {processor.num_mel_bins}; the model takes {config.input_size[-1]}, the "
            "last number of its input_size."
        )
    if config.modality == "audio" and processor.num_channels != config.num_channels:
        raise ValueError(
            f"num_channels of the processor is {processor.num_channels}; the model takes {config.num_channels}."
        )
    return processor


def processor_keys(recipe: dict) -> dict:
    """Names of a processor's settings, as the keys of a dict: for the `modality` in a recipe's `model`, or for all
    modalities where that is unknown."""
    model = recipe.get("model")
    named = model.get("modality", "audio") if isinstance(model, dict) else None
    classes = [modality.processor for name, modality in MODALITIES.items() if named not in MODALITIES or named == name]
    return {key: None for cls in classes for key in _settings(cls)}


def _settings(processor: type) -> list[str]:
    if issubclass(processor, BaseImageProcessor):
        return list(processor.valid_kwargs.__annotations__)
    parameters = inspect.signature(processor.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
