"""Opening of named datasets: fast for large folders, and in the same order in every process.

`datasets` looks for the splits of a folder with 66 patterns and walks the whole folder for each, a minute for 50,000
files. If no name hints at a split, it is told so, and the opened dataset is kept until the folder changes.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import datasets
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from .arguments import DataArguments

logger = logging.getLogger(__name__)

WORDS = "|".join(word for words in SPLIT_KEYWORDS.values() for word in words)
BETWEEN = f"[{NON_WORDS_CHARS}/]"
MAY_NAME_A_SPLIT = re.compile(f"(^|{BETWEEN})({WORDS})({BETWEEN}|$)|-of-[0-9]")
CARDS = {"README.md", ".huggingface.yaml"}  # may say what the splits are


def load_builder(data: DataArguments) -> datasets.DatasetBuilder:
    """The builder of the dataset that `data` names. Its `cache_dir` identifies the state of the files."""
    if not data.dataset:
        raise ValueError("data.dataset is empty: give the folder or the Hub id of a dataset.")
    path = os.path.abspath(os.path.expanduser(data.dataset))
    if not os.path.isdir(path):
        return datasets.load_dataset_builder(data.dataset, data.name, data_files=data.files)
    state, one_split = look_at(path)
    if one_split and data.name is None and data.files is None:
        builder = _load_folder(path, None, "**", state)
        if isinstance(builder, FolderBasedBuilder):  # which passes over files of other types; others would read them
            return builder
    return _load_folder(path, data.name, data.files, state)


def look_at(folder: str) -> tuple[str, bool]:
    """A fingerprint of the files in a folder, and whether all are of one split as far as names tell."""
    digest, one_split = hashlib.sha256(), CARDS.isdisjoint(os.listdir(folder))
    for place, folders, names in os.walk(folder):
        folders.sort()  # they are walked in this order
        inside = os.path.relpath(place, folder)
        for name in sorted(names):
            try:
                about = os.stat(os.path.join(place, name))
            except FileNotFoundError:  # removed since, or a link to nothing
                continue
            digest.update(f"{inside}/{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode(errors="surrogateescape"))
            one_split = one_split and not MAY_NAME_A_SPLIT.search(f"{inside}/{name}")
    return digest.hexdigest(), one_split


@lru_cache(maxsize=4)
def _load_folder(path: str, name: str | None, files: str | None, state: str) -> datasets.DatasetBuilder:
    builder = datasets.load_dataset_builder(path, name, data_files=files)
    if files is None and isinstance(builder, FolderBasedBuilder) and CARDS.isdisjoint(os.listdir(path)):
        read, there = (count_clips(builder, names) for names in (builder.config.data_files.values(), walk_names(path)))
        if read < there:
            logger.warning(
                "%d of the %d clips in %s are of no split, since names of others speak of one (%s); "
                "data.files='**/*.wav', say, reads all such files",
                there - read, there, path, ", ".join(map(str, builder.config.data_files)),
            )  # fmt: skip
    return builder


def count_clips(builder: FolderBasedBuilder, groups: Iterable[list[str]]) -> int:
    """How many of the files in lists of names the builder takes for clips."""
    return sum(os.path.splitext(name)[1].lower() in builder.EXTENSIONS for names in groups for name in names)


def walk_names(folder: str) -> Iterator[list[str]]:
    """The names of the files in each folder below a folder, hidden ones left out."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield [name for name in names if not name.startswith(".")]


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
