"""Folders of media files, and zip archives of them, as tables of paths.

Further columns come from metadata files; without any, folders are classes.
"""

import io
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from .fields import warn_once
from .listing import METADATA, WORDS, Listing, folder_word, is_hidden, shown
from .media import open_file

logger = logging.getLogger(__name__)

OF_ARCHIVES = "of other types in archives"  # a reason why files are left out
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@dataclass
class Clip:
    """A file of the modality, or a metadata file.

    Attributes:
        name: of the file, or of the archive that it is in, relative to the folder.
        path: what `open_file` takes.
        place: its name with folders; within its archive if it is in one.
        is_metadata: whether it is a metadata file.
        folders: those that it lies in; of an archive without any, the archive's name.
    """

    name: str
    path: str
    place: str
    is_metadata: bool = field(init=False)
    folders: list[str] = field(init=False)

    @property
    def archive(self) -> str:
        """Name of the archive that contains it; empty if it is in none."""
        return "" if self.name == self.place else self.name

    def __post_init__(self):  # once: a folder may have 100,000
        *self.folders, last = self.place.split("/")
        self.is_metadata = last in METADATA
        if not self.folders and self.archive:
            self.folders = [os.path.splitext(os.path.basename(self.name))[0]]


@dataclass
class MediaFolder:
    """The clips of a folder by split.

    Attributes:
        splits: split -> clips and metadata files.
        in_folders: whether names of folders speak of the splits.
    """

    splits: dict[str, list[Clip]]
    in_folders: bool

    def table(self, split: str, column: str, feature, left: Listing) -> tuple[datasets.Dataset, str, int]:
        """The clips of a split in order, why they have no column `label` (empty if they have one), and how many clips
        no row of a metadata file names.

        Args:
            split: one of `splits`.
            column, feature: name and type of the column of media.
            left: what is left out is added to it.

        Raises:
            ValueError: a metadata file cannot be read, or does not fit another.
        """
        clips = self.splits[split]
        tables = [clip for clip in clips if clip.is_metadata]
        if tables:
            table, unnamed = _of_metadata(clips, tables, column, feature, left)
            return table, f"columns come from {_places(tables)}", unnamed
        labels, why = self.classes()
        columns = {column: pa.array([{"path": clip.path} for clip in clips], type=FILE)}
        features = {column: feature}
        if labels:
            features["label"] = datasets.ClassLabel(names=labels)
            number = {label: index for index, label in enumerate(labels)}
            columns["label"] = pa.array([number[self.class_of(clip, split)] for clip in clips], type=pa.int64())
        return _dataset(pa.table(columns), features), why, 0

    def class_of(self, clip: Clip, split: str) -> str | None:
        """The innermost folder of a clip that is not its split's; None where there is none."""
        found = self._class_folders(clip, split)
        return found[-1] if found else None

    def _class_folders(self, clip: Clip, split: str) -> list[str]:
        if not self.in_folders or clip.archive:
            return clip.folders
        return [folder for folder in clip.folders if not folder_word(split)(folder)]

    def classes(self) -> tuple[list[str], str]:
        """The classes that folders say, in order, or none and why: clips of one level in two folders or more have
        them, as in `datasets`."""
        if tables := [clip for clips in self.splits.values() for clip in clips if clip.is_metadata]:
            return [], f"columns come from {_places(tables)}, in another split"
        depths, labels = {}, {}
        for split, clips in self.splits.items():
            for clip in clips:
                depths.setdefault(len(self._class_folders(clip, split)), clip.place)
                labels.setdefault(self.class_of(clip, split), clip.place)
        if len(depths) > 1:
            few, many = min(depths), max(depths)
            return [], (
                f"files lie at different depths ({shown([depths[few]])} and {shown([depths[many]])}); folders are "
                "labels where all files lie in folders of one level"
            )
        if None in labels:
            if "/" in labels[None]:
                return [], (
                    f"the folder of {labels[None]} is taken for a split and not for a class; data.files='**' reads all "
                    "files as one split, with every folder a class"
                )
            return [], "files lie in no folders of classes"
        if len(labels) == 1:
            return [], f"all files lie in one folder, {shown(labels)}"
        return sorted(labels), ""

    def nesting(self) -> str:
        """A warning where the folders that are labels stand in several folders, such as those of speakers in dog and
        rain."""
        parents = {}
        for split, clips in self.splits.items():
            for clip in clips:
                *outer, label = self._class_folders(clip, split) or [None]
                parents.setdefault(label, set()).update(outer[-1:])
        around = sorted(set().union(*parents.values()))
        if len(around) < 2:
            return ""
        of_splits = [each for each in around if any(folder_word(word)(each.lower()) for word in WORDS)]
        small = f", and no splits, which have small letters ({shown([each.lower() for each in of_splits])})"
        return (
            f"the label of a file is its innermost folder ({shown(sorted(parents))}); the folders around these "
            f"({shown(around)}) are no labels{small if of_splits else ''}. Others are said by a metadata.csv with the "
            "columns file_name and label"
        )


def find_clips(listing: Listing, names: list[str], extensions: frozenset[str]) -> list[Clip]:
    """The files of the modality among `names` and those in zip archives, and metadata files. What cannot be listed is
    left out."""
    found = []
    for name in names:
        path, extension = os.path.join(listing.folder, name), os.path.splitext(name)[1].lower()
        if extension in extensions or os.path.basename(name) in METADATA:
            found.append(Clip(name, path, name))
        elif extension == ".zip":
            try:
                found += _members(name, path, extensions, listing)
            except Exception as error:  # of a damaged archive any of the errors of zipfile
                listing.leave(f"cannot be read ({error})", name)
    return found


def _members(name: str, path: str, extensions: frozenset[str], listing: Listing) -> list[Clip]:
    """The clips in an archive; what else is in it is left out. Some archives of Windows have backslashes in names."""
    with zipfile.ZipFile(path) as archive:
        members = sorted({each.filename for each in archive.infolist() if not each.is_dir()})
    found, left = [], {}
    for member in members:
        place = member.replace("\\", "/")
        if os.path.splitext(place)[1].lower() not in extensions and os.path.basename(place) not in METADATA:
            left.setdefault(OF_ARCHIVES, []).append(f"{name}/{place}")
        elif is_hidden(place):
            left.setdefault("hidden in archives", []).append(f"{name}/{place}")
        else:
            found.append(Clip(name, f"zip://{member}::{path}", place))
    for reason, places in left.items():
        listing.unread.setdefault(reason, []).extend(places)
    return found


def group(clips: list[Clip], one_split: bool, listing: Listing) -> MediaFolder:
    """Clips in splits; those of none are left out."""
    if one_split:
        return MediaFolder({"train": clips}, in_folders=False)
    by_name = {}
    for clip in clips:
        by_name.setdefault(clip.name, []).append(clip)
    splits = listing.split(list(by_name), one=False)
    chosen = {split: [clip for name in names for clip in by_name[name]] for split, names in splits.items()}
    in_folders = any(
        folder_word(split)(folder)
        for split, names in splits.items()
        if split in ("train", "validation", "test")
        for name in names
        for folder in name.split("/")[:-1]
    )
    return MediaFolder({split: found for split, found in chosen.items() if found}, in_folders)


def _places(clips: Iterable[Clip]) -> str:
    return shown(clip.place for clip in clips)


def _of_metadata(
    clips: list[Clip], tables: list[Clip], column: str, feature, left: Listing
) -> tuple[datasets.Dataset, int]:
    """The rows of metadata files, whose columns `file_name` and `NAME_file_name` become columns of media; and how many
    clips they do not name."""
    parts, features, named, rows_of = [], {}, set(), Counter()
    for one, other in combinations(tables, 2):
        if one.place.rpartition("/")[0] == other.place.rpartition("/")[0] and one.archive == other.archive:
            raise ValueError(f"{one.path} and {other.path} both say what the files beside them are; leave one.")
    for table in tables:
        rows = _read_metadata(table)
        columns, inside = {}, [True] * len(rows)
        for key in rows.column_names:
            name = column if key == "file_name" else key.removesuffix("_file_name")
            of_names = pa.types.is_string(rows[key].type) or pa.types.is_large_string(rows[key].type)
            if name == key or not of_names:
                kept = key
                if key == column:
                    kept = f"dataset_{key}"
                    logger.warning("%s: column %r is read as %r: that of the clips is called so", table.path, key, kept)
                columns[kept] = rows[key]
                features.setdefault(kept, datasets.Features.from_arrow_schema(rows.select([key]).schema)[key])
                continue
            values = [_beside(table, value) for value in rows[key].to_pylist()]
            inside = [kept and value is not False for kept, value in zip(inside, values, strict=True)]
            named.update(values)
            rows_of.update((name, value) for value in values if value)
            columns[name] = pa.array([{"path": value or None} for value in values], type=FILE)
            features[name] = feature
        if not any(features[name] is feature for name in columns):
            there = "file_name" in rows.column_names and f", it holds {rows['file_name'].type}"
            raise ValueError(
                f"{table.path} has no column 'file_name' of names{there or ''}; its columns are {rows.column_names}."
            )
        if not all(inside):
            outside = [str(number) for number, kept in enumerate(inside) if not kept]
            left.unread[f"rows of {table.place} whose files lie outside its folder"] = outside
        parts.append(pa.table(columns).filter(pa.array(inside, type=pa.bool_())))
    if again := [path for (_, path), count in rows_of.items() if count > 1]:
        warn_once(
            f"{_places(tables)}: {len(again)} files are named by several rows ({shown(again)}): each row is a clip"
        )
    if unnamed := [clip.place for clip in clips if not clip.is_metadata and clip.path not in named]:
        left.unread[f"of no row in {_places(tables)}"] = unnamed
    try:
        merged = pa.concat_tables(parts, promote_options="permissive")
        types = {name: kind for name, kind in features.items() if name in merged.column_names}
        return _dataset(merged, types), len(unnamed)
    except pa.ArrowException as error:
        raise ValueError(f"{_places(tables)} differ in the types of a column: {error}") from error


def _beside(table: Clip, name: str | None) -> str | None | bool:
    """The path of a file that a metadata file names; False where the name leads out of its folder."""
    if not name:
        return None
    zipped = table.path.startswith("zip://")
    inside = os.path.normpath(name)
    if os.path.isabs(inside) and not zipped:
        inside = os.path.relpath(inside, os.path.dirname(table.path))
    elif "\\" in name and not (not zipped and os.path.isfile(os.path.join(os.path.dirname(table.path), inside))):
        inside = os.path.normpath(name.replace("\\", "/"))  # a table that was written on Windows
    if "://" in name or os.path.isabs(inside) or inside.split("/")[0] == "..":
        return False
    folder = os.path.dirname(table.place)
    if zipped:
        return f"zip://{os.path.join(folder, inside)}{table.path.removeprefix('zip://' + table.place)}"
    return os.path.join(os.path.dirname(table.path), inside)


def _read_metadata(table: Clip) -> pa.Table:
    kind = os.path.splitext(table.place)[1]
    try:
        with open_file(table.path) as file:
            content = io.BytesIO(file.read())
        if kind == ".csv":
            return pa.Table.from_pandas(pd.read_csv(content, low_memory=False), preserve_index=False)
        if kind == ".parquet":
            return pq.read_table(content)
        options = pyarrow.json.ReadOptions(block_size=max(1, content.getbuffer().nbytes))
        return pyarrow.json.read_json(content, read_options=options)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{table.path} cannot be read: {error}") from error


def _dataset(table: pa.Table, features: dict) -> datasets.Dataset:
    features = datasets.Features(features)
    return datasets.Dataset(table.cast(features.arrow_schema), datasets.DatasetInfo(features=features))


def counted(clips: Iterable[Clip]) -> int:
    """How many clips there are, without metadata files."""
    return sum(not clip.is_metadata for clip in clips)
