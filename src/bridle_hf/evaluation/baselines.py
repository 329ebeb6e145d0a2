"""Baseline features for a linear probe: simple statistics of the inputs, without an encoder."""

from collections.abc import Callable, Iterable

import numpy as np

from .features import batches


def baseline_features(examples, describe: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A baseline of `Modality.baselines` on every sample, padding left out: float64 (n, features)."""
    return np.stack([describe(inputs) for inputs in _inputs(examples)])


def _inputs(examples) -> Iterable[np.ndarray]:
    for values, mask in batches(examples, batch_size=64, whole=True):
        for row, inputs in enumerate(values.double().numpy()):
            yield inputs if mask is None else inputs[mask[row].bool().numpy()]
