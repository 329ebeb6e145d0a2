"""The table of modalities, which data, training, evaluation and the Hub read."""

from ..configuration_bridle import BridleConfig
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
    """The processor for a model, of its input size unless `settings` says otherwise."""
    modality = MODALITIES[config.modality]
    return modality.processor(**modality.sizes(config) | settings)


def load_processor(source: str, **changes):
    """The processor saved beside the model in the folder or Hub repository `source`, with some settings changed."""
    modality = MODALITIES[BridleConfig.from_pretrained(source).modality]
    return modality.processor.from_pretrained(source, **changes)
