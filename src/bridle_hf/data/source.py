"""Reading of undecoded datasets, shard by shard; streams, caches and labelled sets are built on it."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from pyarrow.dataset import ParquetFragmentScanOptions
from tqdm.auto import tqdm

from .arguments import DataArguments
from .class_folders import why_no_labels
from .columns import field_of, select, type_of
from .in_hand import NUMBER, take_in_hand, with_arrays
from .media import BadClipError
from .modalities import modality_of
from .opening import load_builder, open_stream

logger = logging.getLogger(__name__)

READ_AT_ONCE = 16  # examples fetched together from a shard
FILES_AT_ONCE = 10_000  # put into a table together
READ_ATTEMPTS, RETRY_SECONDS = 3, 5.0  # of a shard; the pause grows with each
BAD_SHARE_OVER = 100  # the share of bad samples is judged as if at least this many had been read


class BadShardError(OSError):
    """A shard that could not be read, however often it was tried."""

    def __init__(self, shard: int, reason: Exception):
        super().__init__(f"shard {shard}: {type(reason).__name__}: {reason}")
        self.shard = shard


@dataclass
class Source:
    """Raw examples by shard, and the function that decodes one.

    Attributes:
        dataset: the examples, undecoded.
        featurize: `featurize(example, rng=None)` decodes one raw example to an array. With `rng`, only a random window
            of long media is decoded. Raises `BadClipError` if unusable.
        input_column: column that holds the media; None of decoded samples from a cache.
        exclude: column -> values of the examples to skip.
        description: what messages call the dataset.
        of_files: whether an example names a file and holds nothing of it.
        skipped: name -> reason of the samples that could not be used when all of them were decoded.
        behind: number of examples up to the one that `decode_all` gave last.
        rows: the examples as an indexable table; None where they can only be read in order.
        arrays: of a list of arrays, these; an example then holds the place of its own.
        fingerprint: identifies the content for a cache; None of a stream that the caller built.
        given: whether the caller built the dataset.
    """

    dataset: datasets.IterableDataset | datasets.Dataset
    featurize: Callable[..., np.ndarray]
    input_column: str | None
    exclude: dict[str, list]
    description: str
    of_files: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    behind: int = 0
    rows: datasets.Dataset | None = None
    arrays: list | None = None
    fingerprint: str | None = None
    given: bool = False

    @property
    def num_shards(self) -> int:
        return 1 if isinstance(self.dataset, datasets.Dataset) else self.dataset.num_shards

    def raw(self, example: dict) -> Any:
        """The undecoded media of an example: bytes and path, or an array."""
        value = example[self.input_column]
        return value if self.arrays is None else self.arrays[value]

    def named(self, example: dict, otherwise: str) -> dict:
        """The example with a `clip_name`: the path of its file, a name that it has, or another."""
        raw = example.get(self.input_column)
        path = raw.get("path") if isinstance(raw, dict) else raw if isinstance(raw, str) else None
        return example | {"clip_name": path or example.get("clip_name") or otherwise}

    def read(self, shard: int, start: int = 0) -> Iterator[dict]:
        """The examples of one shard from index `start` on, with a `clip_name` each and including the excluded ones.

        Raises:
            BadShardError: reading failed `READ_ATTEMPTS` times.
        """
        failed = 0
        while True:
            try:
                for index, example in enumerate(islice(self.examples(shard), start, None), start):
                    start = index + 1
                    in_order = isinstance(self.dataset, datasets.IterableDataset)
                    yield self.named(example, f"shard {shard}, example {index}" if in_order else f"row {index}")
                return
            except Exception as error:  # readers raise whatever file system, network and format raise
                failed += 1
                if failed == READ_ATTEMPTS:
                    raise BadShardError(shard, error) from error
                logger.warning("reading shard %d failed, trying again: %s", shard, error)
                time.sleep(RETRY_SECONDS * failed)

    def examples(self, shard: int) -> Iterator[dict]:
        """The examples of one shard as they are."""
        for batch in self.batches(shard):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def batches(self, shard: int) -> Iterator[dict]:
        """The batches in which the dataset reads one shard: column -> values."""
        # `iter(batch_size)` and not `iter()`: inside a worker the latter would share the shards out a second time.
        return self.dataset.shard(self.num_shards, shard).iter(batch_size=READ_AT_ONCE)

    def read_all(self, max_bad_share: float) -> Iterator[dict]:
        """The examples of all shards; those that cannot be read are skipped and named in `skipped`."""
        bad = 0
        for shard in range(self.num_shards):
            try:
                yield from self.read(shard)
            except BadShardError as error:
                bad += 1
                self.skipped[f"shard {shard}"] = str(error)
                logger.warning("skipped the rest of shard %d: %s", shard, error)
                check_bad_shards(bad, self.num_shards, max_bad_share, error)

    def keeps(self, example: dict) -> bool:
        """Whether an example is not excluded."""
        return keeps(self.exclude, example)

    def list_files(self, max_bad_share: float) -> datasets.Dataset:
        """A table of the input column and `clip_name` of all examples that are not excluded, for a source of files."""
        needed = select(self.dataset, [self.input_column, *self.exclude])
        examples = filter(self.keeps, replace(self, dataset=needed).read_all(max_bad_share))
        rows = ({key: example[key] for key in (self.input_column, "clip_name")} for example in examples)
        parts = (pa.Table.from_pylist(part) for part in iter(lambda: list(islice(rows, FILES_AT_ONCE)), []))
        return datasets.Dataset(pa.concat_tables([pa.table({}), *parts], promote_options="default"))

    def decode_all(self, num_workers: int, max_bad_share: float, start: int = 0) -> Iterator[tuple[dict, np.ndarray]]:
        """Yield `(example, array)` for every example that is not excluded, in order from index `start` on.

        `num_workers` threads decode ahead (decoding and filter banks release Python's lock); `behind` counts the
        examples up to the last one yielded. Bad samples are skipped and logged; too many of them raise the error of
        `check_bad_share`.
        """
        examples = islice(filter(self.keeps, self.read_all(max_bad_share)), start, None)
        splits, split = self.dataset.info.splits or {}, str(self.dataset.split)
        total = None
        if not self.exclude:
            total = splits[split].num_examples if split in splits else None
            total = total if self.rows is None else len(self.rows)
        bar = tqdm(examples, desc=f"reading {self.description}", unit=" clips", total=total, initial=start)
        seen, bad, self.behind = 0, 0, start
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            for example, future in _submit_ahead(pool, self.featurize, bar, ahead=4 * max(1, num_workers)):
                seen, self.behind = seen + 1, self.behind + 1
                try:
                    features = future.result()
                except BadClipError as error:
                    bad += 1
                    self.skipped[example["clip_name"]] = str(error)
                    logger.warning("skipped %s: %s", example["clip_name"], error)
                    check_bad_share(bad, seen, max_bad_share, example["clip_name"], error)
                else:
                    yield example, features
        if seen == bad and start == 0:
            raise ValueError(f"no usable example in {self.description} (exclude={self.exclude}, {bad} bad clips).")


def keeps(exclude: dict[str, list], example: dict) -> bool:
    """Whether an example is not excluded. Values compare as text: a recipe may say 1 for a column of strings.
    None is not the string "None"."""

    def text(value) -> str | None:
        return None if value is None else str(value)

    return all(text(field_of(example, column)) not in map(text, values) for column, values in exclude.items())


def leave_out(table: datasets.Dataset, exclude: dict[str, list]) -> datasets.Dataset:
    """The rows of a table that are not excluded. Reads the columns of `exclude` alone."""
    if not exclude:
        return table
    columns = select(table, exclude)
    return table.select([row for row, values in enumerate(columns) if keeps(exclude, values)])


def _submit_ahead(pool, function, items, ahead: int) -> Iterator[tuple]:
    """Pairs (item, future) in order, with at most `ahead` futures waiting, so that memory stays bounded."""
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting


def check_bad_share(bad: int, seen: int, max_bad_share: float, name: str, reason: Exception) -> None:
    """Raise a `RuntimeError` if more than `max_bad_share` of the samples read could not be used."""
    if bad > max_bad_share * max(seen, BAD_SHARE_OVER):
        raise RuntimeError(
            f"{bad} of {seen} clips read so far could not be used, more than data.max_bad_share={max_bad_share} "
            f"allows; the last one was {name}: {reason}. Remove what is broken or too short, or raise the share."
        )


def check_bad_shards(bad: int, shards: int, max_bad_share: float, reason: Exception) -> None:
    """Raise a `RuntimeError` if more than `max_bad_share` of the shards could not be read."""
    if bad > max_bad_share * shards:
        raise RuntimeError(
            f"{bad} of {shards} shards could not be read, more than data.max_bad_share={max_bad_share} allows; "
            f"the last one was {reason}"
        )


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


def open_source(data: DataArguments, processor, dataset=None) -> Source:
    """Open the dataset that `data` names, or one that the caller built, for reading.

    Args:
        data: what to read and how.
        processor: the model's preprocessor.
        dataset: a dataset in hand instead of `data.dataset`, as `take_in_hand` takes it.

    Raises:
        ValueError: for a column that the dataset does not have, or two datasets.
    """
    if dataset is not None:
        return _open_given(dataset, data, processor)
    builder = load_builder(data)
    if getattr(builder.config, "batch_size", 0) is None:  # of parquet files; its default fails on one without rows
        builder.config.batch_size = READ_AT_ONCE
        if os.path.isdir(builder.base_path):  # over a network, fewer and larger reads are worth their memory
            builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
    dataset, types = _undecoded(open_stream(builder, data.split))
    description = f"{os.path.basename(os.path.normpath(data.dataset))} ({data.split})"
    column = choose_column(types, data, processor, description)
    featurize = partial(decode_column, column=column, data=data, processor=processor)
    of_paths = types[column] in (datasets.Value("string"), datasets.Value("large_string"))
    of_files = of_paths or isinstance(builder, FolderBasedBuilder)
    return Source(
        dataset, featurize, column, data.exclude, description, of_files=of_files, fingerprint=builder.cache_dir
    )


def _open_given(dataset, data: DataArguments, processor) -> Source:
    """A dataset that the caller built. One with a length is at hand by number."""
    if data.dataset:
        raise ValueError(f"data.dataset is {data.dataset!r} and a dataset was given, too; leave one of them out.")
    given, description = take_in_hand(dataset, data.split), "the given dataset"
    dataset, rows, column = given.dataset, None, NUMBER
    if given.arrays is not None:
        check_columns({}, data, description)
    elif isinstance(dataset, datasets.IterableDataset):
        dataset, types = _undecoded(dataset)
        column = choose_column(types, data, processor, description)
    else:
        column = choose_column(dataset.features, data, processor, description)
        dataset = with_arrays(dataset, column)
    if isinstance(dataset, datasets.Dataset):
        rows = dataset
    featurize = partial(decode_column, column=column, data=data, processor=processor, arrays=given.arrays)
    return Source(
        dataset,
        featurize,
        column,
        data.exclude,
        description,
        rows=rows,
        arrays=given.arrays,
        fingerprint=given.fingerprint,
        given=True,
    )


def _undecoded(dataset: datasets.IterableDataset) -> tuple[datasets.IterableDataset, dict]:
    """A stream whose audio, images and videos are not decoded, and the types of its columns."""
    if dataset.features is None:  # of tables of text, such as csv files, whose paths are read as they are
        first = next(iter(dataset), {})
        held = (bytes, dict, list, np.ndarray)
        return dataset, {key: datasets.Value("null" if isinstance(first[key], held) else "string") for key in first}
    types, dataset = dict(dataset.features), dataset.decode(False)
    for column, feature in types.items():
        if type(feature) in RAW:
            dataset = dataset.cast_column(column, RAW[type(feature)](decode=False))
    return dataset, types


def decode_column(
    example: dict, rng: np.random.Generator | None = None, *, column: str, data, processor, arrays: list | None = None
) -> np.ndarray:
    """The array of a raw example, see `Modality.decode`. A module's function, since spawned workers get it pickled."""
    raw = example[column] if arrays is None else arrays[example[column]]
    return modality_of(processor).decode(raw, data, processor, rng)


def check_columns(types: dict, data: DataArguments, description: str) -> None:
    """Raise a `ValueError` for a column that `data` names and the dataset does not have."""
    for argument, column in [
        ("input_column", data.input_column),
        ("label_column", data.label_column),
        ("fold_column", data.fold_column),
        *((f"exclude.{column}", column) for column in data.exclude),
    ]:
        there = column in types if argument == "input_column" else type_of(types, column or "") is not None
        if column is not None and not there:
            why = why_no_labels(data) if argument == "label_column" else ""
            columns = list(types)
            raise ValueError(
                f"data.{argument}: {description} has no column {column!r}; its columns are {columns}{why}."
            )


def choose_column(types: dict, data: DataArguments, processor, description: str) -> str:
    """The column of a dataset to decode.

    Raises:
        ValueError: there is none, or `data` names a column that there is not.
    """
    check_columns(types, data, description)
    return data.input_column or find_column(types, modality_of(processor), description)


def find_column(features: dict, modality, description: str) -> str:
    """The first column of a modality's type, otherwise one with a usual name."""
    typed = [column for column, feature in features.items() if isinstance(feature, modality.column_type)]
    named = [column for column in modality.column_names if column in features]
    if typed or named:
        return (typed + named)[0]
    raise ValueError(
        f"data.input_column: {description} has no column of type {modality.column_type.__name__}; name the one that "
        f"holds bytes or paths, its columns are {list(features)}."
    )


def sound_reader(data: DataArguments, processor, dataset=None) -> Callable[[set[int]], dict[int, np.ndarray]] | None:
    """A function that gives the waveforms of some samples by their number in what `load_examples` reads; None for a
    modality that makes no sound."""
    return None if modality_of(processor).waveform is None else partial(_read_sounds, data, processor, dataset)


def _read_sounds(data: DataArguments, processor, dataset, rows: set[int]) -> dict[int, np.ndarray]:
    source, found = open_source(data, processor, dataset), {}
    # decoded as the examples were, so that the same samples are skipped and the numbers agree
    samples = enumerate(source.decode_all(data.num_workers, data.max_bad_share))
    for row, (example, _) in islice(samples, max(rows, default=-1) + 1):
        if row in rows:
            found[row] = modality_of(processor).waveform(source.raw(example), processor)
    return found
