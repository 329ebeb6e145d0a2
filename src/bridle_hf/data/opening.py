"""The dataset that `data` names, opened without looking longer at a folder than needed.

`datasets` looks for the splits of a folder with 66 patterns and walks the whole folder for each, a minute for 50,000
files. Where no name speaks of a split it is told so, and what was opened is kept until the folder changes.
"""

import hashlib
import os
import re
from functools import lru_cache

import datasets
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from .arguments import DataArguments

_WORDS, _BETWEEN = "|".join(word for words in SPLIT_KEYWORDS.values() for word in words), f"[{NON_WORDS_CHARS}/]"
MAY_NAME_A_SPLIT = re.compile(f"(^|{_BETWEEN})({_WORDS})({_BETWEEN}|$)|-of-[0-9]")
CARDS = {"README.md", ".huggingface.yaml"}  # may say what the splits are


def load_builder(data: DataArguments) -> datasets.DatasetBuilder:
    """The builder of the dataset that `data` names. Its `cache_dir` identifies the state of the files."""
    if not data.dataset:
        raise ValueError("data.dataset is empty: give the folder or the Hub id of a dataset.")
    path = os.path.expanduser(data.dataset)
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
        folders.sort()
        inside = os.path.relpath(place, folder)
        for name in sorted(names):
            about = os.stat(os.path.join(place, name), follow_symlinks=False)
            digest.update(f"{inside}/{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode(errors="surrogateescape"))
            one_split = one_split and not MAY_NAME_A_SPLIT.search(f"{inside}/{name}")
    return digest.hexdigest(), one_split


@lru_cache(maxsize=4)
def _load_folder(path: str, name: str | None, files: str | None, state: str) -> datasets.DatasetBuilder:
    return datasets.load_dataset_builder(path, name, data_files=files)
