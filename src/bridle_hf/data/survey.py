"""What a dataset holds, as pretraining would read it: lengths, rates, sizes, labels, and what is left out."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zlib import crc32

import datasets
import numpy as np

from .arguments import DataArguments
from .bad_share import is_short
from .duplicates import Duplicates
from .fields import class_names, class_of, field_of, is_missing, type_of
from .labels import LabelError, encode_labels
from .modalities import modality_of
from .source import Source, is_shard, open_source

# Names of columns that hold a class or a fold where a dataset does not say so by their type.
FOLD = "fold"
USUAL = ("label", "labels", "class", "category", "target", FOLD)
MOST_VALUES = 1000  # of a column that is counted: more are no classes


@dataclass
class Survey:
    """What was found.

    Attributes:
        description: what messages call the dataset.
        facts: `Modality.facts` of each clip that can be used, and its `name`.
        duplicates: names of clips of the same content, those of each content together.
        skipped: name -> reason of each clip that cannot, and of shards that could not be read.
        read: clips that were read, usable or not; `excluded` are those besides that `data.exclude` leaves out.
        shards: into which the dataset is divided.
        columns: column of classes or folds -> how many clips have each value.
        refused: column of classes -> why fine-tuning would refuse it.
        why_no_label: why a folder gives no classes.
        hint: what messages about many unusable clips say.
    """

    description: str
    facts: list[dict[str, Any]] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    read: int = 0
    excluded: int = 0
    shards: int = 1
    columns: dict[str, Counter] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    why_no_label: str = ""
    hint: str = ""

    @property
    def bad(self) -> dict[str, str]:
        """Those of `skipped` that are clips and count as bad."""
        return {name: why for name, why in self.skipped.items() if not is_shard(name) and not is_short(why)}

    def of(self, fact: str) -> np.ndarray:
        """A fact of each clip that has it."""
        return np.array([each[fact] for each in self.facts if fact in each])


def survey(data: DataArguments, processor) -> Survey:
    """Read and decode every clip as an epoch of pretraining does: of a long one a window at a random place.

    Raises:
        UnusableDataError: nothing can be used.
        ValueError: as of `open_source`.
    """
    source = open_source(data, processor)
    found = Survey(
        source.description,
        skipped=source.skipped,
        shards=source.num_shards,
        hint=source.hint,
        why_no_label=source.why_no_label,
    )
    columns, duplicates = _columns(source, data), Duplicates()
    found.columns, held = {column: Counter() for column in columns}, {column: [] for column in columns}
    source.featurize = partial(_look, source.featurize, partial(_facts, source, data, processor))
    kept = source.keeps

    def keeps(example: dict) -> bool:
        stays = kept(example)
        found.excluded += not stays
        return stays

    source.keeps = keeps
    # all that is bad is named, and judged by whoever asked
    for example, facts in source.decode_all(data.workers, max_bad_share=1.0):
        found.facts.append({"name": str(example["clip_name"])} | facts)
        duplicates.add(str(example["clip_name"]), source.raw(example))
        for column, names in columns.items():
            held[column].append(field_of(example, column))
            _count(found.columns, column, names, held[column][-1])
    names, types = [fact["name"] for fact in found.facts], source.dataset.features or {}
    for column in found.columns.keys() - {data.fold_column, FOLD}:
        if why := _why_refused(held[column], type_of(types, column), column, names):
            found.refused[column] = why
    found.read, found.duplicates = source.behind, duplicates.groups()
    return found


def _why_refused(values: list, feature, column: str, names: list[str]) -> str:
    """The error that fine-tuning would raise about these labels; empty if there is none. Missing labels are ignored."""
    rows = [row for row, value in enumerate(values) if not is_missing(value)]
    try:
        if rows:
            encode_labels([values[row] for row in rows], feature, column, [names[row] for row in rows])
    except LabelError as error:
        return str(error)
    return ""


def _look(featurize, facts, example: dict) -> dict[str, float]:
    """The facts of an example, once a window of it was decoded."""
    return facts(example, featurize_window(featurize, example))


def featurize_window(featurize, example: dict):
    """Decode a window of an example at a random place, the same place every time."""
    return featurize(example, np.random.default_rng(crc32(str(example["clip_name"]).encode())))


def _facts(source: Source, data: DataArguments, processor, example: dict, decoded: np.ndarray) -> dict[str, float]:
    return modality_of(processor).facts(source.raw(example), data, processor, decoded)


def _columns(source: Source, data: DataArguments) -> dict[str, list[str] | None]:
    """Columns of classes or folds, with the names of their classes where numbers stand for them."""
    types = dict(source.dataset.features or {})
    chosen = [data.label_column, data.fold_column, *(name for name in types if _tells_a_class(name, types[name]))]
    chosen = dict.fromkeys(name for name in chosen if name)
    return {name: class_names(type_of(types, name)) for name in chosen}


def _tells_a_class(name: str, feature) -> bool:
    return isinstance(getattr(feature, "feature", feature), datasets.ClassLabel) or name in USUAL


def _count(counts: dict[str, Counter], column: str, names: list[str] | None, value) -> None:
    """Count a value, each of a list, in a column; a column of too many values is dropped."""
    if column not in counts:
        return
    for each in value if isinstance(value, list | tuple) else [value]:
        counts[column]["(none)" if is_missing(each) else class_of(each, names) if names else str(each)] += 1
    if len(counts[column]) > MOST_VALUES:
        del counts[column]
