"""Datasets that the caller built: a `datasets.Dataset`, an `IterableDataset`, or a list of arrays or files."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

logger = logging.getLogger(__name__)

TAKES = "a datasets.Dataset, IterableDataset or DatasetDict, or a list of arrays or files"
NUMBER = "number"  # column of a list of arrays: the place of each
NESTED = (datasets.List, datasets.LargeList, datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D)
OF_A_CLIP = {"array", "sampling_rate", "bytes", "path"}  # keys of a dict that stands for one clip
MEDIA = (datasets.Audio, datasets.Image, datasets.Video)


@dataclass
class InHand:
    """A dataset in hand, its media undecoded.

    Attributes:
        dataset: the examples; of a list their numbers, and the paths of its files as `clip_name`.
        arrays: the list, of arrays and of what decoders take for a file.
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
            (T, H, W, C) or (T, C, H, W) uint8; or of paths, URLs or bytes of files, or dicts `{"array",
            "sampling_rate"}` or `{"bytes", "path"}`, or decoders of sounds, such as torchcodec's `AudioDecoder`.

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
        if given.format["type"] == "custom":
            logger.warning("the transform of the given dataset (set_transform) is not applied; use its map instead.")
        # the fingerprint of a dataset has no public name
        return InHand(_undecoded(given.with_format(None)), fingerprint=given._fingerprint)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if not given:
            raise ValueError("dataset is an empty list; it takes at least one array.")
        arrays = [_clip(each) for each in given]
        paths = [each.get("path") if isinstance(each, dict) else None for each in arrays]
        columns = {NUMBER: list(range(len(arrays)))}
        if any(paths):
            columns["clip_name"] = [path or f"row {row}" for row, path in enumerate(paths)]
        return InHand(datasets.Dataset.from_dict(columns), arrays, hash_arrays(arrays))
    raise TypeError(f"dataset is a {type(given).__name__}; it takes {TAKES}.")


def _clip(given: Any) -> Any:
    """An entry of a list, as the decoder of its modality takes it."""
    if hasattr(given, "get_all_samples"):
        samples = given.get_all_samples()
        return {"array": as_array(samples.data), "sampling_rate": samples.sample_rate}
    if given is None or isinstance(given, str | os.PathLike):
        return {"path": given and os.fspath(given)}
    if isinstance(given, bytes):
        return {"bytes": given, "path": None}
    if isinstance(given, dict):
        if not given.keys() <= OF_A_CLIP:
            raise TypeError(
                f"dataset is a list of dicts with {', '.join(map(str, given))}; make it a dataset by "
                "datasets.Dataset.from_list(...)."
            )
        return given if given.get("array") is None else given | {"array": as_array(given["array"])}
    return given if isinstance(given, Image.Image) else as_array(given)


def as_array(given: Any) -> np.ndarray:
    """An array of what stands for one: a tensor of any type and device, too. Empty where there is none, as of lists of
    several lengths and of damaged PIL images: the decoder refuses it by name."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = given.float() if given.dtype == torch.bfloat16 else given
    try:
        return np.asarray(given)
    except Exception:
        return np.empty(0, dtype=object)


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
    """A fingerprint of the content of arrays, PIL images and dicts that stand for clips; of a file its path and
    state."""
    digest = hashlib.sha256()
    for each in arrays:
        if isinstance(each, dict):
            path = each.get("path") or ""
            state = os.stat(path) if os.path.isfile(path) else None
            state = state and (state.st_size, state.st_mtime_ns)
            digest.update(repr((path, state, each.get("sampling_rate"), each.get("bytes"))).encode())
            each = each.get("array", ())
        each = as_array(each)
        digest.update(f"{each.dtype.str}{each.shape}".encode())
        digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()[:16]
