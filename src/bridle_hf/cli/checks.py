"""Checks of commands before their work: model, processor and data exist, or one line says what is missing. Errors of
the work itself keep their traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.modalities import load_processor
from ..data.source import open_source
from ..modeling_bridle import BridleForClassification, BridleModel
from ..training.pretraining import PretrainRecipe

NOTHING_TO_READ = EmptyDatasetError, DataFilesNotFoundError
PRETRAINED, CLASSIFIER = (
    "a pretraining model such as runs/mine/final",
    "a fine-tuned one such as runs/mine_classes/fold-1",
)


@contextmanager
def setting_up(parser, errors: type | tuple[type, ...] = (ValueError, OSError)) -> Iterator[None]:
    """Exit with code 2 and a one-line message when the user's input is invalid.

    Args:
        parser: the command's `argparse.ArgumentParser`.
        errors: the exceptions that say so.
    """
    try:
        yield
    except errors as error:
        parser.error(" ".join(str(error).split()))


def check_recipe(recipe: PretrainRecipe) -> None:
    """Check the processor and the data of a pretraining recipe.

    Raises:
        ValueError: a setting of the processor that it does not take, or data that `check_data` refuses.
    """
    processor = _checked_processor(recipe.build_processor)
    if recipe.data.dataset != "synthetic":  # written by the run
        check_data(recipe.data, processor)


def check_finetuning(recipe: Any) -> None:
    """Check model, processor and data of a fine-tuning recipe; with a model per fold, those of the first fold.

    Raises:
        ValueError: there is no such model, a setting that its processor does not take, or data that `check_data`
            refuses.
    """
    source = recipe.model.replace("{fold}", str((recipe.folds or [None])[0]))
    check_model(source, "model")
    check_data(recipe.data, _checked_processor(lambda: load_processor(source, **recipe.processor)))


def check_data(data: DataArguments, processor, argument: str = "data.dataset") -> None:
    """Open the dataset that `data` names, with all its splits, without reading a clip.

    Args:
        data, processor: as `open_source` takes them.
        argument: what the user calls the name of the dataset.

    Raises:
        ValueError: there is no such dataset, or it lacks a split or a column.
    """
    name = data.dataset
    path, files = Path(name).expanduser(), "--files" if argument.startswith("-") else "data.files"
    if name and path.is_file():
        raise ValueError(f"{argument} is {name!r}, a file; it takes a folder or the id of a dataset on the Hub.")
    try:
        for split in filter(None, (data.split, data.test_split)):
            open_source(replace(data, split=split, test_split=None), processor)
    except OSError as error:
        if data.files is not None and (path.is_dir() or isinstance(error, NOTHING_TO_READ)):
            raise ValueError(f"{files}={data.files!r} matches no readable file in {name!r}.") from error
        if isinstance(error, NOTHING_TO_READ):
            raise ValueError(f"{argument} is {name!r}, a folder that holds no file that datasets can read.") from error
        if path.is_dir():
            raise
        hub = "the Hub cannot be reached" if isinstance(error, ConnectionError) else "no such dataset on the Hub"
        raise ValueError(f"{argument} is {name!r}; there is no such folder here and {hub}.") from error
    except ValueError as error:
        # what the package says names its key; what the library says does not
        if str(error).startswith("data."):
            raise
        by_name = "Bad split: train" in str(error) and data.files is None and path.is_dir()
        hint = f"; {files}='**/*.wav', say, reads all such files as split train" if by_name else ""
        raise ValueError(f"{argument} is {name!r}: {error}{hint}") from error


def check_model(source: str, argument: str = "--model") -> None:
    """Load the config of a saved model from a folder or the Hub.

    Raises:
        ValueError: there is none.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{argument} is {str(source)!r}, a folder without a config.json; it takes {PRETRAINED}.")
    try:
        BridleConfig.from_pretrained(source)
    except OSError as error:
        hub = "the Hub cannot be reached" if "connect to" in str(error) else "no such model on the Hub"
        raise ValueError(f"{argument} is {str(source)!r}; there is no such folder here and {hub}.") from error


def open_model(cls: type[PreTrainedModel], source: str, argument: str = "--model") -> PreTrainedModel:
    """Loads a model whose weights are all there; transformers draws missing ones at random and goes on.

    Raises:
        ValueError: there is no such model, or a part of it has no weights.
    """
    check_model(source, argument)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a table of all names
    try:
        model, report = cls.from_pretrained(source, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    if missing := report["missing_keys"]:
        part, takes = _part(cls, missing)
        raise ValueError(f"{argument} is {str(source)!r}, which holds no {part}; it takes {takes}.")
    return model


def _part(cls: type, missing: list[str]) -> tuple[str, str]:
    """What a model without these weights lacks, and what to give instead."""
    if issubclass(cls, BridleForClassification):
        return "classifier", CLASSIFIER
    no_encoder = cls is BridleModel or any(key.startswith("bridle.") for key in missing)
    return "encoder" if no_encoder else "tokenizer", PRETRAINED


def _checked_processor(build):
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise ValueError(f"`processor`: {error}") from error
