"""Streaming of a dataset through a model, with long sounds in overlapping windows."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import groupby, islice

import numpy as np
import torch
from tqdm.auto import tqdm

from ..clip_features_bridle import window_hop
from ..data.cache import open_clips
from ..data.fields import class_names, class_of
from ..data.media import BadClipError
from ..data.modalities import modality_of
from ..data.source import MARK
from .row_files import Parts

logger = logging.getLogger(__name__)

SHOWN_AFTER = 2  # seconds on one recording until a progress bar of its windows appears


def run_windows(
    data,
    processor,
    unit,
    run: Callable,
    overlap=0.0,
    batch_size=32,
    device="cpu",
    dataset=None,
    ours=(),
    skipped=None,
    parts: Parts | None = None,
    marked: bool = False,
):
    """Run `run` on every clip that `data` names, with a progress bar; bad clips are skipped as in training.

    Long recordings are read block by block, and of a damaged one that was read in part nothing is given.

    Args:
        data (`DataArguments`): `max_frames` is the window of a sound, by default the feature extractor's `max_length`;
            with `test_windows` "first" the rest of it is left out.
        processor: the model's front-end.
        unit (`int`): frames of one patch.
        run: (values (B, ...), attention mask (B, T) or None) -> a sequence of B results.
        overlap (`float`): of the windows of a sound.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.
        ours: names of the columns that the caller adds to a row.
        skipped (`dict`): receives the name of each clip that cannot be used, and the reason.
        marked (`bool`): keep the `MARK` of each row, which distinguishes clips of the same name.
        parts: where the rows are written, which tells what was done before and what this process reads.

    Yields:
        (example, windows): the dataset's row without the media, columns called like one of `ours` renamed; and for each
            window the number of its first patch in time, the patches in time that it really has, and its result.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; it takes an integer from 1 on.")
    source, modality = open_clips(data, processor, dataset), modality_of(processor)
    columns = OwnColumns(source, ours)
    if skipped is not None:
        skipped.update(source.skipped)
        source.skipped = skipped
    source.featurize = partial(source.featurize, views=(1, 1), stream=True)
    collator, size, damaged = modality.collator(data, processor), modality.window(data, processor), set()

    def windows() -> Iterator[tuple]:
        start, shard = (parts.begin(source), parts.shard) if parts else (0, (0, 1))
        for example, clip in source.decode_all(data.workers, data.max_bad_share, start, shard):
            number, row = source.behind, columns.of(example)
            if marked:
                row[MARK] = example[MARK]
            if size is None:
                yield number, row, 0, None, clip
                continue
            pieces = windows_of([clip] if isinstance(clip, np.ndarray) else clip, size, overlap, unit)
            # in the bar of clips a recording of hours is a single step
            pieces = tqdm(pieces, example["clip_name"], unit=" windows", leave=False, delay=SHOWN_AFTER)
            try:
                for at, piece in pieces if data.test_windows == "all" else islice(pieces, 1):
                    yield number, row, at // unit, math.ceil(len(piece) / unit), piece
            except BadClipError as error:
                damaged.add(number)
                source.skip(example, error, number - start, data.max_bad_share)

    def results() -> Iterator[tuple]:
        stream = windows()
        for batch in iter(lambda: list(islice(stream, batch_size)), []):
            inputs = collator.plain([piece for *_, piece in batch])
            inputs = {name: torch.as_tensor(value, device=device) for name, value in inputs.items()}
            mask = inputs.pop("attention_mask", None)
            (values,) = inputs.values()
            for (number, example, start, length, _), result in zip(batch, run(values, mask), strict=True):
                yield number, example, (start, length, result)

    for number, found in groupby(results(), key=lambda item: item[0]):
        found = list(found)
        if number in damaged:  # the next clip's windows come after its end
            continue
        if parts is not None:
            parts.read = number
        yield found[0][1], [part for *_, part in found]


def windows_of(parts: Iterable[np.ndarray], size: int, overlap: float, unit: int) -> Iterator[tuple[int, np.ndarray]]:
    """(start, frames) of the windows of `window_starts` over a clip that comes in parts, of which few are held.

    Args:
        parts: arrays of frames that follow each other.
        size, overlap, unit: as of `window_starts`.
    """
    hop, start, first, held = window_hop(size, overlap, unit), 0, 0, None  # `first` is the number of held[0]
    for part in parts:
        held = part if held is None else np.concatenate([held, part])
        while first + len(held) > start + size:  # it is not the last window, which reaches the clip's end
            yield start, held[start - first : start - first + size]
            held, first, start = held[start - first :], start, start + hop
    length = first + len(held)
    last = max(0, math.ceil((length - size) / unit) * unit)
    yield last, held[last - first : last - first + size]


def mean_of_windows(windows, part=lambda result: result):
    """The mean of an array of each window (start, length, result) of a clip, weighted by its patches in time."""
    return np.average([part(result) for *_, result in windows], axis=0, weights=[n or 1 for _, n, _ in windows])


class OwnColumns:
    """The columns of a dataset that go into a row beside ours: all but the media.

    Args:
        source: what is read.
        ours: names of the columns that are added; a column of the dataset that is called so gets the prefix `dataset_`,
            which is said once.
    """

    def __init__(self, source, ours: Collection[str]):
        self.left_out = {source.input_column, MARK}
        self.ours, self.names = set(ours), {}
        self.classes = {name: class_names(feature) for name, feature in (source.dataset.features or {}).items()}

    def of(self, example: dict) -> dict:
        """The columns of one example, with the names of classes in place of their numbers."""
        kept = {name: value for name, value in example.items() if name not in self.left_out}
        return {self._name(name, example): self._named(name, value) for name, value in kept.items()}

    def _named(self, column: str, value):
        names = self.classes.get(column)
        if names is None or value is None:
            return value
        return [class_of(each, names) for each in value] if isinstance(value, list) else class_of(value, names)

    def _name(self, name: str, example: dict) -> str:
        if name not in self.names:
            new = name
            while new in self.ours or new != name and new in example:
                new = f"dataset_{new}"
            if new != name:
                logger.warning("the dataset's column %r is written as %r: its name is that of a result", name, new)
            self.names[name] = new
        return self.names[name]


def frame_starts(count: int, unit: int, hop_seconds: float) -> np.ndarray:
    """Start of each of `count` patches in time, float64 in seconds; `unit` frames per patch."""
    # in float32 the seconds of an hour have steps of a quarter of a millisecond
    return np.arange(count) * unit * hop_seconds
