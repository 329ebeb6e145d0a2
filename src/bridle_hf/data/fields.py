"""Columns of a dataset by name, and fields inside of them: `json.label` is the field `label` of the column `json`."""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, time
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import torch

logger = logging.getLogger(__name__)

Types = dict[str, Any]


def holder(column: str, types: Types) -> str:
    """The column that holds what `column` names."""
    return column if column in types else column.partition(".")[0]


def type_of(types: Types, column: str) -> Any:
    """The type of a column or field; None where there is none, a null value where it is not known before it is read."""
    outer = holder(column, types)
    found = types.get(outer)
    for key in column.removeprefix(outer).split(".")[1:]:
        if isinstance(found, dict):
            found = found.get(key)
        elif found is not None:
            open_ended = found == datasets.Value("null") or isinstance(found, datasets.Json)
            return datasets.Value("null") if open_ended else None
    return found


def class_names(feature: Any) -> list[str] | None:
    """The class names of a `ClassLabel` or a list of them; None for any other type."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def class_of(number: int | None, names: list[str]) -> str | None:
    """The name of a class number: None for None and -1, which mean no label; the number as text if it has no name."""
    if number is None or number == -1:
        return None
    return names[number] if 0 <= number < len(names) else str(number)


def field_of(example: dict, column: str) -> Any:
    """The value of a column or nested field; None if the example lacks the field. NumPy arrays and torch tensors are
    converted to Python numbers or lists."""
    outer, *keys = [column] if column in example else column.split(".")
    found = example.get(outer)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found.tolist() if isinstance(found, np.ndarray | np.generic | torch.Tensor) else found


def select(dataset: datasets.Dataset | datasets.IterableDataset, columns: Iterable[str]):
    """The dataset without the columns that none of `columns` needs; as it is where it does not know what it has."""
    if dataset.features is None:
        return dataset
    return dataset.select_columns(list(dict.fromkeys(holder(column, dataset.features) for column in columns)))


def is_missing(value) -> bool:
    """Whether a value means that there is no label: None, blank text, NaN or -1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_blank(value) or (number and (value == -1 or value != value))


def is_blank(value) -> bool:
    """Whether a value is None, empty text, or text of spaces only."""
    return value is None or isinstance(value, str) and not value.strip()


def names_of_classes(types: Types, columns: Iterable[str]) -> dict[str, list[str]]:
    """Class names by column, for the columns whose type has some."""
    found = {column: class_names(type_of(types, column)) for column in columns}
    return {column: names for column, names in found.items() if names}


def excluded_by(exclude: dict[str, list], example: dict, names: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The (column, value) pairs of `exclude` that match an example; a list matches if one of its entries does.

    Values are compared as text, so that 1 matches "1" in a column of strings and 1.0 in a column of floats, which
    integers become where one is missing. A class matches by its name, or by its number unless another class is named
    like that number. None does not match the text "None".

    Args:
        exclude: values by column.
        example: not decoded.
        names: as returned by `names_of_classes`.
    """
    found = []
    for column, values in exclude.items():
        held = _held_texts(field_of(example, column), names.get(column, ()))
        found += [(column, str(value)) for value in values if _texts_of(value) & held]
    return found


def _held_texts(value: Any, names: Sequence[str]) -> set[str | None]:
    if isinstance(value, list | tuple | np.ndarray):
        return _texts_of(value).union(*(_held_texts(each, names) for each in value))
    if names and isinstance(value, int) and 0 <= value < len(names):
        return {names[value]} | (_texts_of(value) - set(names))
    return _texts_of(value)


def _texts_of(value: Any) -> set[str | None]:
    """All spellings of a value that are compared."""
    if value is None or isinstance(value, str):
        return {value}
    if value != value:  # NaN: a column of numbers holds it where a value is missing
        return {None, str(value)}
    if isinstance(value, bool | np.bool_):
        return {str(bool(value)), str(bool(value)).lower()}
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return {str(int(value)), str(value)}
    if isinstance(value, datetime) and value.time() == time():
        return {str(value.date()), str(value)}
    return {str(value)}


def say_what_excludes_nothing(exclude: dict[str, list], hits: set[tuple[str, str]], description: str) -> None:
    """Warn about values in `exclude` that matched no example, for example because of a typo. Missing labels are left
    out, because `read_labels` adds those itself.

    Args:
        exclude: values by column.
        hits: the pairs of `excluded_by` over all examples.
        description: the dataset's name in the message.
    """
    for column, values in exclude.items():
        lost = [value for value in values if (column, str(value)) not in hits and not is_missing(value)]
        if lost:
            warn_once(f"data.exclude.{column}: no clip of {description} holds {', '.join(map(repr, lost))}")


@lru_cache(maxsize=1024)
def warn_once(text: str) -> None:
    logger.warning("%s", text)
