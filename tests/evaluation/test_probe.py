import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bridle_hf.evaluation import rotation
from bridle_hf.evaluation.probe import linear_probe, mcnemar, outer_folds


def clusters(n=200, dims=20, classes=4, noise=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, dims))[labels] + noise * rng.normal(size=(n, dims)), labels, np.arange(n) // 4 % 5


# Fewer and more features than rows, and features that repeat each other as the channels of a grey picture do.
@pytest.mark.parametrize(("dims", "noise", "copies"), [(20, 3.0, 1), (300, 9.0, 1), (20, 3.0, 3)])
def test_one_c_gives_scikit_learns_predictions(dims, noise, copies):
    x, y, folds = clusters(dims=dims, noise=noise)
    x = np.tile(x * np.geomspace(0.01, 100, dims) + 5, copies)  # the scaler has to undo this
    result = linear_probe(x, y, folds, grid=(0.1,))
    right = np.zeros(len(y), dtype=bool)
    for fold in range(5):
        test = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-6, max_iter=5000))
        right[test] = model.fit(x[~test], y[~test]).predict(x[test]) == y[test]
        assert result.per_fold[fold] == pytest.approx(right[test].mean(), abs=0.026)
    assert (result.correct == right).mean() > 0.99  # but for a tie or two
    assert 0.4 < right.mean() < 1  # a result the test could get wrong


def test_features_that_say_nothing_give_chance():
    _, y, folds = clusters(n=40)
    assert linear_probe(np.ones((40, 3)), y, folds).accuracy == pytest.approx(0.25, abs=0.01)


def test_c_is_chosen_by_the_other_folds_alone():
    x, y, folds = clusters()
    plain = linear_probe(x, y, folds)
    shuffled = y.copy()
    shuffled[folds == 2] = np.random.default_rng(0).permutation(y[folds == 2])
    other = linear_probe(x, shuffled, folds)
    assert other.chosen_c[2] == plain.chosen_c[2]  # labels of the test fold had no part in it
    assert other.per_fold[2] < plain.per_fold[2]


def test_c_is_what_scikit_learns_grouped_search_chooses():
    rng = np.random.default_rng(0)
    x, y, folds = clusters(noise=2.5)
    noisy = np.concatenate([x, rng.normal(size=(200, 80))], axis=1)
    grid = (0.001, 0.1, 100.0)
    result = linear_probe(noisy, y, folds, grid=grid)
    for fold in range(5):
        rows = folds != fold
        model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-6, max_iter=5000))
        search = GridSearchCV(model, {"logisticregression__C": grid}, cv=LeaveOneGroupOut(), refit=False)
        search.fit(noisy[rows], y[rows], groups=folds[rows])
        scores = dict(zip(grid, search.cv_results_["mean_test_score"], strict=True))
        assert max(scores.values()) - min(scores.values()) > 0.03  # a wrong choice would show
        assert scores[result.chosen_c[fold]] >= max(scores.values()) - 1.01 / rows.sum()  # one clip: rounding


def test_labels_of_any_type_and_drawn_folds():
    x, y, _ = clusters()
    names = np.array(["dog", "rain", "sea", "saw"])[y]
    result = linear_probe(x, names)
    assert sorted(result.per_fold) == [1, 2, 3, 4, 5]
    folds = outer_folds(names, seed=0)
    assert all(np.unique(names[folds == fold], return_counts=True)[1].tolist() == [10] * 4 for fold in range(1, 6))
    assert (outer_folds(names, seed=1) != folds).any()


def test_two_folds_search_by_seeded_splits():
    x, y, folds = clusters()
    assert linear_probe(x, y, folds % 2, seed=0).accuracy > 0.7


def test_mcnemar_is_the_exact_binomial_test():
    a = np.array([1] * 9 + [0] * 1 + [1] * 30, dtype=bool)
    b = np.array([0] * 9 + [1] * 1 + [1] * 30, dtype=bool)
    assert mcnemar(a, b) == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert mcnemar(a, a) == 1.0


@pytest.mark.parametrize(
    ("x", "folds", "message"),
    [
        (np.full((8, 2), np.nan), np.arange(8) % 2, "NaN or inf"),
        (np.zeros((7, 2)), np.arange(8) % 2, r"\(7, 2\) for 8 labels"),
        (np.zeros((8, 2)), np.arange(4) % 2, r"folds: got shape \(4,\); it takes one of each example, \(8,\)"),
        (np.zeros((8, 2)), np.zeros(8), "at least two folds"),
    ],
)
def test_bad_input_is_named(x, folds, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(x, np.arange(8) % 2, folds)


@pytest.mark.parametrize("test_folds", [[], [2], [0, 2]])
def test_test_folds_that_are_none_are_named(test_folds):
    with pytest.raises(ValueError, match=r"test_folds: got .*; the folds are \[0, 1\]"):
        linear_probe(np.zeros((8, 2)), np.arange(8) % 2, np.arange(8) // 4, test_folds=test_folds)


def test_few_clips_are_searched_by_fewer_splits():
    x, y, _ = clusters(n=12, noise=0.1)
    assert linear_probe(x, y, np.arange(12) // 4 % 2).accuracy == 1.0  # one or two clips of a class to train on
    x, y, _ = clusters(n=4, classes=2, noise=0.1)
    assert set(linear_probe(x, y, np.arange(4) // 2).per_fold) == {0, 1}


def test_inner_splits_of_one_class_are_left_out():
    x, y, _ = clusters(n=40, classes=2, noise=0.1)
    folds = np.where(y == 0, np.arange(40) // 2 % 2, 2 + np.arange(40) // 2 % 2)  # each fold holds one class
    result = linear_probe(x, y, folds, grid=(1.0, 3.0))
    assert result.accuracy == 1.0 and set(result.per_fold) == {0, 1, 2, 3}


def test_a_fold_beside_which_there_is_one_class_is_named():
    with pytest.raises(ValueError, match="all clips outside of fold 'a' are of one class, 1"):
        linear_probe(np.zeros((8, 2)), np.arange(8) % 2, np.array(["a", "b"] * 4))


# Features of many scales, constant ones and copies; more rows than features, and fewer.
@pytest.mark.parametrize(("rows", "dims"), [(90, 12), (20, 40)])
@pytest.mark.parametrize("copies", [3, 0])
@pytest.mark.parametrize("portion", [7, 8192])
def test_the_span_of_the_training_rows_is_that_of_the_singular_vectors(rows, dims, copies, portion, monkeypatch):
    monkeypatch.setattr(rotation, "PORTION", portion)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows + 10, dims)) * np.geomspace(1e-3, 1e3, dims) + 100
    constant = np.full((rows + 10, int(copies > 0)), 0.1)
    x = np.concatenate([x, x[:, :copies], constant], axis=1).astype(np.float32)
    scaler = StandardScaler().fit(x[:rows].astype(np.float64))
    train, test = (scaler.transform(part.astype(np.float64)) for part in (x[:rows], x[rows:]))
    _, values, directions = np.linalg.svd(train, full_matrices=False)
    basis = directions[values > 1e-10 * values[0]].T
    got_train, got_test = rotation.rotate(x[:rows], x[rows:])
    assert got_train.shape[1] == basis.shape[1] == min(dims, rows - 1) and got_train.dtype == np.float64
    # equal but for a rotation: products of rows tell
    np.testing.assert_allclose(got_train @ got_train.T, train @ train.T, atol=1e-8)
    np.testing.assert_allclose(got_test @ got_train.T, test @ basis @ (train @ basis).T, atol=1e-8)
    np.testing.assert_allclose(got_test @ got_test.T, test @ basis @ (test @ basis).T, atol=1e-8)
