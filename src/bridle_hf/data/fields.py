"""Columns of a dataset by name, and fields inside of them: `json.label` is the field `label` of the column `json`."""

import json
from collections.abc import Iterable
from typing import Any

import datasets

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


def field_of(example: dict, column: str) -> Any:
    """The value of a column or field; None of a field that an example lacks."""
    if column in example:
        return example[column]
    outer, *keys = column.split(".")
    found = example.get(outer)
    for key in keys:
        if isinstance(found, str):  # of a column of the library's `Json`, whose values differ in type from row to row
            found = json.loads(found)
        found = found.get(key) if isinstance(found, dict) else None
    return found


def values_of(rows: list[dict], column: str, types: Types) -> list:
    """The values of a column or field in several rows, those of type `Json` as what they stand for."""
    values = [field_of(row, column) for row in rows]
    if isinstance(type_of(types, column), datasets.Json):
        return [json.loads(value) if isinstance(value, str) else value for value in values]
    return values


def select(dataset: datasets.Dataset | datasets.IterableDataset, columns: Iterable[str]):
    """The dataset without the columns that none of `columns` needs; as it is where it does not know what it has."""
    if dataset.features is None:
        return dataset
    return dataset.select_columns(list(dict.fromkeys(holder(column, dataset.features) for column in columns)))
