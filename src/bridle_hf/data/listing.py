"""The files of a folder: found behind links, too, sorted by what they are, and shared out to splits."""

import hashlib
import os
import re
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from glob import escape

from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from fsspec.utils import glob_translate

from ..demo_data.folder import RECEIPT
from ..files import at_home

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CARDS = ("README.md", ".huggingface.yaml")
# written beside the data by `datasets`, and into the demo sets
OF_THE_LIBRARY = {*CARDS, "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
OF_THE_LIBRARY |= {RECEIPT}
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
TABLES |= {".csv": "csv", ".tsv": "tsv", ".tar": "webdataset", ".tgz": "webdataset"}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4"}
SHOWN, SHOWN_TYPES = 3, 5  # names of a message about files for each reason; types of files
SHARD = re.compile(r"data/(?P<split>[^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")


@dataclass
class Listing:
    """The regular files below a folder.

    Attributes:
        folder: its absolute path.
        names: of the files, relative and in the order of their text.
        left: reason -> names of files and folders that are left out before it is known what they are.
        unread: the same of what is no file of its own, or a file that could be read and is not.
        unsplit: whether files are not read since they are of no split.
        state: a fingerprint of names, sizes and times of the files.
    """

    folder: str
    names: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, list[str]] = field(default_factory=dict)
    unsplit: bool = False
    state: str = ""

    def leave(self, reason: str, *names: str) -> None:
        self.left.setdefault(reason, []).extend(names)

    def split(self, names: list[str], one: bool) -> dict[str, list[str]]:
        """Split -> the names of it among those that can be read, see `find_splits`; with `one`, all are `train`."""
        splits = {"train": names} if one else find_splits(names)
        if missing := sorted(set(names).difference(*splits.values())):
            self.unread[f"of no split, since names of others speak of one ({', '.join(splits)})"] = missing
            self.unsplit = True
        return splits

    def said(self, others: list[str]) -> str:
        """What is left out and why: `others`, which are of other types, by extension, then what was noted here."""
        types = {}
        for name in others:
            types.setdefault(os.path.splitext(name)[1].lower() or "without an extension", []).append(name)
        kinds = sorted(types, key=lambda kind: -len(types[kind]))
        parts = [f"{len(types[kind])} {kind} ({shown(types[kind])})" for kind in kinds[:SHOWN_TYPES]]
        if more := sum(len(types[kind]) for kind in kinds[SHOWN_TYPES:]):
            parts.append(f"{more} of {len(kinds) - SHOWN_TYPES} other types")
        reasons = [*self.left.items(), *self.unread.items()]
        parts += [f"{len(names)} {reason} ({shown(names)})" for reason, names in reasons]
        return "; ".join(parts) + ("; data.files='**' (--files '**') reads all as split train" if self.unsplit else "")


def is_hidden(name: str) -> bool:
    """Whether a relative path has a part that begins with a dot, or a folder that begins with two underscores."""
    *folders, last = name.split("/")
    return last.startswith(".") or any(part.startswith((".", "__")) for part in folders)


def list_folder(folder: str, caches: str | None = None, only: str | None = None) -> Listing:
    """List the files below a folder, or the single file `only` in it. Links are followed, and each real file is listed
    once: by a name without links if it has one, otherwise by the first. A folder `caches` inside it, which holds caches
    of its samples, is left out."""
    root, caches = os.path.realpath(folder), caches and os.path.realpath(at_home(caches))
    found, seen, files = Listing(folder), {root}, []
    folders, links = (deque([("", root)]), deque()) if only is None else (deque(), deque([only]))

    def take(name: str, real: str) -> None:
        try:
            about = os.stat(real)
        except OSError:  # removed since, a link to nothing, or links in a circle
            return found.leave("links to nothing", name) if os.path.islink(os.path.join(folder, name)) else None
        if real in seen:
            return found.leave("links to what is read already", name)
        is_folder = stat.S_ISDIR(about.st_mode)
        if real == caches:
            return found.leave("the folder of data.cache_dir", name + "/")
        base = os.path.basename(name)
        if base in OF_THE_LIBRARY and is_hidden(base):
            return None
        if base.startswith(".") or is_folder and base.startswith("__"):
            return found.leave("hidden", name + "/" if is_folder else name)
        seen.add(real)
        if is_folder:
            folders.append((name + "/", real))
        elif not stat.S_ISREG(about.st_mode):
            found.leave("no regular file", name)
        elif _is_text(name):
            files.append((name, about))
        else:
            found.leave("a name that is no UTF-8", name)

    while folders or links:
        if not folders:
            name = links.popleft()
            take(name, os.path.realpath(os.path.join(folder, name)))
            continue
        inside, real = folders.popleft()
        try:
            entries = sorted(os.scandir(real), key=lambda entry: entry.name)
        except OSError as error:
            found.leave(f"cannot be read ({error.strerror})", inside)
            continue
        for entry in entries:
            if entry.is_symlink():
                links.append(inside + entry.name)
            else:
                take(inside + entry.name, entry.path)
    digest = hashlib.sha256()
    for name, about in sorted(files):
        digest.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        found.names.append(name)
    found.state = digest.hexdigest()
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def table_kind(name: str) -> str | None:
    """The kind of table or shard that a file is by its extension; None for another file."""
    base, extension = os.path.splitext(os.path.basename(name).lower())
    if extension in COMPRESSED:
        extension = os.path.splitext(base)[1]
    return TABLES.get(extension)


def only_file(folder: str, pattern: str | None) -> str | None:
    """Return the file name if a pattern of `data.files` names a single existing file, so that the folder need not be
    scanned; otherwise None."""
    pattern = (pattern or "").removeprefix("./")
    name = re.sub(r"\[([*?[])\]", r"\1", pattern)
    return name if escape(name) == pattern and os.path.isfile(os.path.join(folder, name)) else None


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern of `data.files` means, or the one that it is; `**` goes through folders."""
    pattern = pattern.removeprefix("./")
    match = re.compile(glob_translate(pattern)).match
    return [name for name in names if name == pattern or match(name)]


def find_splits(names: list[str]) -> dict[str, list[str]]:
    """Share names out to the splits that they speak of, as `datasets` does: shards called `data/SPLIT-00000-of-00002`,
    or words such as `test` and `dev` in folders, or otherwise in the names of files. Without any, all are `train`."""
    shards = {}
    for name in names:
        if match := SHARD.fullmatch(name):
            shards.setdefault(match["split"], []).append(name)
    if shards:
        order = [str(split) for split in SPLIT_KEYWORDS if split in shards]
        return {split: shards[split] for split in order + sorted(shards.keys() - set(order))}
    folders = {name.rpartition("/")[0] for name in names}  # few, where names are many
    of_split = {split: {f for f in folders if any(map(folder_word(split), f.split("/")))} for split in WORDS}
    in_folders = {split: [n for n in names if n.rpartition("/")[0] in of_split[split]] for split in WORDS}
    in_files = {split: [n for n in names if FILE_WORD[split].match(n.rsplit("/", 1)[-1])] for split in WORDS}
    for found in (in_folders, in_files):
        if any(found.values()):
            return {split: of_it for split, of_it in found.items() if of_it}
    return {"train": names}


WORDS = {str(split): "|".join(words) for split, words in SPLIT_KEYWORDS.items()}
FOLDER_WORD = {
    split: re.compile(rf"(.*[{NON_WORDS_CHARS}])?({words})([{NON_WORDS_CHARS}].*)?", re.DOTALL)
    for split, words in WORDS.items()
}
FILE_WORD = {
    split: re.compile(rf"(.*[{NON_WORDS_CHARS}])?({words})[{NON_WORDS_CHARS}].*", re.DOTALL)
    for split, words in WORDS.items()
}


def folder_word(split: str):
    """A function that says whether the name of a folder speaks of a split."""
    return FOLDER_WORD[split].fullmatch


def name_some(names: Iterable, most: int = 20, between: str = ", ") -> str:
    """The first of several names, and how many more there are; in a name no line ends and nothing is invisible."""
    names = [repr(str(name))[1:-1] for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def shown(names: Iterable) -> str:
    """`name_some` of files, of which a message may speak for several reasons."""
    return name_some(names, SHOWN)
