"""Streaming rows to a parquet file, which a writer that was killed continues where it was."""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data.cache import in_portions
from ..data.listing import name_some
from ..data.source import Source, is_shard
from ..files import remove, sha256, whole_file, write_whole

logger = logging.getLogger(__name__)

NOT_OF_THIS_TYPE = pa.ArrowException, TypeError, ValueError, OverflowError
ROWS_PER_GROUP, BYTES_PER_GROUP = 256, 2**26
SECONDS_PER_PART = 20.0  # work on finished clips that a killed writer loses at most
PROGRESS = "progress.json"
HOW_IT_IS_READ = ("num_workers", "cache", "cache_dir", "in_memory")  # settings of `data` that change no row


class Types:
    """The types of columns, as the first rows tell them. A column that is empty in these holds text, and so does one
    whose values differ in their types or are none that parquet has. Of a later row a value of another type is left out.

    Args:
        metadata: key -> text of the schema.
    """

    def __init__(self, metadata: dict[str, str] | None = None):
        self.metadata, self.schema, self.untyped, self.late = metadata, None, set(), set()

    def table(self, rows: list[dict]) -> pa.Table:
        """A table of rows with the keys of the first ones; arrays become lists."""
        found = dict.fromkeys(key for row in rows for key in row)
        names = self.schema.names if self.schema else found
        if late := [name for name in found if name not in names and name not in self.late]:
            self.late.update(late)
            logger.warning("columns that the first rows lack are left out: %s", name_some(late))
        columns = {name: [_plain(row.get(name)) for row in rows] for name in names}
        if self.schema is not None:
            arrays = {name: self._fitted(name, values, rows) for name, values in columns.items()}
            return pa.table(arrays, schema=self.schema)
        arrays = {name: _array(values) for name, values in columns.items()}
        self.untyped = {name for name, array in arrays.items() if array is None}
        arrays |= {name: pa.array(_as_text(columns[name]), type=pa.string()) for name in self.untyped}
        table = pa.table(arrays)
        self.schema = table.schema.with_metadata(self.metadata)
        return table.cast(self.schema)

    def _fitted(self, name: str, values: list, rows: list[dict]) -> pa.Array:
        """A column of later rows in the type of the first."""
        if name in self.untyped:
            return pa.array(_as_text(values), type=pa.string())
        kind = self.schema.field(name).type
        try:
            return pa.array(values, type=kind)
        except NOT_OF_THIS_TYPE:
            values = [_as_number(value, kind) for value in values]
            fits = [_fits(value, kind) for value in values]
            if all(fits):
                return pa.array(values, type=kind)
            other = [row.get("clip_name") for row, good in zip(rows, fits, strict=True) if not good]
            logger.warning("column %r is left empty for %s: not of the type %s", name, name_some(other), kind)
            return pa.array([value if good else None for value, good in zip(values, fits, strict=True)], type=kind)


class Parts:
    """A parquet file that is written in parts. They lie in a hidden folder beside it until all rows are there; a writer
    that was killed continues after the last whole part.

    Args:
        path: of the file. Of several processes each writes its own, such as `features-00001-of-00004.parquet`.
        key: identifies model, processor and settings, see `key_of`; parts with another key are deleted.
        shard: this process and the number of processes; it reads every such example.

    Attributes:
        path: of the file that is written.
        read: how many of this process's examples the rows so far are made of; whoever makes the rows updates it.
    """

    def __init__(self, path: str | Path, key: str, shard: tuple[int, int] = (0, 1)):
        self.path, self.key, self.shard = shard_path(path, shard), key, shard
        self.folder = self.path.with_name(f".{self.path.name}.parts")
        self.done, self.read, self.source = {"parts": {}, "rows": 0, "untyped": []}, 0, None

    def begin(self, source: Source) -> int:
        """The number of examples of a source that need not be read again; of a stream that nothing identifies all are
        read."""
        self.source, key = source, f"{self.key}-{source.fingerprint}"
        try:
            found = json.loads((self.folder / PROGRESS).read_text())
            whole = all(sha256(self.folder / name) == digest for name, digest in found["parts"].items())
            if source.fingerprint is not None and found["key"] == key and whole:
                self.done = found
                logger.info("%s: going on after %d examples", self.path, found["read"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing there that can be gone on with
        if not self.done["parts"]:
            remove(self.folder)
        self.done["key"], self.read = key, self.done.get("read", 0)
        return self.read

    def write(self, rows: Iterable[dict | list[dict]], metadata: dict[str, str] | None = None) -> int:
        """Write all rows, then the file of all parts; returns the number of rows. Without any there is no file. Rows of
        one example come as a list: no part ends between them."""
        types = None
        for examples in self._portions(iter(rows)):
            portion = [row for each in examples for row in (each if isinstance(each, list) else [each])]
            self.folder.mkdir(parents=True, exist_ok=True)
            types = types or self._types(metadata)
            name = f"{len(self.done['parts']):06d}.parquet"
            with whole_file(self.folder / name) as partial:
                pq.write_table(types.table(portion), partial)
            parts = self.done["parts"] | {name: sha256(self.folder / name)}
            done = {"parts": parts, "rows": self.done["rows"] + len(portion), "untyped": sorted(types.untyped)}
            self.done |= done | {"read": self.read}
            # A shard that cannot be read may be readable the next time: the number of examples would then not fit.
            if self.source is not None and not any(map(is_shard, self.source.skipped)):
                write_whole(self.folder / PROGRESS, json.dumps(self.done))
        if self.done["parts"]:
            with whole_file(self.path) as partial, ExitStack() as opened:
                writer = None
                for name in self.done["parts"]:
                    table = pq.read_table(self.folder / name)
                    writer = writer or opened.enter_context(pq.ParquetWriter(partial, table.schema))
                    writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        remove(self.folder)
        return self.done["rows"]

    def _types(self, metadata: dict[str, str] | None) -> Types:
        types = Types(metadata)
        for first in list(self.done["parts"])[:1]:
            types.schema, types.untyped = pq.read_schema(self.folder / first), set(self.done["untyped"])
        return types

    def _portions(self, rows: Iterator[dict]) -> Iterator[list[dict]]:
        """Split rows into parts. A part ends after `SECONDS_PER_PART`, `BYTES_PER_GROUP` or 16 `ROWS_PER_GROUP`."""

        def timed() -> Iterator[dict]:
            begun = time.monotonic()
            for row in rows:
                yield row
                if time.monotonic() - begun > SECONDS_PER_PART:
                    return

        while part := next(in_portions(timed(), 16 * ROWS_PER_GROUP, BYTES_PER_GROUP), None):
            yield part


def shard_path(path: str | Path, shard: tuple[int, int]) -> Path:
    """The file of one process, rank and number in `shard`."""
    path, (rank, processes) = Path(path), shard
    return path if processes == 1 else path.with_name(f"{path.stem}-{rank:05d}-of-{processes:05d}{path.suffix}")


def key_of(model: torch.nn.Module, processor, data, **settings) -> str:
    """SHA-256 of what determines the rows of a dataset: weights, config, processor, `DataArguments` and settings."""
    found = hashlib.sha256()
    about = {name: value for name, value in asdict(data).items() if name not in HOW_IT_IS_READ}
    said = [model.config.to_json_string(use_diff=False), processor.to_json_string(), about, settings]
    found.update(json.dumps(said, default=str, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _array(values: list) -> pa.Array | None:
    """The column of some values; None where it is to be text: they are all None, or of no type of parquet."""
    try:
        array = pa.array(values)
        return None if pa.types.is_null(array.type) or _holds_empty_struct(array.type) else array
    except NOT_OF_THIS_TYPE:
        return None


def _holds_empty_struct(kind: pa.DataType) -> bool:
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return pa.types.is_struct(kind) and not inner or any(map(_holds_empty_struct, inner))


def _as_number(value, kind: pa.DataType):
    """Convert text to a number if the column is numeric, because pandas reads some rows of a csv column as text. Other
    values are returned unchanged."""
    try:
        numeric = isinstance(value, str) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
        return pa.scalar(value).cast(kind).as_py() if numeric else value
    except NOT_OF_THIS_TYPE:
        return value


def _fits(value, kind: pa.DataType) -> bool:
    try:
        pa.array([value], type=kind)
    except NOT_OF_THIS_TYPE:
        return False
    return True


def _as_text(values: list) -> list[str | None]:
    return [value if value is None or isinstance(value, str) else _text(value) for value in values]


def _text(value) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)


def _plain(value):
    """An array of several axes as a list of arrays, which pyarrow accepts."""
    return [_plain(part) for part in value] if isinstance(value, np.ndarray) and value.ndim > 1 else value
