"""Labels and folds of a set: read before the first clip is decoded, and checked."""

import ast
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from ..files import at_home
from .arguments import DataArguments
from .columns import without_media
from .fields import field_of, is_blank, is_missing, say_what_excludes_nothing, select, type_of, warn_once
from .listing import name_some
from .media import LONGEST_PATH, UnusableDataError, is_url, path_of
from .source import Source, open_source

logger = logging.getLogger(__name__)

FILE = 0  # key of a row that no column can have
EATEN = "a csv file reads classes called None, NA, nan or null as none, jsonl and parquet files keep them"


class LabelError(ValueError):
    """Labels or folds that cannot be used."""


@dataclass
class Labels:
    """Labels and folds of n clips, as `Examples` has them."""

    labels: np.ndarray | None = None
    label_names: list[str] = field(default_factory=list)
    folds: np.ndarray | None = None
    test_folds: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels if self.folds is None else self.folds)


@dataclass
class SplitRows:
    """The clips of a split: `rows` as returned by `_read`, and `types` of the columns."""

    split: str
    rows: list[dict]
    types: dict


def read_labels(
    data: DataArguments, processor, parts: Sequence[tuple[str, Any]]
) -> tuple[Labels | None, dict[str, list]]:
    """Read labels and folds without the clips, and leave out those without a label: None, NaN, empty text, or -1 among
    integers.

    Args:
        data: what to read and how.
        processor: the model's preprocessor.
        parts: the splits, each with the dataset in hand that has it, or None.

    Returns:
        The labels, or None where none are asked for, where they would have to be fetched from afar with the clips, or
        where a shard cannot be read; and the `exclude` of `data` with what else is to be left out.

    Raises:
        LabelError: they cannot be used.
        UnusableDataError: `data.exclude` leaves out everything.
    """
    if not (data.label_column or data.fold_column):
        return None, data.exclude
    read, of_splits, exclude, whole = [], {}, data.exclude, True
    for split, part in parts:
        here = replace(data, split=split, test_split=None)
        source = open_source(here, processor, part)
        if (dataset := _without_media(source, here, part)) is None:
            return None, data.exclude
        columns = [column for column in (data.label_column, data.fold_column) if column]
        rows, all_shards = _read(replace(source, dataset=dataset), columns)
        whole = whole and all_shards
        if all_shards:
            say_what_excludes_nothing(data.exclude, source.hits, source.description)
        if all_shards and not rows:
            raise UnusableDataError(f"no example in {source.description} with exclude={data.exclude}.")
        if data.label_column:
            rows, missing = _labelled(rows, data.label_column, source.dataset.features or {}, source.description)
            if missing:
                exclude = exclude | {data.label_column: [*exclude.get(data.label_column, ()), *missing]}
        _say_what_is_repeated(files := _files_of(rows), source.description)
        for other, theirs in of_splits.items():
            if shared := sorted(set(files) & set(theirs)):
                warn_once(f"{len(shared)} files are in split {other} and in split {split}: {name_some(shared, 3)}")
        of_splits[split] = files
        read.append(SplitRows(split, rows, source.dataset.features or {}))
    return encode(data, read) if whole else None, exclude


def _files_of(rows: list[dict]) -> list[str]:
    """The paths of the files that the rows name, normalised so that each file has one spelling."""
    paths = [row[FILE] for row in rows if row[FILE] and len(row[FILE]) <= LONGEST_PATH]
    return [path if is_url(path) else os.path.normpath(path) for path in paths]


def _say_what_is_repeated(paths: list[str], description: str) -> None:
    """Warn about files that occur in more than one row."""
    if repeated := [path for path, count in Counter(paths).items() if count > 1]:
        warn_once(
            f"{description} names {len(repeated)} files in several rows ({name_some(repeated, 3)}): each row is a "
            "clip, and the same file may be in training and in the test"
        )


def _without_media(source: Source, data: DataArguments, part) -> datasets.Dataset | datasets.IterableDataset | None:
    """The dataset of a source to read labels and folds from, best without the media; None where these would have to be
    fetched from afar for it."""
    if source.rows is not None:
        columns = [*filter(None, (data.label_column, data.fold_column)), *data.exclude]
        return select(source.dataset.with_format(None), columns)
    if part is not None or source.of_files:
        return source.dataset
    if source.read_columns is not None:
        columns = [*filter(None, (data.label_column, data.fold_column)), *data.exclude]
        return without_media(source.read_columns(select(source.dataset, columns).column_names))
    return source.dataset if os.path.isdir(at_home(data.dataset)) else None


def _read(source: Source, columns: list[str]) -> tuple[list[dict], bool]:
    """Read the rows that are not excluded: `columns`, `clip_name`, and the path under the key `FILE`, None if the row
    holds the clip itself. Also returns whether all shards could be read."""
    rows, whole = [], True
    for shard in range(source.num_shards):
        try:
            for number, example in enumerate(source.examples(shard)):
                if source.keeps(example):
                    named = source.named(example, f"shard {shard}, example {number}")
                    about = {column: field_of(named, column) for column in columns}
                    rows.append(
                        about | {"clip_name": named["clip_name"], FILE: path_of(named.get(source.input_column))}
                    )
        except Exception:  # reading of the clips meets it again: there it is tried again, skipped and named
            whole = False
    return rows, whole


def _labelled(rows: list[dict], column: str, types: dict, description: str) -> tuple[list[dict], list]:
    """The rows that have a label, and the values that stand for none."""
    values = [field_of(row, column) for row in rows]
    without = [row for row, value in zip(rows, values, strict=True) if is_missing(value)]
    if not without:
        return rows, []
    missing = list({str(value): value for value in values if is_missing(value)}.values())
    said = " or ".join(repr(value) if value == "" else str(value) for value in missing)
    if len(without) == len(rows):
        raise LabelError(
            f"data.label_column: none of the {len(rows)} clips of {description} has a label, {column!r} is {said}; "
            f"name another column, or sort the clips into one folder a class. {EATEN}."
        )
    logger.warning(
        "data.label_column: %d of the %d clips of %s have no label (%r is %s) and are left out: %s; %s",
        len(without), len(rows), description, column, said, name_some([row["clip_name"] for row in without]),
        "-1 stands for none, a class called so takes a string" if -1 in missing else EATEN,
    )  # fmt: skip
    return [row for row, value in zip(rows, values, strict=True) if not is_missing(value)], missing


def encode(data: DataArguments, parts: Sequence[SplitRows]) -> Labels:
    """The labels and folds of rows that were read.

    Raises:
        LabelError: they cannot be used.
    """
    found, rows = Labels(), [row for part in parts for row in part.rows]
    names = [row["clip_name"] for row in rows]
    if data.label_column:
        types = [type_of(part.types, data.label_column) for part in parts]
        numbered = [getattr(getattr(each, "feature", each), "names", None) for each in types]
        if any(classes != numbered[0] for classes in numbered):
            each = "; ".join(f"{classes} in {part.split}" for classes, part in zip(numbered, parts, strict=True))
            raise LabelError(f"data.label_column: {data.label_column!r} has other classes in each split: {each}.")
        values = [field_of(row, data.label_column) for row in rows]
        found.labels, found.label_names = encode_labels(values, types[0], data.label_column, names)
    if data.fold_column:
        values = [field_of(row, data.fold_column) for row in rows]
        found.folds = encode_folds(values, data.fold_column, names)
    elif len(parts) > 1:
        found.folds = np.array([part.split for part in parts for _ in part.rows])
        found.test_folds = [parts[1].split]
    return found


def encode_labels(values: list, feature, column: str, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels, (n,) int64 numbers or multi-hot rows (n, classes) int8 for lists, and the names of the classes in order.

    Lists of equal length that hold nothing but 0 and 1 are rows of one flag a class; other lists hold the classes.

    Args:
        values: of the clips: each an integer or a string, or each a list of them.
        feature: type of the column, whose own names a `ClassLabel` gives.
        names: of the clips, for messages.

    Raises:
        LabelError: they are something else.
    """
    values = [_plain(value) for value in values]
    several = any(isinstance(value, list) for value in values)
    lists = values if several else [[value] for value in values]
    what = "a list of integers or strings" if several else "one integer or string"

    def refuse(row: int, why: str = ""):
        raise LabelError(
            f"data.label_column: {column!r} must hold {what} per sample, got {values[row]!r} for {names[row]}{why}."
        )

    for row, value in enumerate(lists):
        if not isinstance(value, list) or not all(isinstance(label, int | str) for label in value):
            refuse(row)
        if any(_is_list_as_text(label) for label in value):
            refuse(row, ", a list as text; a csv file holds none, jsonl and parquet files do")
    if not any(lists):
        raise LabelError(
            f"data.label_column: {column!r} is an empty list for all {len(lists)} clips; it takes classes."
        )
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        for row, value in enumerate(lists):
            if not all(isinstance(label, int) and 0 <= label < feature.num_classes for label in value):
                refuse(row, f"; its classes are 0 to {feature.num_classes - 1}")
        index, classes = {number: number for number in range(feature.num_classes)}, list(feature.names)
        _say_what_is_alike(f"data.label_column: classes of {column!r}", classes)
    elif several and _are_flags(lists):
        labels = np.array(lists, dtype=np.int8)
        logger.info("data.label_column: the lists of %r are read as one flag (0 or 1) a class", column)
        return labels, [str(number) for number in range(labels.shape[1])]
    else:
        if (row := next((row for row, value in enumerate(lists) if any(map(is_missing, value))), None)) is not None:
            refuse(row, "; -1 and empty text stand for no class")
        found = {label for value in lists for label in value}
        if len({isinstance(label, str) for label in found}) > 1:
            texts = [(row, x) for row, value in enumerate(lists) for x in value if isinstance(x, str)]
            # pandas types 10,000 rows at a time: beside one that is no number there are numbers as text
            row = next((row for row, text in texts if not text.strip().lstrip("-").isdigit()), texts[0][0])
            refuse(row, " and integers for others; it takes one of both for all")
        classes = sorted(found)
        _say_what_is_alike(f"data.label_column: classes of {column!r}", classes)
        index, classes = {label: number for number, label in enumerate(classes)}, [str(label) for label in classes]
    if not several:
        return np.array([index[label] for (label,) in lists], dtype=np.int64), classes
    labels = np.zeros((len(lists), len(classes)), dtype=np.int8)
    for row, value in enumerate(lists):
        if any(isinstance(label, int) for label in value) and len(set(value)) < len(value):
            refuse(row, "; it takes each class once, or lists of one flag (0 or 1) a class that are all of one length")
        labels[row, [index[label] for label in value]] = 1
    return labels, classes


def _plain(value):
    """A value without numpy's types; whole numbers as integers, which a column with a gap holds as floats."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_list_as_text(label: int | str) -> bool:
    """Whether a label is what a list of labels looks like when it is written as text."""
    if not (isinstance(label, str) and label.startswith("[") and label.endswith("]")):
        return False
    try:
        return isinstance(ast.literal_eval(label), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a name in brackets
        return False


def _say_what_is_alike(what: str, values: list) -> None:
    """Warn about classes or folds whose names differ only in spaces, capitals or Unicode form (such as accents from
    macOS), because they are usually the same one."""
    alike = {}
    for label in values:
        plain = unicodedata.normalize("NFKC", str(label))
        alike.setdefault("".join(plain.split()).casefold(), []).append(label)
    if several := [" and ".join(map(shown_apart, names)) for names in alike.values() if len(names) > 1]:
        logger.warning("%s differ in spaces, capitals or the form of letters alone: %s", what, "; ".join(several))


def shown_apart(label) -> str:
    """A label in quotes, with the escapes of its letters beyond ASCII where it is not in the usual form."""
    return repr(label) if unicodedata.is_normalized("NFKC", str(label)) else ascii(label)


def _are_flags(lists: list[list]) -> bool:
    """Whether lists hold one flag a class. Class numbers they are not: each clip would then have the same two."""
    lengths = {len(value) for value in lists}
    return len(lengths) == 1 and lengths.pop() > 1 and all(label in (0, 1) for value in lists for label in value)


def encode_folds(values: list, column: str, names: list[str]) -> np.ndarray:
    """Folds (n,): integers, floats, booleans or strings; what is none of them, such as a date, as text.

    Raises:
        LabelError: a clip has none, or several.
    """
    values = [_plain(value) for value in values]
    said = [None if value != value else value for value in values]  # NaN is a fold that a column of numbers lacks
    if missing := [name for name, value in zip(names, said, strict=True) if is_blank(value)]:
        blank = json.dumps(sorted({value for value in said if is_blank(value)}, key=str))
        raise LabelError(
            f"data.fold_column: {column!r} says nothing of {len(missing)} of the {len(values)} clips: "
            f"{name_some(missing)}; give each a fold, or leave them out by data.exclude='{{{column}: {blank}}}'."
        )
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list | dict | bytes):
            raise LabelError(f"data.fold_column: {column!r} is {value!r} for {name}; it takes one value a clip.")
    _say_what_is_alike(f"data.fold_column: folds of {column!r}", list(dict.fromkeys(values)))
    return np.array([value if isinstance(value, int | float | str) else str(value) for value in values])


def present(found: Labels) -> set[tuple[str, Any]]:
    """The classes and folds that have a clip, each as ("class", name) or ("fold", value)."""
    there = set() if found.folds is None else {("fold", fold) for fold in found.folds.tolist()}
    if found.labels is not None:
        numbers = found.labels if found.labels.ndim == 1 else np.flatnonzero(found.labels.any(axis=0))
        there |= {("class", found.label_names[number]) for number in set(numbers.tolist())}
    return there


def describe(found: Labels) -> str:
    """Number of clips and classes, and how many clips each has."""
    labels, names = found.labels, found.label_names
    counts = np.bincount(labels, minlength=len(names)) if labels.ndim == 1 else labels.sum(axis=0, dtype=np.int64)
    each = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    return f"{len(labels)} clips, {len(names)} classes: {name_some(each)}"
