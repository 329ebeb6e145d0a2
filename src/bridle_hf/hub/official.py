"""Loading of reference checkpoints into our models, with every key accounted for."""

import argparse
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..configuration_bridle import MODALITY_DEFAULTS, BridleConfig
from ..modeling_bridle import BridleForPreTraining, BridleModel, BridleTokenizer
from . import key_maps
from .sizes import PATCH_WEIGHT, TABLE, check_axes, infer_config, position_tables

logger = logging.getLogger(__name__)


@dataclass
class ConversionReport:
    """What became of each key of a checkpoint and each weight of the model.

    Attributes:
        used: reference key -> the name in our model it became, or became a part of.
        dropped: reference key -> why nothing was made of it.
        initialised: name in our model the file has nothing for -> what it holds instead.
        assumed: what no weight tells and nobody gave -> what was assumed.
    """

    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)


# Files of weights in a folder of transformers, and the fields of its config.json that cannot be read off the weights.
OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin")
OF_NO_WEIGHT = ("num_attention_heads", "hidden_act", "layer_norm_eps", "id2label")

# Why a tokenizer's tensors are dropped: a reference checkpoint always holds those of both.
OF_TRAINED, OF_COLD_START = (
    "of the trained tokenizer, not of a cold start",
    "of the cold start, not of a trained tokenizer",
)


def load_official(
    state_dict_or_path,
    cls=BridleForPreTraining,
    modality="audio",
    source=None,
    return_report=False,
    cold_start=None,
    **overrides,
):
    """Load a checkpoint of the reference code into a model of ours, in evaluation mode, with the same outputs.

    The encoders of AudioMAE, ViT-MAE and VideoMAE load too, alone or fine-tuned, under the names of their own code or
    of transformers. Their decoders predict pixels and are dropped.

    Sizes are read off the weights' shapes; heads, activation, epsilon and the names of classes off transformers'
    config.json where it lies beside the weights. What neither tells is `BridleConfig`'s default unless given as an
    override: `num_attention_heads`, `estimator_num_attention_heads`, `decoder_num_attention_heads` (inferred for a Swin
    decoder), `decoder_window_size`, and `input_size` where there is no square image, no 128 mel bins or no stored
    position table.

    Stored position tables are carried as they are (`position_layout="table"`), and a shorter clip or a smaller image
    takes its part of them, unless they are the sin-cos table of the true grid, which is computed for any size
    (`"grid"`). Passing `position_layout="wrapped"` replaces the reference's audio tables by the same ones computed, for
    any length. A stored position of the CLS token is added to the token.

    A file without any tokenizer key gives a fresh tokenizer (cold start), a warning, and an entry in the report; the
    sizes of its codebooks are then M = 4 and K from the width of the decoder's output, or `quantizer_config`.

    Args:
        state_dict_or_path: a `{name: tensor}` mapping, or the path of a `.safetensors` or a torch file (`.pth`, read
            with `weights_only=True`), or a folder of transformers'. Both may be wrapped in `model` or `module`, and
            names may start with `module.`.
        cls: `BridleForPreTraining`, `BridleModel`, `BridleTokenizer` or a classification class (for fine-tuned files).
        modality (`str`): `"audio"`, `"image"` or `"video"`.
        source (`str`, *optional*): `"bridle"`, `"audiomae"`, `"vit-mae"` or `"videomae"`; told by the names when left
            out.
        return_report (`bool`): also return a `ConversionReport`.
        cold_start (`bool`, *optional*): whether the codes are still those of the cold start, that is, whether the
            checkpoint is of iteration 1. No weight tells: the reference saves the trained tokenizer and the projection
            of the cold start alike. When left out it is assumed to be of a later iteration, and the report says so;
            except where the file holds no trained tokenizer.
        overrides: fields of `BridleConfig`; `quantizer_config` a dict of some fields of `BridleQuantizerConfig`.

    Returns:
        the model, on the CPU wherever the weights were, or (model, report).

    Raises:
        ValueError: keys that are unknown or missing (all are listed), an override that is no field of the configuration
            or contradicts the weights.
    """
    if modality not in MODALITY_DEFAULTS:
        raise ValueError(f"`modality` is {modality!r}; it takes one of {', '.join(map(repr, MODALITY_DEFAULTS))}.")
    report = ConversionReport()
    state = read_checkpoint(state_dict_or_path, report)
    found, names = our_names(state, modality, source, report)
    if cls is BridleForPreTraining and not any(name.startswith("decoder.") for name in found):
        raise ValueError("`cls` is BridleForPreTraining; the checkpoint holds no decoder: load a BridleModel.")
    if cold_start is None:
        cold_start = not any(name.startswith("tokenizer.estimator.") for name in found)  # a trained one has it
        if not cold_start and cls in (BridleForPreTraining, BridleTokenizer):
            report.assumed["cold_start"] = "False: the tokenizer is taken to be trained, not the cold start"
            logger.warning("`cold_start` is not given; the tokenizer is taken to be trained (cold_start=False).")
    found = _for_cold_start(found) if cold_start else found
    overrides = said_beside(state_dict_or_path) | overrides
    classes = overrides.pop("id2label", None)
    config = infer_config(found, names, modality, overrides | {"cold_start": cold_start})
    if isinstance(classes, dict) and set(map(str, classes)) == set(map(str, range(config.num_labels))):
        config.id2label = _named_apart(classes)
        config.label2id = {name: number for number, name in config.id2label.items()}
    if cls is BridleModel and _ends_without_norm(found, modality):
        logger.warning("The encoder has no final norm: load a saved copy with `use_final_norm=False`.")
        model = cls(config, use_final_norm=False)
    else:
        model = cls(config)
    model.load_state_dict(our_values(model, found, names, report))
    if "num_attention_heads" not in overrides:
        report.assumed["num_attention_heads"] = f"{config.num_attention_heads}: no weight tells"
    model.eval()
    return (model, report) if return_report else model


def _named_apart(classes: Mapping) -> dict[int, str]:
    """Names of classes by number. A name that occurs twice, as "crane" does in ImageNet, gets its numbers added."""
    times = Counter(classes.values())
    return {int(n): f"{name} ({n})" if times[name] > 1 else name for n, name in classes.items()}


def _for_cold_start(found: dict) -> dict:
    """`found`, with patch embedding and positions of the tokenizer's encoder also under their cold-start names."""
    return found | {
        name.replace(encoder, cold_start): tensor
        for cold_start, encoder in key_maps.COLD_START.items()
        for name, tensor in found.items()
        if name.startswith(f"tokenizer.{encoder}")
    }


def _ends_without_norm(found: dict, modality: str) -> bool:
    """Whether the norm is the head's: in fine-tuned files, and in transformers' VideoMAE where it is to be pooled."""
    parts = {".".join(name.split(".")[:2]) for name in found}
    may_lack_norm = key_maps.REFERENCE_FORMATS[modality].may_lack_norm
    is_alone = not any(part.startswith("decoder.") for part in parts)
    return "bridle.layernorm" not in parts and ("layernorm.weight" in parts or (is_alone and may_lack_norm))


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _listed(names) -> str:
    return ", ".join(sorted(names))


def read_checkpoint(source, report) -> dict[str, torch.Tensor]:
    """The weights of a mapping or a file, without wrappers and prefixes."""
    if not isinstance(source, Mapping):
        if not isinstance(source, str | os.PathLike):
            raise TypeError(f"`state_dict_or_path` is a {type(source).__name__}; it takes a mapping or a path.")
        source = _load_file(source)
    while wrapper := next((name for name in ("model", "module") if isinstance(source.get(name), Mapping)), None):
        report.dropped.update({name: "beside the weights, not among them" for name in source if name != wrapper})
        source = source[wrapper]
    others = [k for k, value in source.items() if not (isinstance(k, str) and isinstance(value, torch.Tensor))]
    if others or not source:
        raise ValueError(
            "`state_dict_or_path` takes named tensors, alone or under 'model' or 'module'; "
            + (f"these are none: {_listed(map(str, others))}." if others else "it is empty.")
        )
    if all(name.startswith("module.") for name in source):
        source = {name.removeprefix("module."): value for name, value in source.items()}
    return {name: value.cpu() for name, value in source.items()}  # tables are compared with ours, which are there


def said_beside(source) -> dict:
    """Read fields of `BridleConfig` from the config.json of transformers in a folder, or beside a file of weights.

    Raises:
        ValueError: the file is damaged.
    """
    if isinstance(source, Mapping):
        return {}
    folder = Path(source).parent if Path(source).name in OF_A_FOLDER else Path(source)
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        fields_there = dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    said = {name: fields_there[name] for name in OF_NO_WEIGHT if name in fields_there}
    shown = [f"{name}={value}" for name, value in said.items() if name != "id2label"]
    logger.info("%s says %s", file, ", ".join(shown) or "nothing of heads, activation and epsilon")
    return said


def _load_file(path) -> Mapping:
    if os.path.isdir(path):
        inside = (os.path.join(path, name) for name in OF_A_FOLDER)
        if (found := next(filter(os.path.isfile, inside), None)) is None:
            raise ValueError(f"{path} is a folder without a model.safetensors or pytorch_model.bin; name the file.")
        path = found
    elif not os.path.exists(path):
        raise ValueError(
            f"there is no file {path}; if it is a model of the Hub, fetch it by `hf download {path} --local-dir DIR` "
            "and give DIR."
        )
    # the reference saves its parsed command line beside the weights
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            if os.fspath(path).endswith(".safetensors"):
                return load_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged file or a forbidden object leads to; torch says to permit it
            raise ValueError(
                f"`state_dict_or_path` is {path}, which is damaged or holds other things than tensors and numbers."
            ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"`state_dict_or_path` is {path}, which holds a {type(content).__name__}; it takes a mapping.")
    return content


def our_names(state: dict, modality: str, source: str | None, report) -> tuple[dict, dict]:
    """Our name -> (tensor, the keys it came from), and the map of names that was used.

    Raises:
        ValueError: a name that nobody knows, a third of a tensor that lacks the others, or a weight of other axes.
    """
    names, droppable = _choose_map(state, modality, source)
    found, thirds, unknown = {}, {}, []
    for name, tensor in state.items():
        if (ours := key_maps.rename(name, names)) is None:
            reason = next((reason for start, reason in droppable.items() if name.startswith(start)), None)
            if reason is None:
                unknown.append(name)
            else:
                report.dropped[name] = reason
        elif ours.endswith("]"):
            thirds.setdefault(ours[:-3], {})[ours[-2]] = (tensor, name)
        else:
            found[ours] = (tensor, (name,))
    if unknown:
        raise ValueError(f"The checkpoint has unknown keys for modality {modality!r}: {_listed(unknown)}.")
    for ours, parts in thirds.items():
        found[ours] = _join_thirds(ours, parts, names)
    check_axes(found)
    return found, names


def _choose_map(state: dict, modality: str, source: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """The map of names, and the beginnings of those that are dropped with the reason."""
    if source is not None and source not in key_maps.SOURCES:
        raise ValueError(f"`source` is {source!r}; it takes one of {', '.join(map(repr, key_maps.SOURCES))}.")
    if source is None:
        prefixed = any(name.startswith(("encoder_decoder.", "tokenizer.")) for name in state)
        others = {encoder.modality: name for name, encoder in key_maps.MASKED_AUTOENCODERS.items()}
        source = "bridle" if prefixed else others[modality]
    if source == "bridle":
        return key_maps.bridle(state, modality), key_maps.DROPPED
    encoder = key_maps.MASKED_AUTOENCODERS[source]
    if encoder.modality != modality:
        raise ValueError(f"`modality` is {modality!r}; a checkpoint of {source} takes {encoder.modality!r}.")
    return encoder.names | encoder.aliases, key_maps.DROPPED_DECODER


def _join_thirds(ours: str, parts: dict, names: dict) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Concatenate queries, keys and values to our single tensor. Keys may have no bias."""
    missing = [key_maps.reference_name(f"{ours}[{part}]", names) for part in "qv" if part not in parts]
    if "k" not in parts and not ours.endswith(".bias"):
        missing.append(key_maps.reference_name(f"{ours}[k]", names))
    if missing:
        raise ValueError(
            f"The checkpoint lacks {_listed(missing)} beside {_listed(name for _, name in parts.values())}."
        )
    key = parts["k"][0] if "k" in parts else torch.zeros_like(parts["q"][0])
    return torch.cat([parts["q"][0], key, parts["v"][0]]), tuple(name for _, name in parts.values())


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def prefix_of(model) -> str:
    """The prefix of a part's parameter names in the whole model."""
    return "bridle." if isinstance(model, BridleModel) else "tokenizer." if isinstance(model, BridleTokenizer) else ""


def our_values(model, found: dict, names: dict, report: ConversionReport) -> dict[str, torch.Tensor]:
    """Build the model's state dict from the keys found; every key gets an entry in the report."""
    prefix = prefix_of(model)
    wanted = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    values, faults, dropped = {}, [], {}
    for name, (tensor, keys) in found.items():
        if name in wanted:
            values[name] = _convert(name, tensor, found, model.config)
            report.used.update(dict.fromkeys(keys, name.removeprefix(prefix)))
            if values[name].shape != wanted[name].shape:
                faults.append(f"{keys[0]} is {tuple(tensor.shape)} where {tuple(wanted[name].shape)} is wanted")
        elif reason := _why_unwanted(name, type(model).__name__, wanted):
            dropped.update(dict.fromkeys(keys, reason))
        else:
            faults += [f"{key} is unknown" for key in keys]
    report.dropped.update({key: reason for key, reason in dropped.items() if key not in report.used})
    has_tokenizer = any(name.startswith("tokenizer.") for name in found)
    for name in [name for name in wanted if name not in values]:
        if (filled := fill(name, wanted[name], has_tokenizer, model.config)) is None:
            faults.append(f"{key_maps.reference_name(name, names)} is missing")
        else:
            values[name], report.initialised[name.removeprefix(prefix)] = filled
    if faults:
        raise ValueError(f"The checkpoint does not fit {type(model).__name__}: {'; '.join(sorted(faults))}.")
    if not has_tokenizer and any(name.startswith("tokenizer.") for name in wanted):
        logger.warning("The checkpoint holds no tokenizer: that of %s is fresh.", type(model).__name__)
    if has_tokenizer and model.config.quantizer_config.ema_mode == "counts":
        _restart_averages(values)
    return {name.removeprefix(prefix): value for name, value in values.items()}


def _why_unwanted(name: str, model_name: str, wanted: dict) -> str | None:
    if name.split(".")[0] not in {other.split(".")[0] for other in wanted}:
        return f"no part of {model_name}"
    if name.startswith("tokenizer.") and not name.startswith("tokenizer.quantizer."):
        is_cold = any(other.startswith("tokenizer.cold_start.") for other in wanted)
        if name.startswith("tokenizer.cold_start.") != is_cold:
            return OF_TRAINED if is_cold else OF_COLD_START
    if name.endswith(TABLE):
        return "the same table is computed from the grid"
    if name.startswith("bridle.layernorm."):
        return f"{model_name} normalises after pooling instead"
    return None


def fill(name: str, fresh: torch.Tensor, has_tokenizer: bool, config: BridleConfig):
    """(value, reason) for a tensor that the file has no key for, `None` if there must be one."""
    if name.startswith("tokenizer.") and not has_tokenizer:
        return fresh, "fresh: the file holds no tokenizer"
    shared = key_maps.REFERENCE_FORMATS[config.modality].shares_decoder_class
    if shared and name.endswith(("decoder.embed.bias", "estimator.embed.bias")):
        return torch.zeros_like(fresh), "zero: the reference has no bias here"
    if name.endswith(".initialized"):
        return torch.ones_like(fresh), "one: the file holds codebooks"
    return None


def _convert(name: str, tensor: torch.Tensor, found: dict, config: BridleConfig) -> torch.Tensor:
    """The reference's tensor as ours: the same numbers in our shape."""
    if name.endswith(PATCH_WEIGHT):
        return tensor.flatten(1)  # (D, C, *patch) -> (D, C * prod(patch))
    if name.endswith(TABLE):
        takes_cls = config.use_cls_token and config.decoder_type == "plain"
        if name.startswith("decoder.") and takes_cls and tensor[0, 0].any():
            raise ValueError("`decoder_pos_embed` has a position for the CLS token; our decoder takes zero there.")
        return position_tables({name: (tensor, ())}, config.use_cls_token)[name]
    if name.endswith("embeddings.cls_token"):
        table, _ = found.get(name.replace("cls_token", TABLE), (None, ()))
        fits = table is not None and table.shape[2] == tensor.shape[2]  # otherwise the faults say it
        return tensor + table[:, :1] if fits else tensor
    if name.endswith(".embed") and config.quantizer_config.type == "residual":
        return tensor[:-1]  # without the row for padding
    if name.endswith(".initialized"):
        return tensor.reshape(())
    return tensor


def _restart_averages(values: dict):
    """Start the averages of eq. 10 and 12 at N c: the reference's obey another rule. No N may be zero."""
    for name in [name for name in values if name.endswith(".cluster_size")]:
        book = name.removesuffix(".cluster_size")
        values[name] = values[name].clamp(min=1.0)
        values[f"{book}.embed_sum"] = values[f"{book}.embed"] * values[name][:, None]
