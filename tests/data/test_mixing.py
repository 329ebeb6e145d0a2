"""Mixing of samples and their targets."""

import numpy as np
import pytest

from bridle_hf.data import cutmix, mixup
from bridle_hf.data.pixels import drawn_from


def test_mixup_mixes_features_and_targets_alike():
    features = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None], (64, 3, 2))
    targets = np.eye(64, dtype=np.float32)
    mixed, soft = mixup(features, targets, np.random.default_rng(0))
    assert mixed.dtype == np.float32 and soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed, np.broadcast_to((soft @ np.arange(64))[:, None, None], mixed.shape), atol=1e-4)
    weights = np.diag(soft)[(np.diag(soft) > 0) & (np.diag(soft) < 1)]
    assert len(weights) > 50
    assert weights.mean() == pytest.approx(0.5, abs=0.05) and weights.std() == pytest.approx(0.109, abs=0.04)


@pytest.mark.parametrize("shape", [(6, 3, 32, 32), (6, 4, 3, 32, 32)])
def test_cutmix_gives_the_target_by_the_area_of_the_box(shape):
    numbers = np.arange(6, dtype=np.float32)
    pixels = np.broadcast_to(numbers.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
    with drawn_from(np.random.default_rng(3)):
        mixed, targets = cutmix(pixels, np.eye(6, dtype=np.float32))
    shares = np.stack([(mixed == number).reshape(6, -1).mean(axis=1) for number in numbers], axis=1)  # (6, 6)
    np.testing.assert_allclose(shares, targets, atol=1e-6)
    assert 0 < targets.max(axis=1).min() < 1
    assert (mixed.reshape(6, -1, 32, 32) == mixed.reshape(6, -1, 32, 32)[:, :1]).all()  # one box for all frames
