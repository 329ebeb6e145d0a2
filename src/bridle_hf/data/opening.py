"""Opening of named datasets: folders by the files that the modality can decode, tables and the Hub by `datasets`.

What a folder holds is found here and not by `datasets`, which goes by the most frequent extension and looks for words
of splits in the names of all files. Every process reads the same files in the same order.
"""

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import datasets
import yaml
from datasets.data_files import DataFilesDict, DataFilesList, EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.text.text import Text
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import DatasetCard
from pyarrow.dataset import ParquetFragmentScanOptions

from ..files import at_home
from ..hub_connection import check_connection
from .arguments import DataArguments
from .columns import media_columns
from .folder import OF_ARCHIVES, counted, find_clips, group
from .listing import (
    CARDS,
    METADATA,
    OF_THE_LIBRARY,
    Listing,
    is_hidden,
    list_folder,
    matching,
    only_file,
    shown,
    table_kind,
)
from .media import is_url
from .modality import Modality
from .tar_files import read_with_care

logger = logging.getLogger(__name__)

READ_AT_ONCE = 16  # examples fetched together from a shard
SMALL_ROWS_AT_ONCE = 1000  # rows without their media
NOTHING_TO_READ = EmptyDatasetError, DataFilesNotFoundError
END_OF_TAR = bytes(1024)


@dataclass
class Opened:
    """A named dataset, opened.

    Attributes:
        stream: its examples.
        fingerprint: identifies the state of its files.
        of_files: whether each example names a file and holds nothing of it.
        count: number of its examples, of a folder of clips.
        files: file of each shard, where shards are files.
        why_no_label: why a folder gives no column `label`.
        others: what is left out of the folder, for messages about what is missing.
        read_columns: opens the stream with some columns alone, where the format need not read the others (parquet).
    """

    stream: datasets.IterableDataset
    fingerprint: str
    of_files: bool = False
    count: int | None = None
    files: list[str] | None = None
    why_no_label: str = ""
    others: str = ""
    read_columns: Callable[[list[str]], datasets.IterableDataset] | None = None


def open_named(data: DataArguments, modality: Modality) -> Opened:
    """Open the dataset that `data` names: a folder or an id on the Hub.

    Raises:
        ValueError: there is nothing in it that can be read, or not that split.
        OSError: there is no such dataset.
    """
    if not data.dataset:
        raise ValueError("data.dataset is empty: give the folder or the Hub id of a dataset.")
    path = os.path.abspath(at_home(data.dataset))
    if not os.path.isdir(path):
        return _open_builder(_load_builder(data.dataset, data, modality), data, modality)
    if data.name is not None or _has_configs(path) or (data.files and _is_beyond(data.files)):
        return _open_builder(_load_builder(path, data, modality), data, modality)
    listing = list_folder(path, data.cache_dir, only_file(path, data.files))
    names = [name for name in listing.names if os.path.basename(name) not in OF_THE_LIBRARY]
    if data.files:
        names = matching(names, data.files)
        if not names:
            raise ValueError(f"data.files={data.files!r} matches no readable file in {data.dataset!r}.")
    clips = find_clips(listing, names, modality.extensions())
    tables = {name: kind for name in names if (kind := table_kind(name)) and os.path.basename(name) not in METADATA}
    kinds, media = Counter(tables.values()), counted(clips)
    most = media > kinds["parquet"] + kinds["arrow"] and media >= kinds["webdataset"]
    # only a table has a column of another name; media without metadata have one and the labels
    of_table = tables and data.input_column not in (None, modality.name) and not any(clip.is_metadata for clip in clips)
    if most and not of_table:
        return _open_media(data, modality, listing, names, clips)
    if not tables:
        tables = {name: table_kind(name) for name in names if os.path.basename(name) in METADATA}
    if tables:
        return _open_tables(data, modality, listing, names, tables)
    builder = None
    try:
        builder = _load_builder(path, data, modality)
        if isinstance(builder, Text) and data.input_column is None:
            raise EmptyDatasetError("lines of text are no names of files unless a column is named")
        opened = _open_builder(builder, data, modality)
    except Exception as error:  # nothing that the library reads, or an archive that it cannot look into
        if builder is not None and not isinstance(error, EmptyDatasetError | ImportError):
            raise  # an error about the data; an ImportError means that a format needs another package
        there = listing.said([name for name in names if name not in set().union(*listing.left.values())])
        raise ValueError(
            f"data.dataset is {data.dataset!r}, a folder that holds no {modality.name} file, archive or table that can "
            f"be read" + (f"; it holds {there}." if there else ".")
        ) from error
    listing.left.pop(OF_ARCHIVES, None)  # the builder reads them
    if left := listing.said([]):
        _say(logging.WARNING, f"{data.dataset}: left out: {left}")
    return opened


def _load_builder(path: str, data: DataArguments, modality: Modality) -> datasets.DatasetBuilder:
    if not os.path.isdir(path) and data.files is None:  # with files it may be the name of a format, such as parquet
        check_connection(path, "dataset")
    return _with_care(datasets.load_dataset_builder(path, data.name, data_files=data.files), data, modality)


def _with_care(builder: datasets.DatasetBuilder, data: DataArguments, modality: Modality) -> datasets.DatasetBuilder:
    if isinstance(builder, WebDataset):
        read_with_care(builder, data, modality)
    return builder


def _has_configs(folder: str) -> bool:
    """Whether a card in the folder says what its splits are."""
    if os.path.exists(os.path.join(folder, CARDS[1])):
        return True
    try:
        with open(os.path.join(folder, CARDS[0]), encoding="utf-8") as file:
            text = file.read()
        return text.startswith("---") and not {"configs", "dataset_info"}.isdisjoint(DatasetCard(text).data.to_dict())
    except (ValueError, OSError, yaml.YAMLError):  # there is none, or it is no card
        return False


def _is_beyond(pattern: str) -> bool:
    """Whether a pattern names files outside the folder or hidden ones, which are left to `datasets`."""
    return (
        is_url(pattern) or os.path.isabs(pattern) or ".." in pattern.split("/") or is_hidden(pattern.removeprefix("./"))
    )


def _open_media(data: DataArguments, modality: Modality, listing: Listing, names: list[str], clips: list) -> Opened:
    folder = group(clips, data.files is not None, listing)
    _check_split(data.split, folder.splits)
    feature = modality.column_type(decode=False)
    table, why, unnamed = folder.table(data.split, modality.name, feature, listing)
    known = {clip.name for clip in clips}.union(*listing.left.values())
    others = [name for name in names if name not in known]
    numbers = {name: counted(found) for name, found in folder.splits.items()}
    numbers[data.split] -= unnamed
    _say_what_is_read(data, listing, counted(clips), numbers, others)
    if data.label_column == "label" and not why and (nesting := folder.nesting()):
        _say(logging.WARNING, f"{data.dataset}: {nesting}.")
    more = ""
    if kinds := sorted({os.path.splitext(name)[1] for name in others if table_kind(name)}):
        more = f" It is read as a folder of {modality.name} files; data.files='**/*{kinds[0]}' reads its tables."
    return Opened(
        table.to_iterable_dataset(), f"{listing.state}-{data.files}", True, len(table), why_no_label=why, others=more
    )


def _check_split(split: str, splits: dict) -> None:
    if split not in splits:
        raise ValueError(f"Bad split: {split}. Available splits: {list(splits)}")


def _open_tables(data: DataArguments, modality: Modality, listing: Listing, names: list[str], tables: dict) -> Opened:
    """Tables or shards of one kind, read by the builder of `datasets` for it."""
    kinds = Counter(tables.values())
    if shards := {kind: count for kind, count in kinds.items() if kind in ("parquet", "arrow", "webdataset")}:
        kinds = shards  # json and csv files beside shards describe them
    order = ["parquet", "arrow", "webdataset", "json", "csv", "tsv"]
    kind = max(kinds, key=lambda kind: (kinds[kind], -order.index(kind)))
    chosen = [name for name, its in tables.items() if its == kind]
    if any("::" in os.path.join(listing.folder, name) for name in chosen):
        raise ValueError(
            f"data.dataset is {data.dataset!r}; '::' in the path of a table is a chain of URLs: rename it."
        )
    splits = listing.split(chosen, one=data.files is not None)
    _check_split(data.split, splits)
    others = sorted(set(names) - set(chosen))
    _say_what_is_read(data, listing, len(chosen), {name: len(found) for name, found in splits.items()}, others)
    paths = {split: [os.path.join(listing.folder, name) for name in found] for split, found in splits.items()}
    if kind == "webdataset" and (early := [path for path in paths[data.split] if _ends_early(path)]):
        _say(
            logging.WARNING,
            f"{data.dataset}: {len(early)} of {len(paths[data.split])} tar files do not end as a tar does, what came "
            f"behind is lost ({shown(map(os.path.basename, early))})",
        )

    def load(files: dict[str, list[str]]) -> datasets.DatasetBuilder:
        lists = DataFilesDict({split: DataFilesList(found, [(listing.state,)]) for split, found in files.items()})
        options = {"sep": "\t"} if kind == "tsv" else {}
        builder = datasets.load_dataset_builder("csv" if kind == "tsv" else kind, data_files=lists, **options)
        return _with_care(builder, data, modality)

    opened = _open_builder(load(paths), data, modality, load)
    if said := listing.said(others):
        opened.others = f" Left out of the folder: {said}."
    return opened


def _ends_early(path: str) -> bool:
    """Whether a tar file lacks the two empty blocks at its end."""
    if not path.endswith(".tar"):
        return False
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(END_OF_TAR)))
            return file.read() != END_OF_TAR
    except OSError:
        return False  # reading it will say so


def _open_builder(
    builder: datasets.DatasetBuilder, data: DataArguments, modality: Modality, load: Callable | None = None
) -> Opened:
    """A split of a builder of `datasets`. With `load`, which makes a builder of files, damage in the first file costs
    no more than in another."""
    files = [str(file) for file in (builder.config.data_files or {}).get(data.split, [])]
    if getattr(builder.config, "batch_size", 0) is None:  # of parquet files; its default fails on one without rows
        builder.config.batch_size = READ_AT_ONCE
        if files and not is_url(files[0]):  # over a network, fewer and larger reads are worth their memory
            builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
    try:
        stream = open_stream(builder, data.split)
    except Exception as error:  # readers raise whatever their formats raise
        features = load and _features_of_others(load, files, data, modality)
        if not features:
            if load is None:
                raise
            raise ValueError(f"{files[0]} cannot be read: {type(error).__name__}: {error}") from error
        _say(
            logging.WARNING, f"{files[0]} cannot be read ({type(error).__name__}: {error}); the others say the columns"
        )
        builder.info.features = features
        stream = open_stream(builder, data.split)
    else:
        if load and stream.features and not _has_media(stream.features, data, modality):
            if features := _features_of_others(load, files, data, modality):
                _say(logging.WARNING, f"{files[0]} has other columns than the other files: {list(stream.features)}")
                builder = load({data.split: files})
                builder.info.features = features
                stream = open_stream(builder, data.split)
    return Opened(
        stream,
        os.path.relpath(builder.cache_dir, datasets.config.HF_DATASETS_CACHE),  # users have caches of their own
        of_files=isinstance(builder, FolderBasedBuilder),
        files=files if len(files) == stream.num_shards else None,
        read_columns=partial(_read_columns, builder, data.split) if hasattr(builder.config, "columns") else None,
    )


def _read_columns(builder: datasets.DatasetBuilder, split: str, columns: list[str]) -> datasets.IterableDataset:
    """A split of a builder with some of its columns."""
    builder = copy.copy(builder)
    builder.config = replace(builder.config, columns=columns, batch_size=SMALL_ROWS_AT_ONCE)
    builder.info = builder.info.copy()
    return open_stream(builder, split)


def _features_of_others(load: Callable, files: list[str], data: DataArguments, modality: Modality):
    """The columns of the first of the files behind the first that can be read and holds media; None of none."""
    for file in files[1:]:
        try:
            features = open_stream(load({data.split: [file]}), data.split).features
        except Exception:  # readers raise whatever their formats raise
            continue
        if features and _has_media(features, data, modality):
            return features
    return None


def _has_media(features: dict, data: DataArguments, modality: Modality) -> bool:
    return data.input_column in features if data.input_column else bool(media_columns(features, modality))


def open_stream(builder: datasets.DatasetBuilder, split: str) -> datasets.IterableDataset:
    """A split, its examples in the same order in every process.

    The library keeps the metadata files of a folder in a set, whose order changes from process to process.
    """
    if not isinstance(builder, FolderBasedBuilder):
        return builder.as_streaming_dataset(split)
    find_splits = builder._split_generators

    def in_order(manager) -> list[datasets.SplitGenerator]:
        found = find_splits(manager)
        for each in found:
            each.gen_kwargs["metadata_files"] = tuple(sorted(each.gen_kwargs["metadata_files"], key=str))
        return found

    builder._split_generators = in_order
    try:
        return builder.as_streaming_dataset(split)
    finally:
        del builder._split_generators  # the class's own again


def _say_what_is_read(data: DataArguments, listing: Listing, usable: int, splits: dict, others: list[str]) -> None:
    """One line: how many of the files that were found are read, and what is left out.

    Args:
        data: what is read.
        listing: what else was found, and why it is left out.
        usable: number of files that could be read.
        splits: split -> number of its files.
        others: files of other types.
    """
    found, left = usable + len(others) + sum(map(len, listing.left.values())), listing.said(others)
    more = ", ".join(f"{split} has {count}" for split, count in splits.items() if split != data.split)
    text = f"{data.dataset}: {splits[data.split]} of {found} files are read (split {data.split}{more and f'; {more}'})"
    _say(logging.WARNING if left else logging.INFO, text + (f"; left out: {left}" if left else ""))


@lru_cache(maxsize=1024)
def _say(level: int, text: str) -> None:
    """Log a line once, in the first process of a run."""
    if os.environ.get("RANK", "0") == "0":
        logger.log(level, text)
