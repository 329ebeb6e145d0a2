"""Atomic writes of files and folders; moving old folders aside.

What is being written lies beside its place as `.NAME.partial`, and is renamed once it is whole and on disk.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; the file takes the place of `path` once the block ends without an error.

    After an error nothing is left of it, and `path` is as it was.
    """
    partial = partial_of(path)
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    put_in_place(path)


@contextmanager
def whole_folder(path: Path, resume: str | None = None) -> Iterator[Path]:
    """Yield an empty folder to write into; it takes the place of `path` once the block ends without an error.

    After an error nothing is left of it, and `path` is as it was.

    Args:
        resume: name of a file that says how far the writing got. A folder that holds it is kept after an error, also of
            a process that was killed, and the next call yields it again.
    """
    partial = partial_of(path)

    def clear() -> None:
        if resume is None or not (partial / resume).exists():
            shutil.rmtree(partial, ignore_errors=True)

    clear()
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        clear()
        raise
    put_in_place(path)


def partial_of(path: Path) -> Path:
    """Where a file or folder lies while it is written."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(path: Path) -> None:
    """Flush the file or folder at `partial_of(path)` to disk and rename it to `path`, whatever was there before.

    A power cut cannot leave a renamed folder of empty files.
    """
    partial = partial_of(path)
    inside = [each for each in partial.rglob("*") if each.is_file()] if partial.is_dir() else []
    for each in (*inside, partial):
        _flush(each)
    retired = path.with_name(f".{path.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if path.is_dir():  # a folder cannot be renamed to one that holds something
        os.replace(path, retired)
    os.replace(partial, path)
    _flush(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename a folder to NAME.old-1, -2, ..., so that starting over deletes nothing. Returns the new path."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    os.replace(folder, old)
    return old


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
