"""Clips decoded once and kept on disk as a dataset of their own, which then streams like any other.

A cache is a folder of Arrow files, which cost half of what parquet files do to read. Each row holds `features` (log-mel
features or pixels as raw bytes), their `dtype` and `shape`, `clip_name` and the source's other columns. The content
does not depend on `exclude`, crops or augmentation, so that folds and phases share it.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from filelock import FileLock

from .arguments import DataArguments
from .modalities import modality_of
from .source import Source, load_builder, open_source

logger = logging.getLogger(__name__)

KEPT_COLUMNS = {"features": "binary", "dtype": "string", "clip_name": "string"}
CLIPS_PER_FILE = 256
CLIPS_PER_CHUNK = 32
SKIPPED = "skipped.json"  # name -> reason of the clips that could not be decoded
FORMAT = 2  # part of the fingerprint: raise it when the content of a cache changes


def open_clips(data: DataArguments, processor) -> Source:
    """Open the clips that `data` names: from the cache, written first where needed, or else from their files."""
    source = open_source(data, processor)
    if not data.cache:
        return source
    folder = write_cache(data, processor)
    cached = datasets.load_dataset("arrow", data_files=str(folder / "*.arrow"), split="train", streaming=True)

    def featurize(example: dict, rng: np.random.Generator | None = None) -> np.ndarray:
        return np.frombuffer(example["features"], dtype=example["dtype"]).reshape(example["shape"])

    skipped = json.loads((folder / SKIPPED).read_text())
    return replace(source, dataset=cached, featurize=featurize, input_column=None, skipped=skipped)


def write_cache(data: DataArguments, processor) -> Path:
    """Write every decoded clip that `data` names, unless they are there, and return their folder.

    The folder's name is a fingerprint of the dataset's files, the split and the settings that decoding depends on. It
    is written beside and renamed when whole; other processes of the machine wait for the one that writes.
    """
    modality = modality_of(processor)
    settings = modality.kept_settings(data, processor)
    files = load_builder(data).cache_dir
    identity = json.dumps([FORMAT, modality.name, files, data.split, data.input_column, settings], default=str)
    folder = cache_root(data) / hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            every_clip = replace(data, exclude={}, label_column=None, fold_column=None)
            _write_files(open_source(every_clip, processor), data, unfinished)
            os.replace(unfinished, folder)
            logger.info("the decoded clips of %s are kept in %s", data.dataset, folder)
    return folder


def cache_root(data: DataArguments) -> Path:
    """Folder that holds the caches."""
    return Path(data.cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "bridle")).expanduser()


def _write_files(source: Source, data: DataArguments, folder: Path) -> None:
    schema = None
    if source.dataset.features is not None:
        columns = {key: value for key, value in source.dataset.features.items() if key != source.input_column}
        columns |= {key: datasets.Value(kind) for key, kind in KEPT_COLUMNS.items()}
        columns["shape"] = datasets.List(datasets.Value("int32"))
        schema = datasets.Features(columns).arrow_schema
    rows = (
        {key: value for key, value in example.items() if key != source.input_column} | _kept(clip)
        for example, clip in source.decode_all(data.num_workers, data.max_bad_share)
    )
    for number, clips in enumerate(iter(lambda: list(islice(rows, CLIPS_PER_FILE)), [])):
        table = pa.Table.from_pylist(clips, schema=schema)
        with pa.ipc.new_stream(str(folder / f"{number:05d}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=CLIPS_PER_CHUNK)
    (folder / SKIPPED).write_text(json.dumps(source.skipped))


def _kept(clip: np.ndarray) -> dict:
    """The columns that hold a clip: floating point numbers in half precision, pixels as they are."""
    dtype = np.float16 if clip.dtype.kind == "f" else clip.dtype
    return {"features": clip.astype(dtype).tobytes(), "dtype": np.dtype(dtype).name, "shape": list(clip.shape)}
