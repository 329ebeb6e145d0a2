"""Clips of a dataset that hold the same bytes, under whatever names."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import at_home, sha256
from .media import is_array, is_url, open_file


class Duplicates:
    """Finds samples with the same content. A file is read only if another sample has the same size."""

    def __init__(self):
        self.samples: dict[int, list[tuple[str, str, str]]] = {}  # size -> (name, digest or "", path to read)

    def add(self, name: str, raw: Any) -> None:
        """Add an undecoded sample: bytes, a path (files in zip archives included), a dict with both, or an array. URLs
        are ignored."""
        path = raw.get("path") if isinstance(raw, dict) else raw
        content = raw.get("bytes") if isinstance(raw, dict) else raw
        if is_array(raw):
            array = np.ascontiguousarray(raw)
            digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
            self._note(array.nbytes, name, digest)
        elif isinstance(content, bytes):
            self._note(len(content), name, hashlib.sha256(content).hexdigest())
        elif isinstance(path, str) and path.startswith("zip://"):
            with open_file(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._note(file.tell(), name, digest)
        elif isinstance(path, str) and not is_url(path):
            path = at_home(path)
            self._note(os.path.getsize(path), name, path=path)

    def groups(self) -> list[list[str]]:
        """The names of each content that several samples have, in the order in which they were added."""
        found: dict[str, list[str]] = {}
        for samples in self.samples.values():
            for name, digest, path in samples if len(samples) > 1 else ():
                found.setdefault(digest or sha256(Path(path)), []).append(name)
        return [names for names in found.values() if len(names) > 1]

    def _note(self, size: int, name: str, digest: str = "", path: str = "") -> None:
        self.samples.setdefault(size, []).append((name, digest, path))
