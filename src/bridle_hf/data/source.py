"""Reading of undecoded datasets, shard by shard; streams, caches and labelled sets are built on it."""

import logging
import os
import re
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from .arguments import DataArguments
from .bad_share import check_bad_shards, check_bad_share, is_short
from .columns import check_columns, choose_column, first_examples, number_type, of_type, undecoded, with_labels_of_paths
from .fields import excluded_by, names_of_classes, say_what_excludes_nothing, select
from .in_hand import NUMBER, take_in_hand, with_arrays
from .media import LONGEST_PATH, BadClipError, UnusableDataError, folders_of, is_url, made_whole
from .modalities import modality_of
from .opening import READ_AT_ONCE, open_named

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 10_000  # put into a table together
LOOKED_AT = 100  # first rows of a table that say whether a column holds paths
READ_ATTEMPTS, RETRY_SECONDS = 3, 5.0  # of a shard; the pause grows with each
NOT_OF_A_DISK = ValueError, TypeError, LookupError, AttributeError, tarfile.TarError  # they come back with each attempt
MARK = 0  # key of an example that no column can have: what tells it from all others, see `Source.named`


class BadShardError(OSError):
    """A shard that could not be read, however often it was tried."""

    def __init__(self, shard: int, reason: Exception, file: str | None = None):
        said = " ".join(f"{type(reason).__name__}: {reason}".split())  # some have several lines
        super().__init__(f"shard {shard}{f' ({file})' if file else ''}: {said}")
        self.shard = shard


@dataclass
class Source:
    """Raw examples by shard, and the function that decodes one.

    Attributes:
        dataset: the examples, undecoded.
        featurize: `featurize(example, rng=None, views=None, stream=False)` decodes one raw example to an array. With
            `rng`, only a random window of long media is decoded; with `views`, of a video only what a test looks at;
            with `stream` as `Modality.stream` does. Raises `BadClipError` if unusable.
        input_column: column that holds the media; None of decoded samples from a cache.
        exclude: column -> values of the examples to skip.
        description: what messages call the dataset.
        hint: what messages about many samples that cannot be used say of the column, where it may be the wrong one.
        count: number of examples, of a folder of clips.
        of_files: whether an example names a file and holds nothing of it.
        skipped: mark -> reason of the samples that could not be used when all of them were decoded.
        behind: number of examples up to the one that `decode_all` gave last.
        bad, short: how many of those that it read could not be used, and how many of these are too short; `total` is
            how many there are, 0 where that is not known.
        rows: the examples as an indexable table; None where they can only be read in order.
        arrays: of a list, its arrays and files; an example then holds the place of its own.
        fingerprint: identifies the content for a cache; None of a stream that the caller built.
        dates_files: whether the fingerprint also tells the state of files whose paths are all that the dataset holds.
        given: whether the caller built the dataset.
        why_no_label: why a folder gives no column `label`.
        hits: the pairs (column, value) of `exclude` that matched an example so far.
        files: file of each shard, where shards are files of a folder or of the Hub.
        read_columns: see `Opened`.
    """

    dataset: datasets.IterableDataset | datasets.Dataset
    featurize: Callable[..., np.ndarray]
    input_column: str | None
    exclude: dict[str, list]
    description: str
    hint: str = ""
    count: int | None = None
    of_files: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    behind: int = 0
    bad: int = 0
    short: int = 0
    total: int = 0
    rows: datasets.Dataset | None = None
    arrays: list | None = None
    fingerprint: str | None = None
    dates_files: bool = False
    given: bool = False
    why_no_label: str = ""
    hits: set[tuple[str, str]] = field(default_factory=set)
    files: list[str] | None = None
    read_columns: Callable[[list[str]], datasets.IterableDataset] | None = None

    @property
    def num_shards(self) -> int:
        return 1 if isinstance(self.dataset, datasets.Dataset) else self.dataset.num_shards

    def raw(self, example: dict) -> Any:
        """The undecoded media of an example: bytes and path, or an array."""
        value = example[self.input_column]
        return value if self.arrays is None else self.arrays[value]

    def named(self, example: dict, place: str) -> dict:
        """The example with its `MARK` and a `clip_name`: its own, the path of its file, or its place.

        The mark is the path of a file outside the dataset, otherwise the name with the place: names may repeat.
        """
        raw = example.get(self.input_column)
        raw = raw if isinstance(raw, dict) else {"path": raw if isinstance(raw, str) else None}
        path = raw.get("path")
        path = None if isinstance(path, str) and len(path) > LONGEST_PATH else path  # a file as text, or the like
        named = {"clip_name": path or place} | example  # whatever a column of that name holds, it is the user's
        name = path or named["clip_name"] or place
        alone = name == place or (path and raw.get("bytes") is None)
        return named | {MARK: name if alone else f"{name} ({place})"}

    def read(self, shard: int, start: int = 0) -> Iterator[dict]:
        """The examples of one shard from index `start` on, `named`, including the excluded ones.

        Raises:
            BadShardError: reading failed `READ_ATTEMPTS` times, or once for a reason that stays.
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
                file = self.files[shard] if self.files else None
                stays = isinstance(error, NOT_OF_A_DISK) and not isinstance(error, OSError)
                failed += 1
                if failed == READ_ATTEMPTS or stays and not is_url(file or ""):
                    raise BadShardError(shard, error, file) from error
                logger.warning("reading shard %d failed, trying again: %s", shard, error)
                time.sleep(RETRY_SECONDS * failed)

    def examples(self, shard: int) -> Iterator[dict]:
        """The examples of one shard, relative paths in the folder of its file made whole where they lead to a file."""
        folders = folders_of(self.files[shard]) if self.files else []
        for batch in self.batches(shard):
            for values in zip(*batch.values(), strict=True):
                example = dict(zip(batch, values, strict=True))
                for folder in folders if self.input_column in example else ():
                    example[self.input_column] = made_whole(example[self.input_column], folder)
                yield example

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
        if not self.exclude:
            return True
        path = example.get(self.input_column) if self.input_column in self.exclude else None
        if isinstance(path, str):  # as the table has it, too, in whose folder it was found
            spelled = [path.removeprefix(os.path.join(folder, "")) for folder in self.folders]
            example = example | {self.input_column: [path, *spelled]}
        found = excluded_by(self.exclude, example, self.class_names)
        self.hits.update(found)
        return not found

    @cached_property
    def folders(self) -> set[str]:
        """The folders in which relative paths of the tables are looked up."""
        return {folder for file in self.files or () for folder in folders_of(file)}

    @cached_property
    def class_names(self) -> dict[str, list[str]]:
        """Class names of the columns in `exclude`, see `names_of_classes`."""
        return names_of_classes(self.dataset.features or {}, self.exclude)

    def list_files(self, max_bad_share: float) -> datasets.Dataset:
        """A table of the input column and `clip_name` of all examples that are not excluded, for a source of files."""
        needed = select(self.dataset, [self.input_column, *self.exclude])
        examples = filter(self.keeps, replace(self, dataset=needed).read_all(max_bad_share))
        rows = ({key: example[key] for key in (self.input_column, "clip_name")} for example in examples)
        parts = (pa.Table.from_pylist(part) for part in iter(lambda: list(islice(rows, FILES_AT_ONCE)), []))
        return datasets.Dataset(pa.concat_tables([pa.table({}), *parts], promote_options="default"))

    def decode_all(
        self, num_workers: int, max_bad_share: float, start: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[dict, np.ndarray]]:
        """Yield `(example, array)` for every example that is not excluded, in order from index `start` on; of shard
        (r, n) every n-th, from the r-th on, and `start` counts these.

        `num_workers` threads decode ahead (decoding and filter banks release Python's lock); `behind` counts the
        examples up to the last one yielded. Bad samples are skipped and logged; too many of them raise the error of
        `check_bad_share`.
        """
        rank, processes = shard
        examples = filter(self.keeps, self.read_all(max_bad_share))
        examples = islice(examples, rank + start * processes, None, processes)
        splits, split = self.dataset.info.splits or {}, str(self.dataset.split)
        total = None
        if not self.exclude:
            total = splits[split].num_examples if split in splits else self.count
            total = total if self.rows is None else len(self.rows)
        total = total and len(range(rank, total, processes))
        bar = tqdm(
            examples, desc=f"reading {self.description}", unit=" clips", total=total, initial=start, disable=total == 1
        )
        self.bad, self.short, self.behind, self.total = 0, 0, start, total or 0
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            for example, future in _submit_ahead(pool, self.featurize, bar, ahead=4 * max(1, num_workers)):
                self.behind += 1
                try:
                    features = future.result()
                except BadClipError as error:
                    self.skip(example, error, self.behind - start, max_bad_share)
                else:
                    yield example, features
        if start == 0 and processes == 1:
            say_what_excludes_nothing(self.exclude, self.hits, self.description)
        if self.behind == self.bad + start and start == rank == 0:  # more processes than examples leave some without
            last = f"; the last one, {example['clip_name']}, {self.skipped[example[MARK]]}" if self.bad else ""
            raise UnusableDataError(
                f"no usable example in {self.description} (exclude={self.exclude}, {self.bad} bad clips{last})."
                f"{self.hint}"
            )

    def skip(self, example: dict, error: BadClipError, seen: int, max_bad_share: float) -> None:
        """Leave out one of the `seen` examples that `decode_all` gave: count it, name it, and judge the share."""
        self.bad += 1
        self.short += is_short(error)
        mark = example[MARK]
        if mark in self.skipped:  # a file that several rows name
            mark = f"{mark} (sample {self.behind})"
        self.skipped[mark] = str(error)
        say_skipped(mark, str(error))
        check_bad_share(self.bad - self.short, seen, max_bad_share, mark, error, self.hint, self.total)


def say_skipped(mark: str, reason: str) -> None:
    """Log that a sample is skipped. All readers log it here, so that commands can filter repeated messages."""
    logger.warning("skipped %s: %s", mark, reason)


def is_shard(mark: str) -> bool:
    """Whether a mark in `skipped` is that of a shard and not of a sample."""
    return re.fullmatch(r"shard \d+", mark) is not None


def leave_out(table: datasets.Dataset, exclude: dict[str, list]) -> datasets.Dataset:
    """The rows of a table that are not excluded. Reads the columns of `exclude` alone."""
    if not exclude:
        return table
    columns, names = select(table, exclude), names_of_classes(table.features, exclude)
    return table.select([row for row, values in enumerate(columns) if not excluded_by(exclude, values, names)])


def _submit_ahead(pool, function, items, ahead: int) -> Iterator[tuple]:
    """Pairs (item, future) in order, with at most `ahead` futures waiting, so that memory stays bounded."""
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting


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
    modality = modality_of(processor)
    opened = open_named(data, modality)
    dataset, types = undecoded(opened.stream, opened.files)
    description = f"{os.path.basename(os.path.abspath(data.dataset))} ({data.split})"
    dataset, types = with_labels_of_paths(dataset, types, data)
    first = partial(first_examples, dataset, opened.files, LOOKED_AT)
    column = choose_column(types, data, processor, description, opened.why_no_label, opened.others, first)
    numbers = number_type(types[column])
    featurize = partial(decode_column, column=column, data=data, processor=processor, numbers=numbers)
    of_paths = types[column] in (datasets.Value("string"), datasets.Value("large_string"))
    return Source(
        dataset,
        featurize,
        column,
        data.exclude,
        description,
        hint=f" The values of column {column!r} (data.input_column) are taken for paths." if of_paths else "",
        count=opened.count,
        of_files=of_paths or opened.of_files,
        fingerprint=opened.fingerprint,
        dates_files=opened.of_files,
        why_no_label=opened.why_no_label,
        files=opened.files,
        read_columns=opened.read_columns,
    )


def _open_given(dataset, data: DataArguments, processor) -> Source:
    """A dataset that the caller built. One with a length is at hand by number."""
    if data.dataset:
        raise ValueError(f"data.dataset is {data.dataset!r} and a dataset was given, too; leave one of them out.")
    given, description = take_in_hand(dataset, data.split), "the given dataset"
    dataset, rows, column = given.dataset, None, NUMBER
    types = dict.fromkeys([NUMBER])
    if given.arrays is not None:
        check_columns({}, data, description)
    elif isinstance(dataset, datasets.IterableDataset):
        dataset, types = undecoded(dataset)
        column = choose_column(types, data, processor, description)
    else:
        types, column = dataset.features, choose_column(dataset.features, data, processor, description)
        dataset = with_arrays(dataset, column)
    if isinstance(dataset, datasets.Dataset):
        rows = dataset
    featurize = partial(
        decode_column,
        column=column,
        data=data,
        processor=processor,
        arrays=given.arrays,
        numbers=number_type(types[column]),
    )
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


def decode_column(
    example: dict,
    rng: np.random.Generator | None = None,
    views: tuple[int, int] | None = None,
    stream: bool = False,
    *,
    column: str,
    data,
    processor,
    arrays: list | None = None,
    numbers: str | None = None,
) -> np.ndarray:
    """The array of a raw example, see `Modality.decode`. A module's function, since spawned workers get it pickled."""
    if column not in example:  # of a table without it, beside others
        raise BadClipError(f"has no column {column!r}")
    raw = example[column] if arrays is None else arrays[example[column]]
    if numbers is not None:
        raw = of_type(raw, numbers)
    modality = modality_of(processor)
    if stream and modality.stream is not None:
        return modality.stream(raw, data, processor)
    return modality.decode(raw, data, processor, rng, **({"views": views} if modality.has_views else {}))


def sound_reader(data: DataArguments, processor, dataset=None) -> Callable[[set[int]], dict[int, np.ndarray]] | None:
    """A function that gives the waveforms of some samples by their number in what `load_examples` reads; None for a
    modality that makes no sound."""
    return None if modality_of(processor).waveform is None else partial(_read_sounds, data, processor, dataset)


def _read_sounds(data: DataArguments, processor, dataset, rows: set[int]) -> dict[int, np.ndarray]:
    source, found = open_source(data, processor, dataset), {}
    # decoded as the examples were, so that the same samples are skipped and the numbers agree
    samples = enumerate(source.decode_all(data.workers, data.max_bad_share))
    for row, (example, _) in islice(samples, max(rows, default=-1) + 1):
        if row in rows:
            found[row] = modality_of(processor).waveform(source.raw(example), processor)
    return found
