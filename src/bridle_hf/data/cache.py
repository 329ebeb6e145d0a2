"""Features computed once and kept on disk as a dataset of their own, which then streams like any other.

A cache is a folder of Arrow files, which cost half of what parquet files do to read. Each row holds `features` (frames
x mel bins as raw float16 bytes), `clip_name` and the source's other columns. The content does not depend on `exclude`,
crops or augmentation, so that folds and phases share it.
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
from .source import Source, load_builder, open_source

logger = logging.getLogger(__name__)

CLIPS_PER_FILE = 256
CLIPS_PER_CHUNK = 32
SKIPPED = "skipped.json"  # name -> reason of the clips that could not be decoded
FORMAT = 1  # part of the fingerprint: raise it when the content of a cache changes
PADDING_KEYS = ("max_length", "padding_side", "padding_value", "return_attention_mask", "auto_map", "processor_class")


def open_clips(data: DataArguments, feature_extractor) -> Source:
    """Open the clips that `data` names: from the feature cache, written first where needed, or else from the audio."""
    source = open_source(data, feature_extractor)
    if not data.cache:
        return source
    folder = write_cache(data, feature_extractor)
    cached = datasets.load_dataset("arrow", data_files=str(folder / "*.arrow"), split="train", streaming=True)

    def featurize(example: dict) -> np.ndarray:
        return np.frombuffer(example["features"], dtype=np.float16).reshape(-1, feature_extractor.num_mel_bins)

    skipped = json.loads((folder / SKIPPED).read_text())
    return replace(source, dataset=cached, featurize=featurize, audio_column=None, skipped=skipped)


def write_cache(data: DataArguments, feature_extractor) -> Path:
    """Write the features of every clip that `data` names, unless they are there, and return their folder.

    The folder's name is a fingerprint of the dataset's files, the split and the feature extractor's settings. It is
    written beside and renamed when whole; other processes of the machine wait for the one that writes.
    """
    settings = {key: value for key, value in feature_extractor.to_dict().items() if key not in PADDING_KEYS}
    files = load_builder(data).cache_dir
    identity = json.dumps([FORMAT, files, data.split, data.audio_column, data.min_seconds, settings], default=str)
    folder = cache_root(data) / hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            every_clip = replace(data, exclude={}, label_column=None, fold_column=None)
            _write_files(open_source(every_clip, feature_extractor), data, unfinished)
            os.replace(unfinished, folder)
            logger.info("the features of %s are kept in %s", data.dataset, folder)
    return folder


def cache_root(data: DataArguments) -> Path:
    """Folder that holds the feature caches."""
    return Path(data.cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "bridle")).expanduser()


def _write_files(source: Source, data: DataArguments, folder: Path) -> None:
    schema = None
    if source.dataset.features is not None:
        columns = {key: value for key, value in source.dataset.features.items() if key != data.audio_column}
        columns |= {"features": datasets.Value("binary"), "clip_name": datasets.Value("string")}
        schema = datasets.Features(columns).arrow_schema
    rows = (
        {key: value for key, value in example.items() if key != data.audio_column}
        | {"features": features.astype(np.float16).tobytes()}
        for example, features in source.decode_all(data.num_workers, data.max_bad_share)
    )
    for number, clips in enumerate(iter(lambda: list(islice(rows, CLIPS_PER_FILE)), [])):
        table = pa.Table.from_pylist(clips, schema=schema)
        with pa.ipc.new_stream(str(folder / f"{number:05d}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=CLIPS_PER_CHUNK)
    (folder / SKIPPED).write_text(json.dumps(source.skipped))
