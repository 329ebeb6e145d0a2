"""Conversion of reference checkpoints to `from_pretrained` folders and back.

bridle convert CHECKPOINT FOLDER --source bridle --modality audio
bridle convert FOLDER CHECKPOINT --source bridle --reverse
"""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .. import modeling_bridle
from ..configuration_bridle import MODALITY_DEFAULTS, BridleConfig
from ..data.modalities import MODALITIES, build_processor, processor_keys
from ..files import check_writable, end_with, share_files, whole_file
from ..loading import open_model, saved_class
from ..modeling_bridle import BridleForPreTraining, BridleModel
from ..recipe_reader import read_yaml
from .export import to_official
from .key_maps import MASKED_AUTOENCODERS, SOURCES
from .official import (
    OF_COLD_START,
    OF_TRAINED,
    ConversionReport,
    load_official,
    our_names,
    our_values,
    read_checkpoint,
    said_beside,
)

logger = logging.getLogger(__name__)

# Original values of tensors that the model does not hold (of the tokenizer that it is not) or whose round trip is not
# bit-identical. Saved next to the model so that `--reverse` is exact.
RESIDUE = "reference.safetensors"

# What may be given as key=value.
KEYS = {entry.name for entry in fields(BridleConfig)} - {"modality"} | {"num_labels", "processor"}

# Mean and deviation of the log-mel values a source was trained with, where they are not BRIDLE's.
NORMALIZATION = {"audiomae": {"mean": -4.2677393, "std": 4.5689974}}


def _processor(config: BridleConfig, settings: dict, **usual):
    if not isinstance(settings, dict):
        raise ValueError(f"`processor` is {settings!r}; it takes a mapping, such as {{mean: -6.6, std: 5.4}}.")
    known = processor_keys({"model": {"modality": config.modality}})
    if unknown := set(settings) - set(known):
        name = MODALITIES[config.modality].processor.__name__
        raise ValueError(f"`processor.{min(unknown)}` is no argument of {name}.")
    return build_processor(config, **usual | settings)


def convert(checkpoint, folder, source="bridle", modality=None, processor=None, **overrides) -> ConversionReport:
    """Write the folder of a reference checkpoint: weights, configuration and processor.

    The model is a `BridleForPreTraining` where the file holds a decoder of codes, a classifier where it holds a head,
    and else a `BridleModel`.

    Args:
        checkpoint: what `load_official` takes.
        folder: where `from_pretrained` finds it.
        source (`str`): `"bridle"`, `"audiomae"`, `"vit-mae"` or `"videomae"`.
        modality (`str`, *optional*): that of the source when left out, audio for BRIDLE.
        processor (`dict`, *optional*): arguments of the processor, such as `mean` and `std`.
        overrides: fields of `BridleConfig`, see `load_official`.

    Raises:
        ValueError: as `load_official`; an encoder without its final norm, which no folder can say; or `checkpoint` lies
            in `folder`.
    """
    check_writable(folder, "OUT_DIR")
    if not isinstance(checkpoint, Mapping) and _lies_in(checkpoint, folder):
        raise ValueError(f"OUT_DIR is {str(folder)!r}, where CHECKPOINT lies; it takes another folder.")
    modality = modality or ("audio" if source == "bridle" else MASKED_AUTOENCODERS[source].modality)
    beside = ConversionReport()
    state = read_checkpoint(checkpoint, beside)
    cls = _model_class(state, modality)
    overrides = said_beside(checkpoint) | overrides
    model, report = load_official(state, cls, modality, source, return_report=True, **overrides)
    report.dropped |= beside.dropped
    if cls is BridleModel and isinstance(model.layernorm, torch.nn.Identity):
        raise ValueError(
            "`checkpoint` is an encoder without its final norm; convert one with the norm or with its head."
        )
    front_end = _processor(model.config, processor or {}, **NORMALIZATION.get(source, {}))
    model.save_pretrained(folder)
    front_end.save_pretrained(folder)
    back = to_official(model, source)
    changed = [name for name in back if name in state and not torch.equal(state[name], back[name])]
    changed += [name for name, reason in report.dropped.items() if reason in (OF_COLD_START, OF_TRAINED)]
    Path(folder, RESIDUE).unlink(missing_ok=True)
    if changed:
        save_file({name: state[name].contiguous() for name in changed}, Path(folder, RESIDUE))
    share_files(Path(folder))
    return report


def reverse(folder, checkpoint, source="bridle") -> None:
    """Write the reference checkpoint of a folder: under `model` in a torch file, or a `.safetensors` file.

    What `convert` read comes back to the bit, as long as the folder's weights are those it wrote.

    Raises:
        ValueError: the folder holds no BRIDLE model, or one that lacks weights; `checkpoint` is to lie in it; or the
            reference has no place for a part or a weight of the model.
        FolderError: `checkpoint` cannot be written.
    """
    path = Path(checkpoint)
    check_writable(path.parent, "the folder of OUT_DIR")
    if _lies_in(path, folder):
        raise ValueError(f"OUT_DIR is {str(checkpoint)!r}, in the folder that is read; it takes a file elsewhere.")
    model = open_model(saved_class(folder, "CHECKPOINT"), folder, "CHECKPOINT")
    state = to_official(model, source)
    residue = Path(folder, RESIDUE)
    if residue.is_file():
        exact = state | load_file(residue)
        if _is_state_of(model, exact, source):
            state = exact
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        if path.suffix == ".safetensors":
            save_file(state, partial)
        else:
            torch.save({"model": state}, partial)


def _lies_in(file, folder) -> bool:
    """Whether a reference's file lies in a model's folder, where one could be written over the other."""
    return Path(file).resolve().parent == Path(folder).resolve()


def _model_class(state, modality: str):
    if "encoder_decoder.mask_token" in state:
        return BridleForPreTraining
    has_head = any(name in state for name in ("head.weight", "classifier.weight"))
    return getattr(modeling_bridle, MODALITIES[modality].classifier) if has_head else BridleModel


def _is_state_of(model, state: dict, source: str) -> bool:
    """Whether `load_official(state)` gives exactly the weights of the model."""
    report = ConversionReport()
    found, names = our_names(state, model.config.modality, source, report)
    values, own = our_values(model, found, names, report), model.state_dict()
    return all(torch.equal(value, own[name]) for name, value in values.items())


def _assignment(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value, such as num_attention_heads=12")
    try:
        return key, read_yaml(value)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(f"{text!r}: the value is no YAML: {reason}") from error


def main(arguments=None, prog="python -m bridle_hf.hub.convert") -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    parser.add_argument(
        "input",
        metavar="CHECKPOINT",
        help="a .pth or .safetensors file, or a folder of transformers'; with --reverse one of ours",
    )
    parser.add_argument("output", metavar="OUT_DIR", help="a folder; with --reverse a .pth or .safetensors file")
    parser.add_argument("--source", choices=SOURCES, required=True, help="whose names the checkpoint has")
    parser.add_argument("--modality", choices=MODALITY_DEFAULTS, help="that of the source; audio for bridle")
    parser.add_argument("--reverse", action="store_true", help="from a folder to a checkpoint")
    parser.add_argument(
        "overrides",
        nargs="*",
        type=_assignment,
        metavar="key=value",
        help="fields of BridleConfig that no shape tells; processor={mean: -6.6, std: 5.4} for the processor",
    )
    given = parser.parse_intermixed_args(arguments)
    if given.reverse and (given.modality or given.overrides):
        parser.error("--reverse takes neither --modality nor key=value: the folder says both")
    if unknown := next((key for key, _ in given.overrides if key not in KEYS), None):
        takes = f"give --{unknown}" if unknown in ("modality", "source") else "it takes such as num_attention_heads"
        parser.error(f"key=value: {unknown!r} is no field of BridleConfig that can be set here; {takes}")
    try:
        if given.reverse:
            reverse(given.input, given.output, given.source)
        else:
            report = convert(given.input, given.output, given.source, given.modality, **dict(given.overrides))
            for name, reason in sorted(report.dropped.items()):
                logger.info("dropped %s: %s", name, reason)
            for name, assumption in report.assumed.items():
                logger.info("assumed: %s=%s", name, assumption)
            for name, reason in sorted(report.initialised.items()):
                logger.info("not in the file: %s, %s", name, reason)
            logger.info("%d keys used, %d dropped", len(report.used), len(report.dropped))
    except (ValueError, OSError, StrictDataclassError, SafetensorError) as error:
        end_with(parser, error)
    logger.info("wrote %s", given.output)


if __name__ == "__main__":
    main()
