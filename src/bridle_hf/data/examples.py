"""Labelled sets for probes and fine-tuning, indexable by sample."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
import numpy as np

from .arguments import DataArguments
from .cache import decoded_once, map_clips, state_of_files
from .fields import field_of
from .in_hand import hash_arrays
from .labels import Labels, SplitRows, describe, encode, present, read_labels
from .listing import name_some
from .media import BadClipError
from .modalities import Modality, modality_of
from .source import open_source

logger = logging.getLogger(__name__)


@dataclass
class Examples:
    """A labelled set of n decoded samples.

    Attributes:
        modality: of the samples.
        clips: one array per sample, as the modality decodes it.
        collate: makes model inputs of samples, see `Modality.collator`.
        labels: (n,) int64, contiguous from 0; multi-hot (n, classes) int8 where `label_column` holds lists; or None
            without `label_column`.
        folds: (n,) the values of `fold_column`, or "train" and "test" with `test_split`, or None without.
        label_names: name of each label: the dataset's own, or the column's value as text.
        clip_names: name of each sample, for reports.
        test_folds: the folds to test on; None for all of them in turn.
        fingerprint: identifies a dataset that the caller built; None for one with a name.
        state: a fingerprint of the sizes and times of the local files that the samples came from.
        exclude: column -> values of the samples that were left out, also those that stand for no label.
        window: frames of the windows in which whole sounds are tested; None where samples are what `batch` gives.
    """

    modality: Modality
    clips: Sequence[np.ndarray]
    collate: Callable
    labels: np.ndarray | None = None
    folds: np.ndarray | None = None
    label_names: list[str] = field(default_factory=list)
    clip_names: list[str] = field(default_factory=list)
    test_folds: list[str] | None = None
    fingerprint: str | None = None
    state: str = ""
    exclude: dict[str, list] = field(default_factory=dict)
    window: int | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, rows: Sequence[int], **options) -> dict[str, np.ndarray]:
        """The model's inputs for some samples, without augmentation. `options` are those of the collator."""
        return self.collate.plain([self.clip(row, options.get("views", (1, 1))) for row in rows], **options)

    def clip(self, row: int, views: tuple[int, int] = (1, 1)) -> np.ndarray:
        """A sample, decoded for `batch`."""
        return self.clips.tested(row, views) if isinstance(self.clips, MappedClips) else self.clips[row]

    def choose(self, rows: Sequence[int]) -> "Examples":
        """Some of the samples, decoded for `batch` and held in memory."""
        return replace(
            self,
            clips=[self.clip(row) for row in rows],
            labels=None if self.labels is None else self.labels[rows],
            folds=None if self.folds is None else self.folds[rows],
            clip_names=[self.clip_names[row] for row in rows],
        )

    def whole(self, rows: Sequence[int], **options) -> dict[str, np.ndarray]:
        """As `batch`; where there is a `window`, sounds are not cut to it but padded to the longest."""
        return self.batch(rows, **options) if self.window is None else self.batch(rows, whole=True)

    def labels_of(self, row: int) -> list[str]:
        """The names of the labels of a sample."""
        if self.labels is None:
            return []
        found = np.flatnonzero(self.labels[row]) if self.labels.ndim > 1 else [self.labels[row]]
        return [self.label_names[label] for label in found]

    def training_batch(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The model's inputs for some samples, augmented. Of files only the part that is used is decoded."""
        if isinstance(self.clips, MappedClips):
            # separate generators: augmentation must draw the same wherever the samples are kept
            clips = [self.clips.part(row, own) for row, own in zip(rows, rng.spawn(len(rows)), strict=True)]
        else:
            clips = [self.clips[row] for row in rows]
        return self.collate(clips, rng)


class MappedClips(Sequence):
    """Samples of a table, decoded when they are indexed; `lengths` are those of the arrays."""

    def __init__(self, table: datasets.Dataset, decode: Callable[..., np.ndarray], lengths: list[int]):
        self.table, self.decode, self.lengths = table, decode, lengths

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.decode(self.table[int(row)])

    def part(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """A sample; of long media only a random window."""
        try:
            return self.decode(self.table[int(row)], rng)
        except BadClipError:  # damaged there; what a test looks at could be decoded when the set was indexed
            return self.tested(row)

    def tested(self, row: int, views: tuple[int, int] = (1, 1)) -> np.ndarray:
        """A sample for `Examples.batch`; of a video only the clips of the views."""
        return self.decode(self.table[int(row)], views=views)

    def __add__(self, other: "MappedClips") -> "MappedClips":
        table = datasets.concatenate_datasets([self.table, other.table])
        return MappedClips(table, self.decode, self.lengths + other.lengths)


def load_examples(
    data: DataArguments,
    processor,
    dataset=None,
    test_dataset=None,
    check: Callable[[Labels], None] | None = None,
    for_training: bool = True,
) -> Examples:
    """Load all samples that `data` selects, in the dataset's order, with the test split last.

    Labels and folds are read and checked before the first sample is decoded, unless they would have to be fetched with
    the samples from afar (archives on the Hub), or after. Samples without a label are left out.

    Args:
        data: what to read and how.
        processor: the model's preprocessor.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`; of a `DatasetDict` the splits that
            `data` names are taken.
        test_dataset: a dataset in hand to test on, instead of a `test_split`.
        check: called with the labels and folds, to raise an error where they do not do.
        for_training: whether `training_batch` is going to draw random parts of the samples. Otherwise of videos in
            memory only the clip is kept that `batch` takes.

    Raises:
        LabelError: labels or folds that cannot be used.
        ValueError: for a missing column, an empty set, or nothing to test on.
    """
    modality = modality_of(processor)
    parts = _parts(data, dataset, test_dataset)
    early, exclude = read_labels(data, processor, parts)
    if early is not None:
        _say(early, data, check)
    clips, read, marks, states = None, [], [], []
    for split, part in parts:
        of_split = replace(data, split=split, exclude=exclude)
        more, rows, types, mark, files = _read(of_split, processor, part, for_training)
        clips = more if clips is None else clips + more
        read.append(SplitRows(split, rows, types))
        marks.append(mark)
        states.append(state_of_files([*files, *(str(row["clip_name"]) for row in rows)]))
    found = encode(data, read)
    if early is None and (data.label_column or found.folds is not None):
        _say(found, data, check)
    elif early is not None and (lost := present(early) - present(found)):
        each = name_some(f"{what} {name}" for what, name in sorted(lost, key=str))
        logger.warning("none of the clips of %s can be used", each)
        if check is not None:
            check(found)
    names = [str(row["clip_name"]) for part in read for row in part.rows]
    examples = Examples(
        modality, clips, modality.collator(data, processor), clip_names=names, exclude=exclude, **vars(found)
    )
    window = modality.window(data, processor)
    if data.test_windows == "all":
        examples.window = window
    else:
        _say_what_is_cut(examples, window)
    examples.state = " ".join(states)
    if dataset is not None:
        examples.fingerprint = " ".join(marks)
    return examples


def _say_what_is_cut(examples: Examples, window: int | None) -> None:
    """Warn of samples that are longer than the window of a model, which `batch` cuts to their beginning."""
    if window is None:
        return
    mapped = isinstance(examples.clips, MappedClips)
    lengths = examples.clips.lengths if mapped else map(len, examples.clips)
    longer = [name for name, length in zip(examples.clip_names, lengths, strict=True) if length > window]
    if longer:
        logger.warning(
            "%d of %d clips are longer than the window of %d frames (data.max_frames, by default the processor's "
            "max_length), and data.test_windows is 'first': tests, probes and predictions do not look at the rest. The "
            "first is %s.",
            len(longer), len(examples.clips), window, longer[0],
        )  # fmt: skip


def _say(found: Labels, data: DataArguments, check: Callable[[Labels], None] | None) -> None:
    """What was found, before anything is done with it."""
    if found.labels is not None:
        logger.info("%s", describe(found))
    if check is not None:
        check(found)


def _parts(data: DataArguments, dataset, test_dataset) -> list[tuple[str, Any]]:
    """The splits to read, the one to test on last, each with the dataset in hand that has it."""
    if test_dataset is None and data.test_split is None:
        return [(data.split, dataset)]
    if test_dataset is not None:
        if dataset is None or data.fold_column:
            raise ValueError("test_dataset is given; it takes a dataset to train on, too, and no data.fold_column.")
    elif dataset is not None and not isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ValueError(
            f"data.test_split is {data.test_split!r} and the given dataset is one split; it takes a DatasetDict, or a "
            "test_dataset."
        )
    return [(data.split, dataset), (data.test_split or "test", dataset if test_dataset is None else test_dataset)]


def _read(
    data: DataArguments, processor, dataset, for_training: bool
) -> tuple[Sequence[np.ndarray], list[dict], dict, str, list[str]]:
    """The samples of one split; label, fold and name of each; the types of the dataset's columns; its fingerprint; and
    the files that are its shards."""
    source = open_source(data, processor, dataset)
    files = source.files or []
    columns = list({data.label_column, data.fold_column, "clip_name"} - {None})
    if not data.in_memory:
        table, decode, lengths, about, types = map_clips(source, data, processor, columns)
        return MappedClips(table, decode, lengths), about, types, source.fingerprint, files
    source, clips, rows = decoded_once(source, data, processor), [], []
    if not for_training:
        source.featurize = partial(source.featurize, views=(1, 1))
    for example, clip in source.decode_all(data.workers, data.max_bad_share):
        clips.append(clip)
        rows.append({column: field_of(example, column) for column in columns})
    # a stream in hand has no fingerprint, but all of it is here
    mark = source.fingerprint or hash_arrays(clips) + hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    return clips, rows, source.dataset.features or {}, mark, files


def balanced_weights(labels):
    """Weight of each sample in the balanced sampler: the sum over its labels of 1 / samples with that label.

    Args:
        labels: (n,) classes or (n, classes) multi-hot.

    Returns:
        float array (n,). A sample without a label is never drawn.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return (1 / np.bincount(labels).clip(min=1))[labels]
    weights = 1 / labels.sum(axis=0).clip(min=1)  # (classes,)
    # part by part: the product is taken of float64 numbers, eight times what the labels need
    return np.concatenate([part @ weights for part in np.array_split(labels, -(-len(labels) // 4096))])
