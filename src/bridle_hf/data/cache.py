"""Cache of decoded samples on disk, a dataset of its own that streams like any other.

A cache is a folder of Arrow files, which are twice as fast to read as parquet files. Each row holds `features` (log-mel
features or pixels as raw bytes) with their `dtype` and `shape`, or the undecoded `file`; the sample's `clip_name` and
the other columns of the source. The content does not depend on `exclude`, crops or augmentation, so that folds and
phases share it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from filelock import FileLock

from ..files import whole_folder, write_whole
from .arguments import DataArguments
from .columns import field_of, select
from .modalities import modality_of
from .source import Source, decode_column, leave_out, open_source

logger = logging.getLogger(__name__)

CLIP_COLUMNS = {
    "features": datasets.Value("binary"),
    "dtype": datasets.Value("string"),
    "shape": datasets.List(datasets.Value("int32")),
}
FILE, FILE_TYPE = "file", {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
CLIPS_PER_FILE, BYTES_PER_FILE = 256, 2**28
CLIPS_PER_CHUNK = 32
PROGRESS = "progress.json"  # of an unfinished cache: number of whole files, and the examples and bad samples so far
SKIPPED = "skipped.json"  # name -> reason of the samples that could not be decoded
FORMAT = 3  # part of the fingerprint: raise it when the content of a cache changes


def open_clips(data: DataArguments, processor, dataset=None) -> Source:
    """Open the samples of `open_source`; with `data.cache` decoded from the cache, which is written if needed."""
    source = open_source(data, processor, dataset)
    if not data.cache:
        return source
    folder = write_cache(source, data, processor)
    table = _open_table(folder)
    # Otherwise each file would infer its features from its own rows, and a column that is empty there has no type.
    files = str(folder / "*.arrow")
    cached = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True, features=table.features)
    skipped = json.loads((folder / SKIPPED).read_text())
    return replace(
        source,
        dataset=cached,
        featurize=_unpack,
        input_column=None,
        of_files=False,
        skipped=skipped,
        rows=table,
        arrays=None,
    )


def open_shuffled(data: DataArguments, processor, dataset=None) -> Source:
    """As `open_clips`, for training: with `rows` if the samples are indexable and more than a shuffle buffer holds.

    A folder is read in the order of its names, often class by class, and a buffer would only mix neighbours.
    """
    source = open_clips(data, processor, dataset)
    rows = source.rows and leave_out(source.rows, data.exclude)
    if source.of_files and data.shuffle_buffer > 1:
        rows = source.list_files(data.max_bad_share)
    return replace(source, rows=rows if rows is not None and 1 < data.shuffle_buffer < len(rows) else None)


def map_clips(
    source: Source, data: DataArguments, processor, columns: list[str]
) -> tuple[datasets.Dataset, Callable[..., np.ndarray], list[dict], dict]:
    """Return `(table, decode, about, types)`: an indexable table of the samples, `decode(row, rng=None)`, which turns a
    row into an array, and `columns` of each row with the types of all. With `rng`, long media are decoded only in a
    random window.

    With `data.cache` the decoded samples are kept on disk, otherwise their files; of a dataset in hand nothing more is
    kept. Each was decoded once, so that no bad one is among them.
    """
    if source.rows is not None and not data.cache:
        rows, numbers, about = leave_out(source.rows, data.exclude), [], []
        for example, _ in source.decode_all(data.num_workers, data.max_bad_share):
            numbers.append(source.behind - 1)
            about.append({column: field_of(example, column) for column in columns})
        return rows.select_columns([source.input_column]).select(numbers), source.featurize, about, rows.features
    table = leave_out(_open_table(write_cache(source, data, processor, decoded=data.cache)), data.exclude)
    decode = _unpack if data.cache else partial(decode_column, column=FILE, data=data, processor=processor)
    about = [{column: field_of(row, column) for column in columns} for row in select(table, columns).to_list()]
    return table, decode, about, table.features


def _open_table(folder: Path) -> datasets.Dataset:
    """The rows of a cache."""
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(f)) for f in sorted(folder.glob("*.arrow"))])


def write_cache(source: Source, data: DataArguments, processor, decoded: bool = True) -> Path:
    """Write every sample of a source, unless they are there, and return their folder: decoded samples or their files.

    The folder's name is a fingerprint of the dataset's files, the split and the settings that decoding depends on. It
    appears when it is whole; other processes of the machine wait for the one that writes. Where that was killed, the
    next one goes on behind its last whole file.

    Raises:
        ValueError: a stream that the caller built, which nothing identifies.
    """
    if source.fingerprint is None:
        raise ValueError(
            f"{source.description} is an IterableDataset, which has no fingerprint that would identify a copy of it on "
            f"disk; give a datasets.Dataset, or data.cache=false and data.in_memory=true."
        )
    modality = modality_of(processor)
    settings = modality.cache_key(data, processor)
    identity = [FORMAT, modality.name, decoded, source.fingerprint, data.split, data.input_column, settings]
    folder = cache_root(data) / hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with whole_folder(folder, resume=PROGRESS) as partial_folder:
                _write_files(replace(source, exclude={}, skipped={}), data, partial_folder, decoded)
            logger.info("the samples of %s are kept in %s", source.description, folder)
    return folder


def cache_root(data: DataArguments) -> Path:
    """Folder that holds the caches."""
    return Path(data.cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "bridle")).expanduser()


def _write_files(source: Source, data: DataArguments, folder: Path, decoded: bool) -> None:
    done, schema = {"files": 0, "examples": 0, "skipped": {}}, None
    if (folder / PROGRESS).exists():
        done = json.loads((folder / PROGRESS).read_text())
        logger.info("resuming the cache after %d samples", done["examples"])
    source.skipped |= done["skipped"]
    if source.dataset.features is not None:
        columns = {key: value for key, value in source.dataset.features.items() if key != source.input_column}
        columns |= CLIP_COLUMNS if decoded else {FILE: FILE_TYPE}
        schema = datasets.Features(columns | {"clip_name": datasets.Value("string")}).arrow_schema
    rows = (
        {key: value for key, value in example.items() if key != source.input_column}
        | (_pack(clip) if decoded else {FILE: _file(source.raw(example))})
        for example, clip in source.decode_all(data.num_workers, data.max_bad_share, done["examples"])
    )
    for number, clips in enumerate(in_portions(rows, CLIPS_PER_FILE, BYTES_PER_FILE), done["files"]):
        table = pa.Table.from_pylist(clips, schema=schema)
        with open(folder / f"{number:05d}.arrow", "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=CLIPS_PER_CHUNK)
            os.fsync(file.fileno())
        # A bad shard may be readable the next time; the number of examples would then not fit.
        if not any(name.startswith("shard ") for name in source.skipped):
            done = {"files": number + 1, "examples": source.behind, "skipped": source.skipped}
            write_whole(folder / PROGRESS, json.dumps(done))
    write_whole(folder / SKIPPED, json.dumps(source.skipped))
    (folder / PROGRESS).unlink(missing_ok=True)


def in_portions(rows: Iterator[dict], most_rows: int, most_bytes: int) -> Iterator[list[dict]]:
    """Lists of rows, each closed once it holds `most_rows` rows or at least `most_bytes` bytes."""
    portion, size = [], 0
    for row in rows:
        portion.append(row)
        size += _bytes_of(row)
        if len(portion) == most_rows or size >= most_bytes:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _bytes_of(value) -> int:
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    return len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)


def _pack(clip: np.ndarray) -> dict:
    """The columns that hold a sample: floating point numbers in half precision, pixels as they are."""
    dtype = np.float16 if clip.dtype.kind == "f" else clip.dtype
    return {"features": clip.astype(dtype).tobytes(), "dtype": np.dtype(dtype).name, "shape": list(clip.shape)}


def _unpack(row: dict, rng: np.random.Generator | None = None) -> np.ndarray:
    """The sample of a row, whole; the collator crops it."""
    return np.frombuffer(row["features"], dtype=row["dtype"]).reshape(row["shape"])


def _file(raw: dict | str) -> dict:
    return raw if isinstance(raw, dict) else {"bytes": None, "path": raw}
