"""Probes of frozen features: outer folds as given, nested search of the one knob of each kind."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from .cross_validation import check_training, outer_folds
from .gradient_probe import RATES, gradient_scores
from .measures import knn_predict

MANY = 4000  # training rows of which a quarter, held out once, chooses C well enough
PORTION = 8192  # rows that are looked at together
C_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass
class ProbeResult:
    """Outcome of a linear probe.

    Attributes:
        accuracy (`float`): share of the tested examples predicted right, each while its fold was held out.
        per_fold (`dict`): fold -> accuracy on that fold.
        chosen_c (`dict`): fold -> the C, or other knob, that its training folds chose.
        correct (`np.ndarray`): (n,) bool, for paired tests; false where an example was not tested.
        predicted (`np.ndarray`): (n,) the class that was said of each; its own where it was not tested.
    """

    accuracy: float
    per_fold: dict
    chosen_c: dict
    correct: np.ndarray
    predicted: np.ndarray


def _rotate(train, test):
    """Standardise by the training rows, and keep their span only: fewer features where some repeat others.

    The logistic loss with an L2 penalty does not change under rotation, and the weights lie in the span of the
    training rows, so this changes the cost of a fit and not its result. The directions are eigenvectors of the smaller
    of two matrices of products, of features or of rows, in float64: beside the rows and the result, memory holds the
    square of that number. Directions with less than 1e-12 of the largest variance are left out as rounding.
    """
    rows, width = train.shape
    mean = train.mean(axis=0, dtype=np.float64)
    products = np.zeros((width, width)) if width <= rows else None
    squares = np.zeros(width)
    for part in _portions(train):
        centred = part - mean
        squares += np.square(centred).sum(axis=0)
        if products is not None:
            products += centred.T @ centred
    variance, rounding = squares / rows, np.finfo(np.float64).eps * rows
    constant = variance <= rounding * variance + np.square(rounding * mean)  # as in scikit-learn's StandardScaler
    scale = np.where(constant, 1.0, np.sqrt(variance))
    if products is not None:
        basis, _ = _directions(products / np.outer(scale, scale))
    else:
        standard = (train - mean) / scale
        basis, values = _directions(standard @ standard.T)
        basis = standard.T @ (basis / np.sqrt(values))  # (d, rank)
    basis = basis / scale[:, None]

    def turned(x):
        found, start = np.empty((len(x), basis.shape[1])), 0
        for part in _portions(x):
            found[start : start + len(part)] = (part - mean) @ basis
            start += len(part)
        return found

    return turned(train), turned(test)


def _directions(products):
    """Orthonormal eigenvectors (n, rank) of a symmetric matrix (n, n), and their eigenvalues, without the null ones."""
    values, vectors = np.linalg.eigh(products)
    kept = values > 1e-12 * values[-1]
    kept[-1] = True  # of features that say nothing, too
    return vectors[:, kept], np.maximum(values[kept], np.finfo(np.float64).tiny)


def _portions(x):
    """The rows in float64, some at a time."""
    return (x[start : start + PORTION].astype(np.float64) for start in range(0, len(x), PORTION))


def _linear(x, y, train, test, grid, seed):
    """Predictions of the test rows for each C of the ascending grid: (len(grid), test rows)."""
    x_train, x_test = _rotate(x[train], x[test])
    model = LogisticRegression(solver="newton-cg", tol=1e-3, max_iter=1000, warm_start=True)
    predictions = []
    for c in grid:
        model.set_params(C=c).fit(x_train, y[train])
        predictions.append(model.predict(x_test))
    return np.stack(predictions)


def _knn(x, y, train, test, grid, seed):
    """As `_linear`, for each k of the grid; k is never more than the training rows."""
    return knn_predict(x[train], y[train], x[test], np.minimum(grid, np.count_nonzero(train)))


def _gradient(x, y, train, test, grid, seed):
    """As `_linear`, for each learning rate of the grid."""
    classes, index = np.unique(y[train], return_inverse=True)
    scores, _ = gradient_scores(x[train], index, x[test], grid, seed=seed)
    return classes[scores.argmax(axis=2)]


KINDS = {"linear": (_linear, C_GRID), "knn": (_knn, (1, 3, 5, 10, 20, 50)), "gradient": (_gradient, RATES)}


def _choose(predict, x, y, folds, grid, seed):
    """The value of the grid with the best accuracy over inner splits of the training rows; ties go to the first one.

    Splits that would train on one class are left out; where that leaves none, the one in the middle is taken.
    """
    if len(grid) == 1:
        return grid[0]
    if len(np.unique(folds)) > 2:
        # Folds often keep the clips of one recording together, and an inner split has to respect that, too.
        splits = [(folds != fold, folds == fold) for fold in np.unique(folds)]
    else:
        # no more than the largest class has clips, as scikit-learn demands
        number = min(4, np.unique(y, return_counts=True)[1].max())
        splits = []
        if number > 1:
            parts = StratifiedKFold(number, shuffle=True, random_state=seed).split(np.zeros(len(y)), y)
            splits = [tuple(np.isin(np.arange(len(y)), rows) for rows in part) for part in parts]
        splits = splits[: 1 if len(y) > MANY else None]
    splits = [(train, test) for train, test in splits if len(np.unique(y[train])) > 1]
    if not splits:
        return grid[len(grid) // 2]
    found = ((predict(x, y, train, test, grid, seed), y[test]) for train, test in splits)
    right = sum((predictions == true).sum(axis=1) for predictions, true in found)  # (len(grid),)
    return grid[int(np.argmax(right))]


def linear_probe(features, labels, folds=None, *, grid=None, seed=0, test_folds=None, kind="linear"):
    """Accuracy of a logistic regression, or a probe of another kind, on frozen features.

    Each fold is the test set once. The one knob is searched inside the other folds only: by leaving one of them out at
    a time, or by seeded stratified splits where there are fewer than three (one of four where there are many rows).

    Args:
        features: (n, d); for "gradient" also (n, L, d), layers that it learns to weight.
        labels: (n,) classes of any type.
        folds: (n,) fold of each example; `None` draws five stratified folds from `seed`.
        grid: ascending values of the knob; by default those of `KINDS`.
        seed (`int`): of the splits that are not given.
        test_folds: folds to test on, each with all others for training; `None` is every fold.
        kind (`str`): "linear", L2 penalty chosen; "knn", cosine distance, k chosen; "gradient", a linear classifier by
            AdamW (`gradient_scores`), learning rate chosen.

    Returns:
        `ProbeResult`.

    Raises:
        ValueError: if features are not a finite matrix with one row a label, labels not one class an example, or test
            folds none of the folds.
    """
    x, y = np.asarray(features), np.asarray(labels)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; it takes one of {', '.join(KINDS)}.")
    predict, usual = KINDS[kind]
    grid = usual if grid is None else grid
    if not (x.ndim == 2 or x.ndim == 3 and kind == "gradient") or len(x) != len(y):
        raise ValueError(f"features: got shape {x.shape} for {len(y)} labels; it takes (number of labels, d)")
    if y.ndim != 1:
        raise ValueError(f"labels: got shape {y.shape}; a probe takes one class an example")
    if not np.isfinite(x).all():
        raise ValueError("features: got NaN or inf; they must be finite")
    folds = outer_folds(y, folds, seed)
    correct, predicted, per_fold, chosen = np.zeros(len(y), dtype=bool), y.copy(), {}, {}
    tested = np.unique(folds) if test_folds is None else np.asarray(test_folds)
    if len(tested) == 0 or not np.isin(tested, folds).all():
        raise ValueError(f"test_folds: got {tested.tolist()}; the folds are {np.unique(folds).tolist()}")
    check_training(y, folds, tested.tolist())

    def probe_fold(fold):
        test = folds == fold
        c = _choose(predict, x[~test], y[~test], folds[~test], grid, seed)
        return predict(x, y, ~test, test, [c], seed)[0], c

    # The fits are small: a core for each of several folds is faster than all cores for one fold after the other.
    workers = min(len(tested), torch.get_num_threads())
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        for fold, (found, c) in zip(tested, pool.map(probe_fold, tested), strict=True):
            predicted[folds == fold] = found
            right = found == y[folds == fold]
            correct[folds == fold] = right
            per_fold[fold.item()], chosen[fold.item()] = float(right.mean()), c
    return ProbeResult(float(correct[np.isin(folds, tested)].mean()), per_fold, chosen, correct, predicted)


def mcnemar(correct_a, correct_b):
    """Exact McNemar test of two classifiers on the same examples.

    Args:
        correct_a, correct_b: (n,) bool, as in `ProbeResult.correct`.

    Returns:
        two-sided p-value: how likely so uneven a split of the examples that only one of them gets right is by chance.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)
