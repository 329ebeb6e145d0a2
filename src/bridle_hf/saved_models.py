"""Checks of a saved model before its weights are loaded."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from .configuration_bridle import BridleConfig
from .data.modalities import load_processor
from .hub_connection import check_connection

logger = logging.getLogger(__name__)

PRETRAINED = "a pretraining model such as runs/mine/final"
WEIGHTS = "model.safetensors"
PARTS = "model.safetensors.index.json"  # lists the files of sharded weights


def check_model(source: str, argument: str = "--model") -> None:
    """Load the config of a saved model from a folder or the Hub; for a folder, read the headers of its weights, too.

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
        _check_headers(folder)
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
        for name in _files_of_weights(folder):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{name} is gone")
        _check_headers(folder)
    except (StrictDataclassError, SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        logger.warning("%s is damaged: %s", folder, " ".join(str(error).split()))
        return False
    return True


def _files_of_weights(folder: Path) -> set[str]:
    if not (folder / PARTS).is_file():
        return {WEIGHTS}
    return set(json.loads((folder / PARTS).read_text())["weight_map"].values())


def _check_headers(folder: Path) -> None:
    """Raise an error if a weight file is shorter or longer than its header says."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt"):
            pass


@contextmanager
def without_load_reports() -> Iterator[None]:
    """Silence transformers' load report while loading; the caller checks the missing keys itself."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
