"""Columns of a dataset: which one holds the media, and how it is passed on undecoded."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import datasets
import numpy as np

from .arguments import DataArguments
from .fields import type_of, warn_once
from .listing import name_some
from .media import is_array
from .modalities import modality_of

logger = logging.getLogger(__name__)

PATHS = ("file_name", "filename", "file", "filepath", "path")  # usual names of columns of paths


class Raw:
    """A column that is passed on unchanged; those of the library need torchcodec even to pass on a path."""

    def encode_example(self, value) -> dict:
        if isinstance(value, (str, os.PathLike)):
            return {"bytes": None, "path": os.fspath(value)}
        return {"bytes": value, "path": None} if isinstance(value, bytes) else value


class RawAudio(Raw, datasets.Audio):
    pass


class RawVideo(Raw, datasets.Video):
    pass


RAW = {datasets.Audio: RawAudio, datasets.Video: RawVideo}


def undecoded(
    dataset: datasets.IterableDataset, files: list[str] | None = None
) -> tuple[datasets.IterableDataset, dict]:
    """A stream whose audio, images and videos are not decoded, and the types of its columns. `files` are its shards."""
    if dataset.features is None:  # of tables of text, such as csv files, whose paths are read as they are
        return dataset, {key: _type_of(value) for key, value in first_example(dataset, files).items()}
    types, dataset = dict(dataset.features), without_media(dataset)
    for column, feature in types.items():
        if type(feature) in RAW:
            dataset = dataset.cast_column(column, RAW[type(feature)](decode=False))
    return dataset, types


def without_media(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """Turn off decoding, except for columns of mixed types, whose values `datasets` stores as JSON text."""
    dataset = dataset.decode(False)
    for column, feature in dataset.features.items():
        if (decoded := replace_json(feature, datasets.Json())) != feature:
            dataset = dataset.cast_column(column, decoded)
    return dataset


def replace_json(feature, other):
    """Replace `datasets.Json` by another type, also in nested types."""
    if isinstance(feature, datasets.Json):
        return other
    if isinstance(feature, dict):
        return {key: replace_json(each, other) for key, each in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=replace_json(feature.feature, other))
    return feature


def encode_json(value, feature):
    """Encode the parts of a value whose type is `datasets.Json` as JSON text, the way `datasets` stores them."""
    if value is None:
        return None
    if isinstance(feature, datasets.Json):
        return json.dumps(value, default=str)
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: encode_json(each, feature[key]) if key in feature else each for key, each in value.items()}
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [encode_json(each, feature.feature) for each in value]
    return value


def first_example(dataset: datasets.IterableDataset, files: list[str] | None = None) -> dict:
    """The first example, `{}` if there is none. See `first_examples`."""
    return next(iter(first_examples(dataset, files)), {})


def first_examples(dataset: datasets.IterableDataset, files: list[str] | None = None, count: int = 1) -> list[dict]:
    """The first `count` examples of the first shard that is readable and not empty. Damaged shards are reported later,
    when the data are read.

    Raises:
        ValueError: no shard can be read.
    """
    reason = None
    for shard in range(dataset.num_shards):
        found = []
        try:
            for example in islice(dataset.shard(dataset.num_shards, shard), count):
                found.append(example)
        except Exception as error:  # readers raise whatever their formats raise
            reason = reason or error
        if found:
            return found
    if reason is not None:
        which = f"{files[0]} cannot be read" if files and len(files) == 1 else "no file of the dataset can be read"
        utf8 = "; save it as UTF-8" if isinstance(reason, UnicodeDecodeError) else ""
        raise ValueError(
            f"{which}{f', such as {files[0]}' if files and len(files) > 1 else ''}: {reason}{utf8}"
        ) from reason
    return []


def _type_of(value) -> datasets.Value:
    """The type of a column of which only a value is known; "null" where it may hold media that are no paths."""
    if value is None or isinstance(value, bytes | dict | list | np.ndarray):
        return datasets.Value("null")
    names = {bool: "bool", int: "int64", float: "float64"}
    return datasets.Value(names.get(type(value), "string"))


def with_labels_of_paths(
    dataset: datasets.IterableDataset, types: dict, data: DataArguments
) -> tuple[datasets.IterableDataset, dict]:
    """The column `label` of a tar file of class folders, unless `data` asks for another: the folder of each key."""
    if data.label_column not in (None, "label") or "label" in types or "__key__" not in types:
        return dataset, types
    if not _class_of_key(first_example(dataset))["label"]:
        return dataset, types
    types = types | {"label": datasets.Value("string")}
    features = dataset.features | {"label": types["label"]}
    return dataset.map(_class_of_key, features=datasets.Features(features)), types


def _class_of_key(example: dict) -> dict:
    return {"label": os.path.basename(os.path.dirname(example.get("__key__") or "")) or None}


def check_columns(types: dict, data: DataArguments, description: str, why_no_label: str = "", others: str = "") -> None:
    """Raise a `ValueError` for a column that `data` names and the dataset does not have.

    Args:
        types: column -> its type.
        data: names the columns.
        description: what messages call the dataset.
        why_no_label: why a folder has no column `label`.
        others: a sentence about what else there is.
    """
    for argument, column in [
        ("input_column", data.input_column),
        ("label_column", data.label_column),
        ("fold_column", data.fold_column),
        *((f"exclude.{column}", column) for column in data.exclude),
    ]:
        there = column in types if argument == "input_column" else type_of(types, column or "") is not None
        if column is not None and not there:
            why = f": {why_no_label}" if column == "label" and why_no_label else ""
            raise ValueError(
                f"data.{argument}: {description} has no column {column!r}{why}; its columns are {list(types)}.{others}"
            )


def choose_column(
    types: dict,
    data: DataArguments,
    processor,
    description: str,
    why_no_label: str = "",
    others: str = "",
    first: Callable[[], list[dict]] = list,
) -> str:
    """The column of a dataset to decode; arguments as of `check_columns` and `find_column`.

    Raises:
        ValueError: there is none, `data` names a column that there is not, or its type is none of media.
    """
    check_columns(types, data, description, why_no_label, others)
    column = data.input_column or find_column(types, modality_of(processor), description, others, first)
    if not data.input_column:
        _say_what_else_there_is(column, types, modality_of(processor), description)
    if not may_hold_media(types[column]):
        raise ValueError(
            f"data.input_column: {description} has a column {column!r} of type {describe_type(types[column])}; it "
            f"takes bytes, paths, both in one, or arrays of numbers."
        )
    return column


def _say_what_else_there_is(column: str, types: dict, modality, description: str) -> None:
    """Say that a dataset has several columns of media of which one is read, once a process."""
    others = [name for name in dict.fromkeys(media_columns(types, modality)) if name != column]
    others = [name for name in others if is_media(types[name])]
    if others:
        said = f"{description} has several columns of type {modality.column_type.__name__}: {column!r} is read and not "
        said += name_some(map(repr, others)) + " (data.input_column)"
        if "__key__" in types and any("." in name for name in (column, *others)):
            said += "; names in tar files are cut at their first dot, so that a.1.wav and a.2.wav are one sample"
        warn_once(said)


def may_hold_media(feature) -> bool:
    """Whether a column of this type may hold files, their paths or arrays."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary", "null")
    if isinstance(feature, dict):
        return not {"bytes", "path", "array"}.isdisjoint(feature)
    if isinstance(feature, datasets.List | datasets.LargeList):
        inner = feature.feature
        numbers = isinstance(inner, datasets.Value) and inner.dtype.startswith(("int", "uint", "float", "null"))
        return (
            numbers
            or isinstance(inner, datasets.Image)
            or not isinstance(inner, datasets.Value | dict)
            and may_hold_media(inner)
        )
    return not isinstance(feature, datasets.ClassLabel)


def number_type(feature) -> str | None:
    """Integer dtype of a column of arrays, since `datasets` returns all integers as int64; None for other columns."""
    if isinstance(feature, dict):
        return number_type(feature.get("array"))
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
        if isinstance(feature, datasets.Value):
            return feature.dtype if "int" in feature.dtype else None
    return feature.dtype if hasattr(feature, "shape") and "int" in str(feature.dtype) else None


def of_type(raw, numbers: str):
    """Convert an array, or the array of a dict, to a dtype. Other values are returned unchanged."""
    if isinstance(raw, dict):
        return raw if raw.get("array") is None else raw | {"array": of_type(raw["array"], numbers)}
    try:
        array = np.asarray(raw) if is_array(raw) else None
        # None in a column of integers became NaN; it must not become an integer, and decoding refuses it
        return raw if array is None or not np.isfinite(array).all() else array.astype(numbers)
    except (TypeError, ValueError):  # ragged, or with None in it
        return raw


def describe_type(feature) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else str(feature)


def media_columns(types: dict, modality) -> list[str]:
    """The columns that hold a modality as far as one can tell, best first: those of its type, those with a usual name,
    and bytes called like an extension, as the fields of tar files are."""
    typed = [column for column, feature in types.items() if isinstance(feature, modality.column_type)]
    named = [column for column in modality.column_names if column in types]
    ends = [column for column, f in types.items() if is_file(f) and f".{column}".lower() in modality.extensions()]
    return typed + named + ends


def is_media(feature) -> bool:
    """Whether a column is one of media by its type, and not by its name alone."""
    return isinstance(feature, datasets.Image) or is_file(feature)


def is_file(feature) -> bool:
    """Whether a column of this type holds files with their bytes."""
    return isinstance(feature, datasets.Audio | datasets.Video) or feature == datasets.Value("binary")


def find_column(types: dict, modality, description: str, others: str = "", first: Callable = list) -> str:
    """The first of `media_columns`. If there is none, the first column of `PATHS` that holds the name of a file of the
    modality in one of the first examples, which `first` returns.

    Raises:
        ValueError: there is none.
    """
    if found := media_columns(types, modality):
        return found[0]
    examples = first()
    ends = {column: {os.path.splitext(str(each.get(column)))[1].lower() for each in examples} for column in PATHS}
    if found := [column for column in PATHS if ends[column] & set(modality.extensions())]:
        logger.info("%s: the paths in column %r are read (data.input_column)", description, found[0])
        return found[0]
    raise ValueError(
        f"data.input_column: {description} has no column of type {modality.column_type.__name__}; name the one that "
        f"holds bytes or paths, its columns are {list(types)}.{others}"
    )
