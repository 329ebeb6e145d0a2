"""Clips of a dataset that hold the same bytes, under whatever names."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import at_home, sha256
from .media import is_array, is_url, open_file


class Duplicates:
    """Finds samples of the same content. Of files only those are read that are as large as another one."""

    def __init__(self):
        self.sizes: dict[int, list[tuple[str, str]]] = {}  # size -> (name, path) of files
        self.digests: dict[str, list[str]] = {}  # content -> names

    def add(self, name: str, raw: Any) -> None:
        """Add an undecoded sample: bytes, a path (files in zip archives included), a dict with both, or an array. URLs
        are ignored."""
        path = raw.get("path") if isinstance(raw, dict) else raw
        content = raw.get("bytes") if isinstance(raw, dict) else raw
        if is_array(raw):
            array = np.ascontiguousarray(raw)
            self._note(hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest(), name)
        elif isinstance(content, bytes):
            self._note(hashlib.sha256(content).hexdigest(), name)
        elif isinstance(path, str) and path.startswith("zip://"):
            with open_file(path) as file:
                self._note(hashlib.file_digest(file, "sha256").hexdigest(), name)
        elif isinstance(path, str) and not is_url(path):
            path = at_home(path)
            self.sizes.setdefault(os.path.getsize(path), []).append((name, path))

    def groups(self) -> list[list[str]]:
        """The names of each content that several samples have, in the order in which they were added."""
        for files in self.sizes.values():
            for name, path in files if len(files) > 1 else ():
                self._note(sha256(Path(path)), name)
        self.sizes = {}
        return [names for names in self.digests.values() if len(names) > 1]

    def _note(self, digest: str, name: str) -> None:
        self.digests.setdefault(digest, []).append(name)
