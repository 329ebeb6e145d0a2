"""Labelled sets for probes and fine-tuning: every clip at hand by its number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import datasets
import numpy as np

from .arguments import DataArguments
from .cache import open_clips
from .modalities import Modality, modality_of


@dataclass
class Examples:
    """A labelled set of n decoded clips.

    Attributes:
        modality: what the clips are.
        clips: one array a clip, as the modality decodes it.
        collate: makes model inputs of clips, see `data.collation`.
        labels: (n,) int64, contiguous from 0, or None without `label_column`.
        folds: (n,) the values of `fold_column`, or "train" and "test" with `test_split`, or None without.
        label_names: name of each label: the dataset's own, or the column's value as text.
        clip_names: name of each clip, for reports.
        test_folds: the folds to test on, where it is not all of them in turn.
    """

    modality: Modality
    clips: Sequence[np.ndarray]
    collate: Callable
    labels: np.ndarray | None = None
    folds: np.ndarray | None = None
    label_names: list[str] = field(default_factory=list)
    clip_names: list[str] = field(default_factory=list)
    test_folds: list[str] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, rows: Sequence[int], **options) -> dict[str, np.ndarray]:
        """The model's inputs for some clips, without chance. `options` are the collator's."""
        return self.collate.test([self.clips[row] for row in rows], **options)

    def training_batch(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The model's inputs for some clips, augmented."""
        return self.collate([self.clips[row] for row in rows], rng)


def load_examples(data: DataArguments, processor) -> Examples:
    """All clips that `data` names, in the dataset's order; those of `test_split` come last.

    Raises:
        ValueError: for a missing column, an empty set, or a clip without exactly one label.
    """
    modality = modality_of(processor)
    clips, values, folds, names = [], [], [], []
    for split in (data.split, data.test_split):
        if split is None:
            continue
        source = open_clips(replace(data, split=split), processor)
        for example, clip in source.decode_all(data.num_workers, data.max_bad_share):
            clips.append(clip)
            values.append(example[data.label_column] if data.label_column else None)
            folds.append(example[data.fold_column] if data.fold_column else split)
            names.append(example["clip_name"])
    labels, label_names = None, []
    if data.label_column:
        label_feature = (source.dataset.features or {}).get(data.label_column)
        labels, label_names = _contiguous(values, label_feature, data.label_column)
    return Examples(
        modality,
        clips,
        modality.collator(data, processor),
        labels,
        np.array(folds) if data.fold_column or data.test_split else None,
        label_names,
        names,
        [data.test_split] if data.test_split else None,
    )


def _contiguous(values: list, feature, column: str) -> tuple[np.ndarray, list[str]]:
    """Labels 0, 1, ... in the order of the sorted values, and their names."""
    if isinstance(feature, datasets.ClassLabel):
        return np.array(values, dtype=np.int64), list(feature.names)
    for value in values:
        if not isinstance(value, (int, str)):
            raise ValueError(f"data.label_column: {column!r} must hold one integer or string a clip, got {value!r}.")
    classes = sorted(set(values))
    index = {value: number for number, value in enumerate(classes)}
    return np.array([index[value] for value in values], dtype=np.int64), [str(value) for value in classes]
