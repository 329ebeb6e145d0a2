"""Opening of media files: bytes, local paths and URLs."""

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote

import fsspec
import numpy as np
import torch

from ..files import at_home
from ..video_decoding_bridle import on_white

LONGEST_PATH = 4096  # characters; longer texts are no paths
MAX_BYTES, PART_BYTES = 2**29, 2**22  # of a file that is read as a whole, such as a picture; read at a time


class BadClipError(ValueError):
    """A sample that cannot be used: corrupt, empty, too short, or not finite. Loaders skip it, count it and name it."""


class UnusableDataError(ValueError, RuntimeError):
    """A set of which nothing is left, or too little: what a recipe leaves out, or what cannot be used.

    A `RuntimeError`, too, since it may be found only after hours of reading.
    """


def is_array(raw: Any) -> bool:
    """Whether a raw value is an array of numbers, decoded already, and not a file."""
    return isinstance(raw, np.ndarray | torch.Tensor | list)


def pixels_of(raw: Any, axes: int) -> np.ndarray:
    """An array of pixels with its channels brought before height and width: uint8 (..., 3, H, W).

    Args:
        raw: (H, W), or (..., H, W, C) or (..., C, H, W), with 1, 3 or 4 channels; with a 4th, the opacity, the pixels
            are laid on white.
        axes: of the array with channels: 3 of an image, 4 of a video.

    Raises:
        BadClipError: another shape, an empty array or values that are not pixels of 8 bits.
    """
    pixels = np.asarray(raw)
    if pixels.dtype.kind in "iu" and pixels.size and 0 <= pixels.min() and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8, copy=False)
    if pixels.ndim == axes - 1 and pixels.shape[-1] in (3, 4):
        what = "an image with channels, no video" if axes == 4 else "a row of colours, no image"
        raise BadClipError(f"is an array {pixels.shape}, {what}; it takes {axes} axes")
    if pixels.ndim == axes - 1:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != axes or not pixels.size:
        raise BadClipError(f"is an array {pixels.shape} of {pixels.dtype}; it takes uint8 of {axes} axes")
    if pixels.shape[-1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, -1, -3)
    elif pixels.shape[-3] not in (1, 3, 4):
        raise BadClipError(f"is an array {pixels.shape}; it takes 1, 3 or 4 channels, last or before height and width")
    channels = pixels.shape[-3]
    return np.ascontiguousarray(pixels.repeat(3, axis=-3) if channels == 1 else on_white(pixels))


class WatchedFile(io.RawIOBase):
    """A file that ends where it cannot be read any further, as a damaged member of an archive or a lost connection.

    Decoders in C print what Python's callbacks raise and go on without it.

    Attributes:
        name: of the file.
        error: why it ended early; None if it did not.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None
        self.name = getattr(file, "name", "<none>")  # whose extension helps FFmpeg

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.file.seek(offset, whence)
        except Exception as error:  # of an archive, which is read up to that place
            self.error = self.error or error
            return self.file.tell()

    def readinto(self, buffer) -> int:
        try:
            return 0 if self.error else self.file.readinto(buffer)
        except Exception as error:  # each file system and archive has its own
            self.error = error
            return 0


@contextmanager
def open_file(sample: dict | bytes | str | None) -> Iterator[BinaryIO]:
    """The content of an undecoded column of `datasets`, or the file at a path or URL, which is read only as needed.

    Raises:
        BadClipError: neither is there, or it cannot be opened, or read to the end.
    """
    if isinstance(sample, str):
        sample = {"path": sample}
    elif isinstance(sample, bytes):
        sample = {"bytes": sample}
    if sample is not None and not isinstance(sample, dict):
        raise BadClipError(f"is a {type(sample).__name__}; it takes bytes, a path or both")
    content, path = ((sample or {}).get(key) for key in ("bytes", "path"))
    if content is None and not path:
        raise BadClipError("holds neither bytes nor a path")
    with ExitStack() as opened:
        if content is not None:
            file = io.BytesIO(content)
        else:
            try:
                file = _open_path(path, opened)
            except BadClipError:
                raise
            except OSError as error:
                raise BadClipError(f"cannot be read: {error}") from error
            except Exception as error:  # each file system of fsspec has its own, and ImportError where it is missing
                raise BadClipError(f"cannot be read: {type(error).__name__}: {error}") from error
            file = WatchedFile(file)
        try:
            yield file
        except Exception:
            if content is not None or file.error is None:
                raise
        if content is None and file.error is not None:
            error = file.error
            raise BadClipError(f"cannot be read: {type(error).__name__}: {error}") from error


def _open_path(path: str, opened: ExitStack) -> BinaryIO:
    """A local file, a file in a local zip archive (`zip://NAME::ARCHIVE`), or what fsspec finds at a URL."""
    if len(path) > LONGEST_PATH and not path.startswith("data:"):
        raise BadClipError(f"is a text of {len(path)} characters, no path")
    if path.startswith("file:///"):
        path = path.removeprefix("file://")
        path = path if os.path.exists(path) else unquote(path)
    if not is_url(path):  # names may hold "::", "[" and all that
        path = at_home(path)
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a device has no end, and a pipe may never begin
            raise BadClipError("is no regular file")
        if not about.st_size:
            raise BadClipError("is empty")
        return opened.enter_context(open(path, "rb"))
    if path.startswith("zip://"):
        parts = path.removeprefix("zip://").split("::")
        for end in range(1, len(parts)):
            name, archive = "::".join(parts[:end]), "::".join(parts[end:])
            if os.path.isfile(archive):
                return opened.enter_context(opened.enter_context(zipfile.ZipFile(archive)).open(name))
    return opened.enter_context(fsspec.open(path, "rb"))


def path_of(raw: Any) -> str | None:
    """The path of an undecoded sample that is a path and nothing else; None if the sample holds the media."""
    path = raw.get("path") if isinstance(raw, dict) and raw.get("bytes") is None else raw
    return path if isinstance(path, str) else None


def made_whole(raw: Any, folder: str) -> Any:
    """A path, or bytes and path, whose relative path leads to a file from `folder`; anything else as it is."""
    path = path_of(raw)
    if not path or is_url(path) or "\0" in path:
        return raw
    for name in (path, path.replace("\\", "/")):  # a table that was written on Windows
        whole = os.path.join(folder, name)
        if os.path.isfile(whole):
            return raw | {"path": whole} if isinstance(raw, dict) else whole
    return raw


def folders_of(file: str) -> list[str]:
    """The folders in which the relative paths of a table are looked up: the folder of the table, and if the table is a
    link, then the folder of its target."""
    if is_url(file):
        return []
    return [folder for folder in dict.fromkeys(map(os.path.dirname, (file, os.path.realpath(file)))) if folder]


def is_url(path: str) -> bool:
    """Whether fsspec is to open a path: `https://...`, `hf://...`, `data:...`."""
    return "://" in path or path.startswith("data:")


def read_whole(file: BinaryIO) -> bytes:
    """The content of a file of at most `MAX_BYTES` bytes.

    Raises:
        BadClipError: there are more.
    """
    parts, size = [], 0
    while part := file.read(PART_BYTES):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise BadClipError(f"is larger than {MAX_BYTES} bytes, too large to be read as a whole")
    return b"".join(parts)
