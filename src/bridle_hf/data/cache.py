"""Cache of decoded samples on disk, a dataset of its own that streams like any other.

A cache is a folder of Arrow files, which are twice as fast to read as parquet files, and a manifest that tells damage.
A row has the columns of the source and a `clip_name`. The column of the media holds `features` (log-mel features or
pixels as raw bytes) with their `dtype` and `shape`, features in 8 bits also their `low` and `step`; or the undecoded
file with the `shape` of what it decodes to. The content does not depend on `exclude`, crops or augmentation, so that
folds and phases share it.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from filelock import FileLock

from ..files import at_home, partial_of, sha256, whole_folder, write_whole
from .arguments import DataArguments
from .bad_share import check_bad_shards, check_bad_share, is_short
from .columns import encode_json, replace_json
from .fields import field_of, select
from .media import is_url, path_of
from .modalities import modality_of
from .packing import CLIP_TYPE, EIGHT_BIT_TYPE, FILE_TYPE, pack_clip, pack_file, unpack_clip
from .source import (
    FILES_AT_ONCE,
    LOOKED_AT,
    MARK,
    Source,
    decode_column,
    is_shard,
    leave_out,
    open_source,
)

logger = logging.getLogger(__name__)

CLIPS_PER_FILE, BYTES_PER_FILE = 256, 2**28
CLIPS_PER_CHUNK = 32
MANIFEST = "manifest.json"  # of each file (bytes, time in ns, sha256), and how many examples and shards were read
SKIPPED = "skipped.json"  # mark -> reason of the samples and shards that could not be used
PROGRESS = "progress.json"  # of an unfinished cache: what both would say so far
NAMES_SHOWN = 10  # of the samples that a cache lacks
FORMAT = 5  # part of the fingerprint: raise it when the content of a cache changes


def open_clips(data: DataArguments, processor, dataset=None) -> Source:
    """Open the samples of `open_source`; with `data.cache` decoded from the cache, which is written if needed."""
    return decoded_once(open_source(data, processor, dataset), data, processor)


def decoded_once(source: Source, data: DataArguments, processor) -> Source:
    """The samples of a source; with `data.cache` from the cache, see `open_clips`."""
    if not data.cache:
        return source
    folder, manifest = write_cache(source, data, processor)
    table = _open_table(folder, manifest)
    # Otherwise each file would infer its features from its own rows, and a column that is empty there has no type.
    files = [glob.escape(str(path)) for path in _tables(folder, manifest)]
    cached = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True, features=table.features)
    return replace(
        source,
        dataset=cached,
        featurize=partial(unpack_clip, column=source.input_column),
        of_files=False,
        skipped=manifest["skipped"],
        rows=table,
        arrays=None,
        files=None,
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
) -> tuple[datasets.Dataset, Callable[..., np.ndarray], list[int], list[dict], dict]:
    """Return `(table, decode, lengths, about, types)`: an indexable table of the samples, `decode(row, rng=None,
    views=None)`, which turns a row into an array as `Source.featurize` does, the length of each such array, and
    `columns` of each row with the types of all.

    With `data.cache` the decoded samples are kept on disk, otherwise their files; of a dataset in hand nothing more is
    kept. Each was decoded once, so that no bad one is among them.
    """
    decode = source.featurize
    if not data.cache:  # a sample is tried where a test will look at it
        source = replace(source, featurize=partial(decode, views=tuple(data.test_views)))
    if source.rows is not None and not data.cache:
        rows, numbers, lengths, about = leave_out(source.rows, data.exclude), [], [], []
        for example, clip in source.decode_all(data.workers, data.max_bad_share):
            numbers.append(source.behind - 1)
            lengths.append(len(clip))
            about.append({column: field_of(example, column) for column in columns})
        return rows.select_columns([source.input_column]).select(numbers), decode, lengths, about, rows.features
    table = leave_out(_open_table(*write_cache(source, data, processor, decoded=data.cache)), data.exclude)
    decode = unpack_clip if data.cache else partial(decode_column, data=data, processor=processor)
    decode = partial(decode, column=source.input_column)
    about = [{column: field_of(row, column) for column in columns} for row in select(table, columns).to_list()]
    shape = f"{source.input_column}.shape"
    shapes = table.select_columns(source.input_column).flatten().select_columns(shape).to_list()
    return table, decode, [row[shape][0] for row in shapes], about, table.features


def _open_table(folder: Path, manifest: dict) -> datasets.Dataset:
    """The rows of a cache."""
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in _tables(folder, manifest)])


def _tables(folder: Path, manifest: dict) -> list[Path]:
    return [folder / name for name in manifest["files"] if name.endswith(".arrow")]


def write_cache(source: Source, data: DataArguments, processor, decoded: bool = True) -> tuple[Path, dict]:
    """Write every sample of a source, decoded or as files, unless they are there; return their folder and manifest.

    The folder's name is a fingerprint of the dataset's files, the split and the settings that decoding depends on. It
    appears when it is whole; other processes of the machine wait for the one that writes. Where that was killed, the
    next one goes on behind its last whole file. A folder that is damaged is written anew.

    Raises:
        ValueError: a stream that the caller built, which nothing identifies; or a place that one may not write to.
        UnusableDataError: the cache lacks more samples than `data.max_bad_share` allows.
    """
    if source.fingerprint is None:
        raise ValueError(
            f"{source.description} is an IterableDataset, which has no fingerprint that would identify a copy of it on "
            f"disk; give a datasets.Dataset, or data.cache=false and data.in_memory=true."
        )
    source, modality = replace(source, exclude={}, skipped={}), modality_of(processor)
    settings = modality.cache_key(data, processor)
    if decoded and data.cache_dtype != "float16":  # only then: older caches stay valid
        settings = settings | {"cache_dtype": data.cache_dtype}
    identity = [FORMAT, modality.name, decoded, source.fingerprint, data.split, source.input_column, settings]
    identity.append(_state_of_files(source, data.max_bad_share))
    folder = cache_root(data) / hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
    manifest, damage = read_manifest(folder)  # without the lock, which a reader may not be allowed to take
    if manifest is None:
        with _locked(folder, damage):
            manifest, damage = read_manifest(folder)  # of another process that had the lock, perhaps
            if manifest is None:
                if folder.exists():
                    if not folder.is_dir():
                        folder.unlink()
                    logger.warning("the cache %s is damaged, it is written anew: %s", folder, damage)
                _give_up_if_damaged(partial_of(folder))
                with whole_folder(folder, resume=PROGRESS) as partial_folder:
                    manifest = _write_files(source, data, partial_folder, decoded)
                logger.info("the samples of %s are kept in %s", source.description, folder)
    elif manifest["skipped"]:
        names = ", ".join(islice(manifest["skipped"], NAMES_SHOWN))
        logger.warning(
            "the cache of %s lacks %d samples or shards that could not be used (%s); %s names all",
            source.description, len(manifest["skipped"]), names, folder / SKIPPED,
        )  # fmt: skip
    _check_shares(manifest, data.max_bad_share)
    return folder, manifest


def cache_root(data: DataArguments) -> Path:
    """Folder that holds the caches."""
    return Path(at_home(data.cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "bridle")))


def _state_of_files(source: Source, max_bad_share: float) -> str | None:
    """A fingerprint of sizes and times of the local files that a table names by their paths.

    None where the source's own fingerprint tells them, or where the table holds the media themselves.
    """
    if source.dates_files or source.arrays is not None:
        return None
    column = source.input_column
    table = replace(source, dataset=source.dataset.select_columns([column]), skipped={})
    examples = table.read_all(max_bad_share)
    raws = (example[column] for example in examples if example[column] is not None)
    first = list(islice(raws, LOOKED_AT))
    if not any(map(path_of, first)):
        return None
    return state_of_files(path_of(raw) or "" for raw in chain(first, raws))


def state_of_files(paths: Iterable[str]) -> str:
    """A fingerprint of the sizes and times of local files, in their order; what is no local file leaves a gap."""
    paths, digest = iter(paths), hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # over a network a look at a file takes milliseconds
        for part in iter(lambda: list(islice(paths, FILES_AT_ONCE)), []):
            digest.update("".join(pool.map(state_of_file, part)).encode())
    return digest.hexdigest()


def state_of_file(path: str) -> str:
    """Size and time of a file; of one in an archive those of the archive."""
    try:
        about = os.stat(path.rpartition("::")[2] if is_url(path) else path)
    except (OSError, ValueError):  # an address, or nothing
        return "-\n"
    return f"{about.st_size} {about.st_mtime_ns}\n"


@contextmanager
def _locked(folder: Path, damage: str) -> Iterator[None]:
    """Keep other processes from writing the same cache."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    except OSError as error:
        found = f"; the cache {folder} cannot be used: {damage}" if folder.exists() else ""
        raise ValueError(
            f"data.cache_dir is {str(folder.parent)!r}, where nothing can be written ({error.strerror}){found}. "
            "It takes a folder that you may write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_manifest(folder: Path) -> tuple[dict | None, str]:
    """The manifest of a whole cache, with what was `skipped`, and ""; or None and what is wrong with the cache.

    A file is whole if its size and time are what they were; at another time, such as that of a copy, if its content is.
    """
    manifest, damage = _read_record(folder, MANIFEST, examples=int, shards=int)
    if manifest is None:
        return None, damage
    if SKIPPED not in manifest["files"] or not _tables(folder, manifest):
        return None, f"{MANIFEST} lists too few files"
    return manifest | {"skipped": json.loads((folder / SKIPPED).read_text())}, ""


def _give_up_if_damaged(folder: Path) -> None:
    """Delete the progress record of an unfinished cache if its files are damaged, so that writing starts over."""
    if (folder / PROGRESS).exists():
        damage = _read_record(folder, PROGRESS, examples=int, skipped=dict)[1]
        if damage:
            logger.warning("the unfinished cache %s is damaged, it is written anew: %s", folder, damage)
            (folder / PROGRESS).unlink()


def _read_record(folder: Path, name: str, **types: type) -> tuple[dict | None, str]:
    """Read a JSON file that lists the files of a cache, and check these files; `types` are the types of its other keys.
    Returns the content and ""; or None and a description of the damage.
    """
    try:
        record = json.loads((folder / name).read_text())
        files = [(folder / file, size, time, digest) for file, (size, time, digest) in record["files"].items()]
        if not all(isinstance(record[key], kind) for key, kind in types.items()):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{name} cannot be read: {type(error).__name__}"
    for path, size, time, digest in files:
        try:
            about = path.stat()
            if about.st_size != size:
                return None, f"{path.name} has {about.st_size} bytes of {size}"
            if about.st_mtime_ns != time:
                if sha256(path) != digest:
                    return None, f"{path.name} was changed"
                with suppress(OSError):
                    os.utime(path, ns=(time, time))  # or each start would read it as a whole
        except OSError as error:
            return None, f"{path.name} cannot be read: {error.strerror}"
    return record, ""


def _file_state(path: Path) -> tuple[int, int, str]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, sha256(path)


def _check_shares(manifest: dict, max_bad_share: float) -> None:
    """Raise an `UnusableDataError` if a cache lacks too much, also where more was allowed when it was written."""
    shards = {mark: why for mark, why in manifest["skipped"].items() if is_shard(mark)}
    clips = {mark: why for mark, why in manifest["skipped"].items() if mark not in shards and not is_short(why)}
    if shards:
        check_bad_shards(len(shards), manifest["shards"], max_bad_share, list(shards.values())[-1])
    if clips:
        check_bad_share(len(clips), manifest["examples"], max_bad_share, *list(clips.items())[-1])


def _write_files(source: Source, data: DataArguments, folder: Path, decoded: bool) -> dict:
    """Write the files and the manifest of a cache, and return the latter."""
    done, schema = {"files": {}, "examples": 0, "skipped": {}}, None
    if (folder / PROGRESS).exists():
        done = json.loads((folder / PROGRESS).read_text())
        logger.info("resuming the cache after %d samples", done["examples"])
    source.skipped |= done["skipped"]
    column, pack = source.input_column, partial(pack_clip, eight_bits=data.cache_dtype == "int8")
    types = source.dataset.features or {}
    if source.dataset.features is not None:
        clip_type = EIGHT_BIT_TYPE if data.cache_dtype == "int8" else CLIP_TYPE
        media = {column: clip_type if decoded else FILE_TYPE}
        named = {"clip_name": datasets.Value("string")}
        schema = datasets.Features(named | dict(source.dataset.features) | media)
    rows = (
        {key: encode_json(value, types.get(key)) for key, value in example.items() if key not in (MARK, column)}
        | {column: pack(clip) if decoded else pack_file(source.raw(example), column) | {"shape": list(clip.shape)}}
        for example, clip in source.decode_all(data.workers, data.max_bad_share, done["examples"])
    )
    files = dict(done["files"])
    for clips in in_portions(rows, CLIPS_PER_FILE, BYTES_PER_FILE):
        table, path = _table(clips, schema), folder / f"{len(files):05d}.arrow"
        with open(path, "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=CLIPS_PER_CHUNK)
            os.fsync(file.fileno())
        files[path.name] = _file_state(path)
        # A bad shard may be readable the next time; the number of examples would then not fit.
        if not any(map(is_shard, source.skipped)):
            done |= {"files": files, "examples": source.behind, "skipped": source.skipped}
            write_whole(folder / PROGRESS, json.dumps(done))
    write_whole(folder / SKIPPED, json.dumps(source.skipped))
    files[SKIPPED] = _file_state(folder / SKIPPED)
    manifest = {"files": files, "examples": source.behind, "shards": source.num_shards}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / PROGRESS).unlink(missing_ok=True)
    return manifest | {"skipped": source.skipped}


def _table(rows: list[dict], schema: datasets.Features | None) -> pa.Table:
    """Build a table of rows; values of `datasets.Json` columns are JSON text already."""
    if schema is None:
        return pa.Table.from_pylist(rows)
    # pyarrow cannot build JSON columns directly
    stored = datasets.Features(replace_json(dict(schema), datasets.Value("string")))
    return pa.Table.from_pylist(rows, schema=stored.arrow_schema).cast(schema.arrow_schema)


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
    if isinstance(value, dict | list):
        return sum(map(_bytes_of, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)
