"""Checks of commands before their work: model, processor and data exist, or one line says what is missing. Errors of
the work itself keep their traceback."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import get_available_trackers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from ..configuration_bridle import BridleConfig
from ..data.arguments import AUTO, DataArguments
from ..data.labels import LabelError
from ..data.listing import list_folder
from ..data.media import UnusableDataError
from ..data.modalities import MODALITIES, load_processor
from ..data.opening import NOTHING_TO_READ
from ..data.source import open_source
from ..files import WriteError, at_home, check_writable, end_with
from ..finetuning.lora import require_peft
from ..modeling_bridle import BridleModel
from ..saved_models import check_model
from ..training.evaluating import of_section
from ..training.pretraining import PretrainRecipe
from ..training.waiting import LostProcessError
from ..video_decoding_bridle import require_av
from ..video_processing_bridle import BridleVideoProcessor

logger = logging.get_logger(__name__)

OF_FILES = {".parquet", ".csv", ".tsv", ".json", ".jsonl", ".html", ".npy", ".npz", ".txt", ".onnx"}
OF_FILES |= {".xlsx", ".xls", ".pdf", ".gz", ".zip", ".arrow", ".feather", ".pkl", ".png", ".svg", ".md"}
OF_PRETRAINING = ("checkpoints", "encoder-iter*", "final", "best", "failure", "synthetic", "tensorboard")


@contextmanager
def setting_up(parser, errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Exit with code 2 and a one-line message when the user's input is invalid; with code 1 when a disk is full or
    another process was lost, which says itself why.

    Args:
        parser: the command's `argparse.ArgumentParser`.
        errors: the exceptions that say so.
    """
    try:
        yield
    except (WriteError, LostProcessError) as error:
        parser.exit(1, f"\n{parser.prog}: error: {' '.join(str(error).split())}\n")
    except errors as error:
        end_with(parser, error)


@contextmanager
def reading(parser) -> Iterator[None]:
    """Exit with code 2 and a one-line message when the data of `add_data_options` cannot be used; what is wrong with it
    may be found only while it is read.

    Args:
        parser: the command's `argparse.ArgumentParser`.
    """
    try:
        yield
    except (LabelError, UnusableDataError) as error:
        parser.error(as_options(" ".join(str(error).split())))


def check_output(path: str, dataset: str = "", ending: str = "") -> None:
    """Check that `--output` can be written and is no existing file of the dataset. With `ending`, such as `.csv`, the
    ending of another file format is refused; unknown endings are allowed.

    Raises:
        ValueError, FolderError: it does not.
    """
    file = Path(path)
    what = "a folder" if file.is_dir() else "a device or pipe" if file.exists() and not file.is_file() else ""
    if not path or what:
        raise ValueError(f"--output is {path!r}, {what if path else 'nothing'}; it takes the name of a file.")
    if ending and file.suffix.lower() in OF_FILES - {ending}:
        raise ValueError(f"--output is {path!r}; it takes the name of a {ending} file, such as {file.stem}{ending}.")
    check_writable(file.parent, "the folder of --output")
    folder = Path(at_home(dataset))
    if dataset and folder.is_dir() and file.resolve().is_relative_to(folder.resolve()):
        if file.exists():
            raise ValueError(
                f"--output is {path!r}, which is there already, in --dataset; it takes the name of a new file."
            )
        logger.warning("--output is %r, in --dataset: what reads that folder next finds the file there", path)


def check_apart(output_dir: str, dataset: str) -> None:
    """Raise a `ValueError` where a run would write into the folder that it reads, which a new start moves away."""
    if dataset and Path(at_home(dataset)).resolve() == Path(output_dir).resolve():
        raise ValueError(f"output_dir is {output_dir!r}, the folder of data.dataset; it takes another one.")


def check_recipe(recipe: PretrainRecipe) -> None:
    """Check the output folder, the processor, the data and the set to evaluate on of a pretraining recipe.

    Raises:
        FolderError: `output_dir` cannot be written to.
        ValueError: a setting of the processor that it does not take, or data that `check_data` refuses.
    """
    check_writable(recipe.output_dir, folders=OF_PRETRAINING, files=("metrics.jsonl", "recipe.yaml"))
    check_apart(recipe.output_dir, recipe.data.dataset)
    check_attention(recipe.training.attention)
    _say_what_tracks_nothing(recipe.training.tracker)
    processor = _checked_processor(recipe.build_processor)
    if recipe.data.dataset != "synthetic":  # written by the run
        check_data(recipe.data, processor)
    if recipe.evaluate is not None and recipe.evaluate.dataset != "synthetic":
        try:
            check_data(recipe.evaluate, processor, "evaluate.dataset")
        except ValueError as error:
            raise ValueError(of_section(str(error))) from error


def check_finetuning(recipe: Any) -> None:
    """Check output folder, model, processor and data of a fine-tuning recipe; with a model per fold, those of the first
    fold.

    Raises:
        FolderError: `output_dir` cannot be written to.
        ModuleNotFoundError: `training.lora_rank` without peft.
        ValueError: there is no such model, a setting that its processor does not take, an option that its modality does
            not have, or data that `check_data` refuses.
    """
    check_writable(recipe.output_dir, folders=("fold-*", "final"), files=("finetune.yaml", "results.json"))
    check_apart(recipe.output_dir, recipe.data.dataset)
    check_attention(recipe.training.attention)
    _say_what_tracks_nothing(recipe.training.tracker)
    if recipe.training.lora_rank:
        require_peft()
    source = recipe.model.replace("{fold}", str((recipe.folds or [None])[0]))
    check_model(source, "model", weights=None if recipe.from_scratch else "values")
    check_config(source, recipe.config, recipe.from_scratch)
    processor = _checked_processor(lambda: load_processor(source, recipe.config, **recipe.processor))
    recipe.check_against(BridleConfig.from_pretrained(source, **recipe.config))
    check_data(recipe.data, processor)


def check_config(source: str, changes: dict, from_scratch: bool) -> None:
    """Check what fine-tuning changes in the config of a saved model.

    Raises:
        ValueError: a value that the config does not take, or, unless `from_scratch`, one that the weights do not fit.
    """
    try:
        configs = BridleConfig.from_pretrained(source), BridleConfig.from_pretrained(source, **changes)
        configs[1].validate()  # `from_pretrained` changes values without looking
        with torch.device("meta"):
            before, now = ({name: w.shape for name, w in BridleModel(each).named_parameters()} for each in configs)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"`config`: {error.__cause__ or error}") from error
    if configs[0].modality != configs[1].modality:
        raise ValueError(
            f"`config.modality` is {configs[1].modality!r}, and model={source!r} is one of {configs[0].modality}s."
        )
    lacking = [name for name, shape in now.items() if before.get(name) != shape]
    if lacking and not from_scratch:
        raise ValueError(
            f"`config` is {changes}, for which model={source!r} has no {lacking[0]} of {tuple(now[lacking[0]])}; it "
            "takes what leaves the sizes of weights, or from_scratch=true."
        )


def check_attention(attention: str | None) -> None:
    """Raise a `ValueError` for an attention implementation that transformers does not have, or not here."""
    if attention in (None, AUTO):
        return
    try:
        with torch.device("meta"):
            BridleModel(BridleConfig(num_hidden_layers=1, attn_implementation=attention))
    except (ValueError, ImportError) as error:
        raise ValueError(f"`training.attention` is {attention!r}: {error}") from error


def _say_what_tracks_nothing(tracker: str | None) -> None:
    if tracker is not None and tracker not in map(str, get_available_trackers()):
        install = '"bridle-hf[tracking]"' if tracker == "tensorboard" else tracker.replace("_", "-")
        logger.warning(
            f"training.tracker is {tracker!r}, which is not installed: the run writes metrics.jsonl alone. "
            f"pip install {install}, or training.tracker=null to be content with that."
        )


def check_data(data: DataArguments, processor, argument: str = "data.dataset") -> None:
    """Open the dataset that `data` names, with all its splits, without reading a clip.

    Args:
        data, processor: as `open_source` takes them.
        argument: what the user calls the name of the dataset.

    Raises:
        ValueError: there is no such dataset, or it lacks a split or a column.
        ModuleNotFoundError: videos, and nothing that decodes them.
    """
    if isinstance(processor, BridleVideoProcessor):
        require_av()
    name = data.dataset
    path = Path(at_home(name))
    if name and path.is_file():
        raise ValueError(f"{argument} is {name!r}, a file, with data.files beside it; it takes one of both.")
    try:
        for split in filter(None, (data.split, data.test_split)):
            open_source(replace(data, split=split, test_split=None), processor)
    except OSError as error:
        if path.is_dir():
            raise
        if isinstance(error, NOTHING_TO_READ):
            raise ValueError(f"{argument} is {name!r}, which holds no file that datasets can read.") from error
        hub = "the Hub cannot be reached" if isinstance(error, ConnectionError) else "no such dataset on the Hub"
        yours = f" Give yours: {argument}=DIR." if name.startswith("my_") else ""  # of a recipe that says so
        raise ValueError(f"{argument} is {name!r}; there is no such folder here and {hub}.{yours}") from error
    except ValueError as error:
        message = str(error)
        # what the package says names its key; what the library says does not
        if not message.startswith("data."):
            by_name = "Bad split: train" in message and data.files is None and path.is_dir()
            hint = "; data.files='**' reads all files as split train" if by_name else ""
            signs = {
                "split": f"Bad split: {data.split}.",
                "test_split": f"Bad split: {data.test_split}.",
                "name": f"BuilderConfig {data.name!r}",
            }
            key = next((key for key, sign in signs.items() if sign in message), None)
            at_fault = f" and data.{key} {getattr(data, key)!r}" if key else ""
            message = f"{argument} is {name!r}{at_fault}: {message}{hint}"
        raise ValueError(as_options(message) if argument.startswith("-") else message) from error


def modalities_of_files(dataset: str) -> list[str]:
    """The modality that can read most files of a folder, or several of equal counts; [] if it is no folder. Videos,
    whose sound audio recipes can read as well, count as videos."""
    folder = Path(at_home(dataset))
    if not folder.is_dir():
        return []
    ends = Counter(Path(name).suffix.lower() for name in list_folder(str(folder)).names)
    read = {name: {end: ends[end] for end in each.extensions() if ends[end]} for name, each in MODALITIES.items()}
    most = max(sum(counts.values()) for counts in read.values())
    best = [name for name, counts in read.items() if counts and sum(counts.values()) == most]
    silent = [name for name in best if MODALITIES[name].waveform is None]
    return [name for name in best if name in silent or all(read[name] != read[other] for other in silent)]


def has_column(data: DataArguments, processor, column: str) -> bool:
    """Whether the dataset that `data` names has a column.

    Raises:
        ValueError: it lacks one that `data` names.
    """
    open_source(replace(data, label_column=None), processor)
    try:
        open_source(replace(data, label_column=None, fold_column=column), processor)
    except ValueError:
        return False
    return True


def as_options(message: str) -> str:
    """A message that names keys of the section `data`, with the options of `add_data_options` in their place."""
    keys = r"dataset|files|(?:test_)?split|(?:input|label|fold)_column|exclude|max_bad_share"
    return re.sub(rf"\bdata\.({keys})\b", _option, message)


def _option(match: re.Match) -> str:
    return "--" + match[1].replace("_", "-")


def _checked_processor(build):
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise ValueError(f"`processor`: {error}") from error
