"""Files of samples, opened wherever they lie."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import fsspec


class BadClipError(ValueError):
    """A sample that cannot be used: corrupt, empty, too short, or not finite. Loaders skip it, count it and name it."""


@contextmanager
def open_file(sample: dict | str | None) -> Iterator[BinaryIO]:
    """The content of an undecoded column of `datasets`, or the file at a path or URL, which is read only as needed.

    Raises:
        BadClipError: neither is there.
    """
    if isinstance(sample, str):
        sample = {"bytes": None, "path": sample}
    if sample is None or (sample.get("bytes") is None and not sample.get("path")):
        raise BadClipError("holds neither bytes nor a path")
    if sample.get("bytes") is not None:
        yield io.BytesIO(sample["bytes"])
    else:
        with fsspec.open(sample["path"], "rb") as file:
            yield file
