"""Folders whose names `datasets` takes for labels: why files have none, or other ones than one would think."""

import os
from collections import defaultdict

from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from .arguments import DataArguments
from .opening import MAY_NAME_A_SPLIT, load_builder

RULE = "files are labelled by the names of their folders where all lie equally deep and there are several"


def why_no_labels(data: DataArguments) -> str:
    """The end of a sentence about a folder whose files have no labels: why; empty where they lie in no folders."""
    places, unread = _places(data)
    if unread:
        read, other = os.path.dirname(places[0]).split(os.sep)[0], os.path.dirname(unread[0]).split(os.sep)[0]
        ending = os.path.splitext(unread[0])[1]
        return (
            f"; {read!r} is the name of a split, so that files in other folders, such as {other!r}, are not read: "
            f"data.files='**/*{ending}' reads all of them"
        )
    by_depth = defaultdict(list)
    for place in places:
        by_depth[place.count(os.sep)].append(place)
    if len(by_depth) > 1:
        odd, usual = sorted(by_depth.values(), key=len)[:: len(by_depth) - 1]
        return f"; {RULE}, and {odd[0]!r} lies elsewhere than {usual[0]!r}"
    return f"; {RULE}" if 0 not in by_depth and places else ""


def odd_labels(data: DataArguments) -> str:
    """What a warning says of labels that several folders have, such as dog/day1 and rain/day1; or nothing."""
    above = defaultdict(set)
    for place in _places(data)[0]:
        *outer, label = os.path.dirname(place).split(os.sep)
        above[label].add("/".join(name for name in outer if not MAY_NAME_A_SPLIT.search(name)))
    several = [label for label, folders in above.items() if len(folders) > 1]
    if not several:
        return ""
    one, other, *_ = sorted(f"{folder}/{several[0]}" for folder in above[several[0]])
    return f"labels are the names of the innermost folders: {several[0]!r} is one class, of {one} and {other}"


def _places(data: DataArguments) -> tuple[list[str], list[str]]:
    """The media of a folder of files, relative to it: those that are read, and those in folders of no split."""
    root = os.path.abspath(os.path.expanduser(data.dataset))
    builder = load_builder(data) if data.dataset and os.path.isdir(root) else None
    if not isinstance(builder, FolderBasedBuilder):
        return [], []
    names = [str(name) for names in builder.config.data_files.values() for name in names]
    read = sorted(os.path.relpath(name, root) for name in names if _ending(name) in builder.EXTENSIONS)
    there = (
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, inside in os.walk(root)
        for name in inside
        if _ending(name) in builder.EXTENSIONS
    )
    in_splits = data.files is None and all(MAY_NAME_A_SPLIT.search(place.split(os.sep)[0]) for place in read)
    return read, sorted(set(there) - set(read)) if in_splits else []


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
