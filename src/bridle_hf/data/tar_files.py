"""Samples of tar files (webdataset), each read for itself: what cannot be read of one costs no other."""

import io
import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from .arguments import DataArguments
from .modality import Modality

logger = logging.getLogger(__name__)

FIRST_SAMPLES = 5  # say the columns, as in `datasets`
KEY, URL = "__key__", "__url__"
NUMBERS = ("cls", "cls2", "index", "inx", "id")  # fields that hold a number or, in many tar files, a name
_said: set[tuple] = set()


def read_with_care(builder: WebDataset, data: DataArguments, modality: Modality) -> None:
    """Let a builder of tar files read samples of which some lack a field, hold it in another format or one that cannot
    be decoded. `datasets` refuses the tar file with the first of them.

    Clips of several formats become one column: that of `data.input_column`, or else of the first clip.
    """
    # no functions inside this one: spawned workers get the builder pickled
    builder._split_generators = partial(_splits, builder, data, modality)
    builder._get_pipeline_from_tar = partial(_fitted_samples, builder, modality)


def _splits(builder: WebDataset, data: DataArguments, modality: Modality, manager) -> list[datasets.SplitGenerator]:
    """The splits of a builder that knows its columns by then."""
    if not builder.info.features:
        first = next(iter(manager.download(builder.config.data_files).values()))[0]
        builder.info.features = _features(builder, first, manager.iter_archive(first), data, modality)
    return type(builder)._split_generators(builder, manager)


def _features(
    builder: WebDataset, path: str, members: Iterable, data: DataArguments, modality: Modality
) -> datasets.Features:
    """The columns of the first samples of a tar file."""
    rows = list(islice(_samples(builder, path, members), FIRST_SAMPLES))
    if not rows:
        raise ValueError("it holds no sample")
    clips = [field for row in rows for field in row if _is_clip(field, modality)]
    typed = [field for field in clips if _column_type(builder, field) is not None]
    for column in [data.input_column] if data.input_column in clips else (typed or clips)[:1]:
        rows = [_with_clip(row, column, modality) for row in rows]
    fields = [field for field in dict.fromkeys(field for row in rows for field in row) if field not in (KEY, URL)]
    types = {}
    for field in [*fields, KEY, URL]:
        values = [row.get(field) for row in rows]
        if any(isinstance(value, str) for value in values) and _extension(field) in NUMBERS:
            values = [None if value is None else str(value) for value in values]
        types[field] = _column_type(builder, field) or _type_of(values)
    return datasets.Features(types)


def _fitted_samples(builder: WebDataset, modality: Modality, path: str, members: Iterable) -> Iterator[dict]:
    """The samples of a tar file, each with the columns of the builder."""
    features = builder.info.features
    column = next((field for field in features if _is_clip(field, modality)), None)
    for row in _samples(builder, path, members):
        if column is not None:
            row = _with_clip(row, column, modality)
        for field in row:
            if field in features and _column_type(builder, field) is None:
                row[field] = _fitted(row[field], features[field], partial(_say, path, row[KEY], field))
        yield row


def _samples(builder: WebDataset, path: str, members: Iterable) -> Iterator[dict]:
    """The samples of a tar file as it holds them. A field that cannot be decoded is None."""
    row = {}
    for name, file in members:
        key, field = base_plus_ext(name)
        if key is None:
            continue
        if row and row[KEY] != key:
            yield row
            row = {}
        row |= {KEY: key, URL: path}
        if field in row:
            _say(path, key, field, "is there twice; the first is taken")
        else:
            row[field] = _content(builder, path, key, field, file)
    if row:
        yield row


def _content(builder: WebDataset, path: str, key: str, field: str, file) -> Any:
    """What a member of a tar file holds; None where it cannot be decoded."""
    content = file.read()
    try:
        value = next(type(builder)._get_pipeline_from_tar(path, [(f"x.{field}", io.BytesIO(content))]))[field]
        return value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value
    except Exception as error:  # each format has its own
        if _extension(field) in NUMBERS:
            return content.decode("utf-8", "replace").strip()
        _say(path, key, field, f"cannot be read ({type(error).__name__}: {error}) and is taken for none")
        return None


def _with_clip(row: dict, column: str, modality: Modality) -> dict:
    """A sample whose clip is in a column, whatever its format."""
    if column in row:
        return row
    for field in row:
        if _is_clip(field, modality):
            return {column if name == field else name: value for name, value in row.items()}
    return row


def _is_clip(field: str, modality: Modality) -> bool:
    return f".{_extension(field)}" in modality.extensions()


def _extension(field: str) -> str:
    return field.rsplit(".", 1)[-1].lower()


def _column_type(builder: WebDataset, field: str):
    """The type of media that `datasets` gives a field; None of another."""
    known = {
        datasets.Image: builder.IMAGE_EXTENSIONS,
        datasets.Audio: builder.AUDIO_EXTENSIONS,
        datasets.Video: builder.VIDEO_EXTENSIONS,
    }
    return next((kind() for kind, extensions in known.items() if _extension(field) in extensions), None)


def _type_of(values: list):
    """The type of a column of some values; `Json` where they differ in theirs."""
    try:
        tables = [pa.table({"x": [value]}) for value in values]
        merged = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowException, TypeError):
        return datasets.Json()
    return datasets.Features.from_arrow_schema(merged.schema)["x"]


def _fitted(value, feature, say) -> Any:
    """A value without what does not fit the type of its column: that becomes None."""
    if value is None or isinstance(feature, datasets.Json):
        return value
    if isinstance(feature, dict) and isinstance(value, dict):
        if more := ", ".join(sorted(value.keys() - feature.keys())):
            say(f"holds {more}, which the first samples lack and which is left out")
        return {key: _fitted(value.get(key), kind, say) for key, kind in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [_fitted(each, feature.feature, say) for each in value]
    try:
        if isinstance(feature, datasets.Value):
            if feature.dtype == "string" and isinstance(value, int):
                return str(value)
            pa.array([value], type=feature.pa_type)
        elif isinstance(feature, dict | datasets.List | datasets.LargeList):
            raise TypeError
        return value
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        say(f"holds {value!r:.100}, of another type than in the first samples, which is taken for none")
        return None


def _say(path: str, key: str, field: str, what: str) -> None:
    """Warn of a field of a sample, once for each tar file and kind of remark."""
    remark = (path, field, what.partition(" ")[0])
    if remark not in _said:
        _said.add(remark)
        logger.warning("%s: the field %s of sample %s %s", os.path.basename(path), field, key, what)
