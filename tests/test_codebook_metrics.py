import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from bridle_hf.codebook_metrics import (
    bag_of_codes_accuracy,
    churn,
    code_counts,
    code_histograms,
    ecu_table6,
    entropy,
    mutual_information,
    residual_energy,
    usage,
)
from bridle_hf.evaluation.metrics import load_metric


def test_counts_of_tensors_and_arrays():
    codes = torch.tensor([[[0, 2], [1, 2]], [[1, 0], [1, 2]]])
    expected = [[1, 3, 0], [1, 0, 3]]
    assert code_counts(codes, 3).tolist() == expected
    assert code_counts(codes.numpy(), 3).tolist() == expected


def test_usage_by_hand():
    # p = 1/2, 1/4, 1/4, 0: 1.5 bits; CUR 3/4; ECU = 3/4 * 1.5 / 2.
    measured = usage(np.array([[2, 1, 1, 0]]))
    assert measured["cur"][0] == 0.75
    assert measured["entropy"][0] == pytest.approx(1.5)
    assert measured["perplexity"][0] == pytest.approx(2**1.5)
    assert measured["ecu"][0] == pytest.approx(0.5625)
    assert measured["dead"][0] == 1


def test_uniform_use_is_one_whatever_the_size_and_table6_is_its_floor():
    for size, floor in ((256, 0.02254), (1024, 0.01443)):
        counts = np.full((1, size), 7)
        assert usage(counts)["ecu"][0] == pytest.approx(1.0)
        assert ecu_table6(counts)[0] == pytest.approx(floor, abs=5e-6)
    # The printed figure grows as use becomes less even, where ECU falls.
    skewed = np.full((1, 256), 7)
    skewed[0, 0] = 5000
    assert ecu_table6(skewed)[0] > 0.0226 and usage(skewed)["ecu"][0] < 0.9


def test_a_single_code_is_used_uniformly():
    """log2 of one code is 0."""
    with warnings.catch_warnings(action="error"):
        measured = usage(np.array([[7]]))
    assert [measured[name][0] for name in ("cur", "entropy", "perplexity", "ecu", "dead")] == [1, 0, 1, 1, 0]
    assert load_metric("code_usage").compute(predictions=[[0], [0]], codebook_size=1)["ecu"] == [1]


def test_mutual_information_is_scikit_learns_without_correction():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 500)
    b = (a + rng.integers(0, 3, 500)) % 9
    expected = mutual_info_score(a, b) / np.log(2)
    assert mutual_information(a, b, corrected=False) == pytest.approx(expected)
    assert mutual_information(b, a) == pytest.approx(mutual_information(a, b))


def test_correction_removes_the_bias_of_independent_codes():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 32, (2, 20000))
    assert mutual_information(a, b, corrected=False) > 0.03  # (31 * 31) / (2 n ln 2) = 0.035
    assert abs(mutual_information(a, b)) < 0.004
    # Three bits of a are a function of b.
    assert mutual_information(a, a // 4) == pytest.approx(3.0, abs=0.01)


def test_corrected_entropy_of_a_uniform_source():
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.integers(0, 64, 640), minlength=64)
    assert entropy(counts) < 5.95
    assert entropy(counts, corrected=True) == pytest.approx(6.0, abs=0.02)


def test_residual_energy_by_hand():
    z = np.array([[2.0, 0.0], [0.0, 2.0]])
    stages = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 1.0]]])  # residuals 1, 0 | 0, 1
    assert residual_energy(z, stages).tolist() == pytest.approx([1 / 8, 1 / 8])


def test_churn_counts_changed_codes_per_stage():
    before = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    after = before.copy()
    after[0, 0] = 9
    after[:3, 1] = 0
    assert churn(before, after).tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match="shapes"):
        churn(before, before[:2])


def test_histograms_leave_padding_out():
    codes = np.array([[[0], [1], [1], [2]]])
    valid = np.array([[True, True, True, False]])
    assert code_histograms(codes, valid, 3).tolist() == [pytest.approx([1 / 3, 2 / 3, 0])]


def test_bag_of_codes_finds_classes_that_differ_and_no_others():
    rng = np.random.default_rng(0)
    labels, folds = np.arange(80) % 2, np.arange(80) // 20
    valid = np.ones((80, 30), dtype=bool)
    telling = rng.integers(0, 4, (80, 30, 2)) + 4 * labels[:, None, None]
    noise = rng.integers(0, 8, (80, 30, 2))
    assert bag_of_codes_accuracy(telling, valid, 8, labels, folds) == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}
    assert np.mean(list(bag_of_codes_accuracy(noise, valid, 8, labels, folds).values())) < 0.7
    for unlearnable in (np.zeros_like(folds), labels):  # nothing to learn from, and one class
        with pytest.raises(ValueError, match="outside fold 0 are .* at least two classes"):
            bag_of_codes_accuracy(telling, valid, 8, labels, unlearnable)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([[0], [4]]), r"0\.\.4; they must lie in \[0, 4\)"),
        (np.array([[-1]]), "-1"),
        (np.zeros((2, 2)), "float64"),
        (np.zeros((0, 2), dtype=int), "none"),
        (np.zeros(3, dtype=int), "shape"),
    ],
)
def test_bad_codes_are_named(codes, message):
    with pytest.raises(ValueError, match=message):
        code_counts(codes, 4)
