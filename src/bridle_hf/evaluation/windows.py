"""Streaming of a dataset through a model, with long sounds in overlapping windows, and of rows to a parquet file."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data.cache import in_portions, open_clips
from ..data.modalities import modality_of
from ..files import whole_file

ROWS_PER_GROUP, BYTES_PER_GROUP = 256, 2**26


def window_starts(length: int, size: int, overlap: float, unit: int) -> list[int]:
    """Where windows over a clip begin, in frames: at multiples of `unit`, the last one reaching the clip's end.

    Args:
        length: of the clip, size: of a window; in frames.
        overlap: share of a window that the next one sees again, in [0, 1).
        unit: frames of one patch, so that all windows have one grid.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: got {overlap}; it takes a share in [0, 1).")
    if length <= size:
        return [0]
    hop = max(unit, int(size * (1 - overlap)) // unit * unit)
    last = math.ceil((length - size) / unit) * unit
    return [*range(0, last, hop), last]


def run_windows(data, processor, unit, run: Callable, overlap=0.0, batch_size=32, device="cpu", dataset=None):
    """Run `run` on every clip that `data` names, with a progress bar; bad clips are skipped as in training.

    Args:
        data (`DataArguments`): `max_frames` is the window of a sound, by default the feature extractor's `max_length`.
        processor: the model's front-end.
        unit (`int`): frames of one patch.
        run: (values (B, ...), attention mask (B, T) or None) -> a sequence of B results.
        overlap (`float`): of the windows of a sound.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.

    Yields:
        (example, parts): the dataset's row, and for each window the number of its first patch in time, the patches in
        time that it really has, and its result.
    """
    source, modality = open_clips(data, processor, dataset), modality_of(processor)
    source.featurize = partial(source.featurize, views=(1, 1))
    collator, size = modality.collator(data, processor), modality.window(data, processor)

    def windows() -> Iterator[tuple]:
        for number, (example, clip) in enumerate(source.decode_all(data.num_workers, data.max_bad_share)):
            example = {name: value for name, value in example.items() if name in kept(source)}
            if size is None:
                yield number, example, 0, None, clip
                continue
            for start in window_starts(len(clip), size, overlap, unit):
                piece = clip[start : start + size]
                yield number, example, start // unit, math.ceil(len(piece) / unit), piece

    def results() -> Iterator[tuple]:
        stream = windows()
        for batch in iter(lambda: list(islice(stream, batch_size)), []):
            inputs = collator.plain([piece for *_, piece in batch])
            inputs = {name: torch.as_tensor(value, device=device) for name, value in inputs.items()}
            mask = inputs.pop("attention_mask", None)
            (values,) = inputs.values()
            for (number, example, start, length, _), result in zip(batch, run(values, mask), strict=True):
                yield number, example, (start, length, result)

    for _, parts in groupby(results(), key=lambda item: item[0]):
        parts = list(parts)
        yield parts[0][1], [part for *_, part in parts]


def kept(source) -> set[str]:
    """The metadata columns of a dataset: all but the media."""
    columns = set(source.dataset.column_names or []) - {source.input_column, "features", "dtype", "shape"}
    return columns | {"clip_name"}


def frame_starts(count: int, unit: int, hop_seconds: float) -> np.ndarray:
    """Start of each of `count` patches in time, in seconds; `unit` frames per patch."""
    return (np.arange(count) * unit * hop_seconds).astype(np.float32)


def write_parquet(path, rows: Iterable[dict], metadata: dict[str, str] | None = None) -> int:
    """Stream rows to a parquet file, written atomically; returns their number.

    Args:
        path: of the file.
        rows: dicts with the same keys; arrays of up to two axes become lists.
        metadata: key -> text of the file's schema.
    """
    path, writer, count = Path(path), None, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, ExitStack() as opened:
        for group in in_portions(rows, ROWS_PER_GROUP, BYTES_PER_GROUP):
            columns = {name: [_plain(row[name]) for row in group] for name in group[0]}
            schema = writer.schema if writer else None
            table = pa.table(columns, schema=schema)
            if writer is None:
                table = table.replace_schema_metadata(metadata)
                writer = opened.enter_context(pq.ParquetWriter(partial, table.schema))
            writer.write_table(table.cast(writer.schema))
            count += len(group)
    return count


def _plain(value):
    """A 2D array as a list of 1D arrays, which pyarrow accepts."""
    return list(value) if isinstance(value, np.ndarray) and value.ndim > 1 else value
