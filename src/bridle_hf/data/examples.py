"""Small labelled sets in memory, for probes and fine-tuning."""

from dataclasses import dataclass

import datasets
import numpy as np

from .arguments import DataArguments
from .cache import open_clips
from .collation import frame_mask, pad_features


@dataclass
class Examples:
    """A labelled set: n clips of T frames.

    Attributes:
        features: (n, T, mel bins) float32, normalised, 0 where padded.
        attention_mask: (n, T) int64, 1 for a frame of the clip.
        labels: (n,) int64, contiguous from 0, or None without `label_column`.
        folds: (n,) the values of `fold_column`, or None without.
        label_names: name of each label: the dataset's own, or the column's value as text.
        clip_names: name of each clip, for reports.
    """

    features: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray | None
    folds: np.ndarray | None
    label_names: list[str]
    clip_names: list[str]

    def __len__(self) -> int:
        return len(self.features)


def load_examples(data: DataArguments, feature_extractor) -> Examples:
    """Decode all clips that `data` names, in the dataset's order, cropped from their beginning or padded.

    Raises:
        ValueError: for a missing column, an empty set, or a clip without exactly one label.
    """
    source = open_clips(data, feature_extractor)
    max_frames = data.max_frames or feature_extractor.max_length
    features, values, folds, names = [], [], [], []
    for example, clip in source.decode_all(data.num_workers, data.max_bad_share):
        features.append(clip[:max_frames])
        values.append(example[data.label_column] if data.label_column else None)
        folds.append(example[data.fold_column] if data.fold_column else None)
        names.append(example["clip_name"])
    padded, lengths = pad_features(features, max_frames)
    labels, label_names = None, []
    if data.label_column:
        label_feature = (source.dataset.features or {}).get(data.label_column)
        labels, label_names = _contiguous(values, label_feature, data.label_column)
    folds = np.array(folds) if data.fold_column else None
    return Examples(padded, frame_mask(lengths, max_frames), labels, folds, label_names, names)


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
