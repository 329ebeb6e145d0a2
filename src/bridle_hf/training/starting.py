"""Starting a run from the weights of a saved model: a converted checkpoint, or the `final/` of another run."""

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from ..configuration_bridle import BridleConfig
from ..hub_connection import check_connection
from ..modeling_bridle import BridleForPreTraining, BridleModel, BridleTokenizer
from ..saved_models import check_weights

logger = logging.getLogger(__name__)

# Settings of an encoder that its weights depend on: their sizes, or the function that they were trained in.
OF_WEIGHTS = (
    "modality", "hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "num_channels",
    "num_attention_heads", "hidden_act", "layer_norm_eps", "use_cls_token",
)  # fmt: skip


def config_of(start_from: str, tokenizer: bool) -> dict[str, Any]:
    """Keyword arguments of `BridleConfig` for a run that starts from a saved model.

    Args:
        start_from: folder or Hub id.
        tokenizer: whether the run takes its tokenizer and decoder as well.

    Raises:
        ValueError: there is no such model, or `tokenizer` is true and it has no trained tokenizer.
    """
    folder = Path(start_from)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"`start_from` is {start_from!r}, a folder without a config.json; it takes that of a model.")
    if folder.is_file():
        raise ValueError(f"`start_from` is {start_from!r}, a file; it takes the folder of a model.")
    try:
        if not folder.is_dir():
            check_connection(start_from)
        kind = PreTrainedConfig.get_config_dict(start_from)[0].get("model_type")
        if kind not in (None, BridleConfig.model_type):
            raise ValueError(
                f"`start_from` is {start_from!r}, a model of type {kind!r}; `bridle convert` makes one of it."
            )
        config = BridleConfig.from_pretrained(start_from)
    except (OSError, StrictDataclassError) as error:
        there = "which cannot be read" if folder.is_dir() else "no folder here, and not to be had from the Hub"
        raise ValueError(f"`start_from` is {start_from!r}, {there}: {error}") from error
    if BridleTokenizer.__name__ in (config.architectures or ()):
        raise ValueError(f"`start_from` is {start_from!r}, a tokenizer alone; it takes a model with an encoder.")
    if tokenizer and (config.cold_start or BridleForPreTraining.__name__ not in (config.architectures or ())):
        raise ValueError(f"`start_tokenizer` is true; {start_from} holds no trained tokenizer.")
    return config.to_dict() | {"cold_start": not tokenizer}


def check_start(config: BridleConfig, start_from: str, tokenizer: bool) -> None:
    """Check that a run can begin from the weights of a saved model; arguments as of `config_of`.

    Raises:
        ValueError: weights in a folder are damaged, or `config` has other `OF_WEIGHTS` than the saved model.
    """
    if Path(start_from).is_dir():
        try:
            check_weights(Path(start_from), values=True, whole=tokenizer)
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"`start_from` is {start_from!r}, whose weights cannot be used: {error}") from error
    saved, made = BridleConfig.from_pretrained(start_from).to_dict(), config.to_dict()
    saved["patch_size"], made["patch_size"] = list(saved["patch_size"]), list(made["patch_size"])
    if other := [name for name in OF_WEIGHTS if saved[name] != made[name]]:
        there, here = (", ".join(f"{name} {each[name]}" for name in other) for each in (saved, made))
        raise ValueError(
            f"`start_from` is {start_from!r}, whose weights do not fit `model`: it has {there}, and the recipe {here}; "
            "take those of the weights, or a recipe that has them."
        )


def start_model(config: BridleConfig, start_from: str, tokenizer: bool) -> BridleForPreTraining:
    """A pretraining model with the encoder of a saved model and new other parts, or with all parts of it (`tokenizer`).

    Raises:
        ValueError: weights are missing, or of other sizes than `config` says.
    """
    cls = BridleForPreTraining if tokenizer else BridleModel
    try:
        saved, info = cls.from_pretrained(start_from, config=config, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise ValueError(f"`start_from` is {start_from!r}, whose weights cannot be read: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"`start_from` is {start_from!r}, whose weights do not fit `model`: {error}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"`start_from` is {start_from!r}, where weights are missing: {missing}.")
    if tokenizer:
        return saved
    whole = (config.architectures or [BridleModel.__name__])[0]  # `config_of` keeps those of the saved model
    if whole != BridleModel.__name__:
        logger.info("of %s, a %s, the encoder is taken and nothing else", start_from, whole)
    model = BridleForPreTraining(config)
    model.bridle.load_state_dict(saved.state_dict())
    return model
