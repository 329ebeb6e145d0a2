"""Columns of a dataset by name, and fields inside of them: `json.label` is the field `label` of the column `json`."""

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
            open_ended = found == datasets.Value("null") or type(found).__name__ == "Json"
            return datasets.Value("null") if open_ended else None
    return found


def field_of(example: dict, column: str) -> Any:
    """The value of a column or field; None of a field that an example lacks."""
    if column in example:
        return example[column]
    outer, *keys = column.split(".")
    found = example[outer]
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def select(dataset: datasets.Dataset | datasets.IterableDataset, columns: Iterable[str]):
    """The dataset without the columns that none of `columns` needs; as it is where it does not know what it has."""
    if dataset.features is None:
        return dataset
    return dataset.select_columns(list(dict.fromkeys(holder(column, dataset.features) for column in columns)))
