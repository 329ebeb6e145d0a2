import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from bridle_hf.evaluation.measures import choose_neighbours, knn_accuracy, knn_predict, rank_me, spread


@pytest.fixture(scope="module")
def blobs():
    """90 features of 8 dimensions around three directions, at lengths that tell nothing; labels and three folds."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    features = rng.normal(size=(3, 8))[labels] + rng.normal(size=(90, 8))
    return features * rng.uniform(0.1, 10, size=(90, 1)), np.array(["a", "b", "c"])[labels], np.arange(90) % 3


def test_neighbours_by_hand():
    """In the plane, by angle: the two voters of class 1 outvote the nearest of class 0."""

    def at(*degrees):
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)

    train, labels = at(2, 10, 12, 90), np.array([0, 1, 1, 0])
    assert knn_predict(train, labels, at(0, 85), k=1).tolist() == [0, 0]
    assert knn_predict(train, labels, at(0, 85), k=3).tolist() == [1, 1]
    # lengths play no part; with one vote each the first class has it
    assert knn_predict(train[:2] * [[0.01], [100]], labels[:2], at(4, 9), k=1).tolist() == [0, 1]
    assert knn_predict(train[:2], labels[:2], at(4, 9), k=2).tolist() == [0, 0]


@pytest.mark.parametrize("k", [1, 4, 15])
def test_neighbours_are_scikit_learns(blobs, k):
    features, labels, folds = blobs
    right = []
    for fold in range(3):
        test = folds == fold
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        peer.fit(features[~test], labels[~test])
        predicted = peer.predict(features[test])
        assert knn_predict(features[~test], labels[~test], features[test], k).tolist() == predicted.tolist()
        right.append(predicted == labels[test])
    assert knn_accuracy(features, labels, folds, k=k) == pytest.approx(np.concatenate(right).mean())
    assert knn_accuracy(features, labels, folds, k=k, test_folds=[1]) == pytest.approx(right[1].mean())
    assert 0.5 < np.concatenate(right).mean() < 1


def test_few_clips_have_few_neighbours(blobs):
    assert choose_neighbours(np.repeat([0, 1], 100)) == 20
    assert choose_neighbours([0, 0, 0, 1, 1, 1, 1]) == 3
    assert choose_neighbours([0, 1]) == choose_neighbours([0]) == 1
    features, labels, folds = blobs
    assert knn_accuracy(features, labels, folds) == knn_accuracy(features, labels, folds, k=20)


def test_rank_me_by_hand():
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rank_me(np.array([[0, 3.0], [1, 0], [0, 0]])) == pytest.approx(expected, abs=1e-5)
    assert rank_me(np.outer([1.0, 2, 3], [1, -1])) == pytest.approx(1, abs=1e-4)
    assert rank_me(np.eye(16)) == pytest.approx(16, abs=1e-3)
    assert math.isfinite(rank_me(np.zeros((3, 2))))


def test_rank_me_is_that_of_the_eigenvalues():
    features = np.random.default_rng(1).normal(size=(40, 6)) * [5, 3, 1, 1, 0.1, 0.01]
    values = np.sqrt(np.linalg.eigvalsh(features.T @ features))
    shares = values / values.sum() + 1e-7
    assert rank_me(features) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-9)
    assert rank_me(features.astype(np.float32)) == pytest.approx(rank_me(features), rel=1e-5)
    assert rank_me(features * 1000) == pytest.approx(rank_me(features), rel=1e-9)


def test_spread():
    assert spread(np.outer([1.0, 2, 3], [1, 2, 3])) == pytest.approx(0, abs=1e-12)
    assert spread(np.array([[3.0, 0], [-1, 0], [0, 2], [0, -5]])) == pytest.approx(1)
    assert spread(np.random.default_rng(0).normal(size=(2000, 50))) == pytest.approx(1, abs=0.02)
    # two directions at length 1, (1, 0) and (0, 1): a deviation of 1/2 in both, times sqrt(2)
    assert spread(np.array([[2.0, 0], [0, 7]])) == pytest.approx(math.sqrt(0.5))
