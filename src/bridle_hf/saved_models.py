"""Checks of a saved model before its weights are loaded."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from . import modeling_bridle
from .configuration_bridle import BridleConfig
from .data.listing import name_some
from .data.modalities import load_processor
from .hub_connection import check_connection

logger = logging.getLogger(__name__)

PRETRAINED = "a pretraining model such as runs/mine/final"
WEIGHTS = "model.safetensors"
PARTS = "model.safetensors.index.json"  # lists the files of sharded weights
PICKLED = "pytorch_model*.bin"  # which have no header
Weights = Literal["headers", "values"] | None


def check_model(source: str, argument: str = "--model", weights: Weights = "headers") -> None:
    """Load the config of a saved model from a folder or the Hub, and check the weights of its encoder in a folder.

    Args:
        weights: what to read of them, see `check_weights`; None does not look at them.

    Raises:
        ValueError: there is no such model, or it is damaged.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{argument} is {str(source)!r}, a folder without a config.json; it takes {PRETRAINED}.")
    try:
        if not folder.is_dir():
            check_connection(str(source))
        BridleConfig.from_pretrained(source)
        if folder.is_dir() and weights is not None:
            check_weights(folder, weights == "values")
    except (StrictDataclassError, SafetensorError, TypeError, ValueError, OSError) as error:
        if folder.is_dir():
            raise ValueError(f"{argument} is {str(source)!r}, which cannot be read: {error}") from error
        if not isinstance(error, OSError):
            raise
        lost = isinstance(error, ConnectionError) or "connect to" in str(error)
        hub = "the Hub cannot be reached" if lost else "no such model on the Hub"
        raise ValueError(f"{argument} is {str(source)!r}; there is no such folder here and {hub}.") from error


def is_whole(folder: Path) -> bool:
    """Whether the config, processor and weight files of a run's model are complete. Otherwise a warning says what is
    damaged or missing. Only the headers of the weights are read."""
    try:
        load_processor(str(folder))  # with the config
        check_weights(folder, whole=True)
    except (StrictDataclassError, SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        logger.warning("%s is damaged: %s", folder, " ".join(str(error).split()))
        return False
    return True


def _files_of_weights(folder: Path) -> set[str]:
    if not (folder / PARTS).is_file():
        return {WEIGHTS}
    return set(json.loads((folder / PARTS).read_text())["weight_map"].values())


def check_weights(folder: Path, values: bool = False, whole: bool = False) -> None:
    """Check that a saved model has the weights that its config says. Only the headers of the files are read.

    Args:
        values: read the weights as well, and look for NaN and inf.
        whole: look at all weights, not only at those of the encoder if it has one.

    Raises:
        ValueError: weights are missing, of other sizes, or hold NaN or inf.
        FileNotFoundError, SafetensorError: a file is missing, or shorter or longer than its header says.
    """
    config, found, bad = BridleConfig.from_pretrained(folder), {}, []
    if any(folder.glob(PICKLED)):
        return
    architecture, wanted = (config.architectures or [None])[0], {}
    if architecture in modeling_bridle.__all__:
        with torch.device("meta"):
            wanted = getattr(modeling_bridle, architecture)(config).state_dict()
    if not whole:
        wanted = {key: weight for key, weight in wanted.items() if key.startswith("bridle.")} or wanted
    for name in sorted(_files_of_weights(folder)):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is gone")
        with safe_open(folder / name, "pt") as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            read = set(file.keys()) & (wanted or found).keys() if values else ()
            bad += [key for key in read if not file.get_tensor(key).isfinite().all()]
    if bad:
        raise ValueError(f"weights hold NaN or inf: {name_some(sorted(bad), 3)}")
    if missing := [key for key in wanted if key not in found]:
        raise ValueError(f"weights of a {architecture} are missing: {name_some(missing, 3)}")
    if other := [key for key, weight in wanted.items() if weight.shape != found[key]]:
        there, takes = found[other[0]], tuple(wanted[other[0]].shape)
        raise ValueError(f"weights are of other sizes than its config says: {other[0]} is {there}, not {takes}")


@contextmanager
def without_load_reports() -> Iterator[None]:
    """Silence transformers' load report while loading; the caller checks the missing keys itself."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
