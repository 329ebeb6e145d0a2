"""Datasets that the caller built: a `datasets.Dataset`, an `IterableDataset`, or a list of arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

TAKES = "a datasets.Dataset, IterableDataset or DatasetDict, or a list of arrays"
NUMBER = "number"  # column of a list of arrays: the place of each
NESTED = (datasets.List, datasets.LargeList, datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D)
MEDIA = (datasets.Audio, datasets.Image, datasets.Video)


@dataclass
class InHand:
    """A dataset in hand, its media undecoded.

    Attributes:
        dataset: the examples; of a list of arrays their numbers.
        arrays: the list of arrays.
        fingerprint: identifies the content; None for an `IterableDataset`, which has none.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    arrays: list | None = None
    fingerprint: str | None = None


def take_in_hand(given: Any, split: str) -> InHand:
    """A dataset as the caller gave it, made ready to be read.

    Args:
        given: a dataset; a dictionary of datasets, of which `split` is taken; or a list of arrays, PIL images or
            tensors: waveforms (samples,) at the processor's rate, images (H, W, C) or (C, H, W) uint8, videos
            (T, H, W, C) or (T, C, H, W) uint8.

    Raises:
        TypeError: it is something else.
        ValueError: an empty list, or a dictionary without that split.
    """
    if isinstance(given, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in given:
            raise ValueError(f"data.split is {split!r}; the given dataset has {', '.join(map(repr, given))}.")
        given = given[split]
    if isinstance(given, datasets.IterableDataset):
        return InHand(given)
    if isinstance(given, datasets.Dataset):
        # the fingerprint of a dataset has no public name
        return InHand(_undecoded(given.with_format(None)), fingerprint=given._fingerprint)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if not given:
            raise ValueError("dataset is an empty list; it takes at least one array.")
        if isinstance(given[0], dict):
            raise TypeError("dataset is a list of dicts; make it a dataset by datasets.Dataset.from_list(...).")
        arrays = [each if isinstance(each, Image.Image) else np.asarray(each) for each in given]
        numbers = datasets.Dataset.from_dict({NUMBER: list(range(len(arrays)))})
        return InHand(numbers, arrays, hash_arrays(arrays))
    raise TypeError(f"dataset is a {type(given).__name__}; it takes {TAKES}.")


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    for column, feature in dataset.features.items():
        if isinstance(feature, MEDIA):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def with_arrays(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """The dataset whose `column` of numbers gives arrays of their type instead of lists; other columns stay."""
    feature = dataset.features[column]
    if isinstance(feature, NESTED):
        return dataset.with_format("numpy", columns=[column], output_all_columns=True)
    return dataset


def hash_arrays(arrays: Sequence) -> str:
    """A fingerprint of the content of arrays or PIL images."""
    digest = hashlib.sha256()
    for each in map(np.asarray, arrays):
        digest.update(f"{each.dtype.str}{each.shape}".encode())
        digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()[:16]
