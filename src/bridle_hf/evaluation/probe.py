"""Probes of frozen features: outer folds as given, nested search of the one knob of each kind."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from .classes import predicted
from .clip_patches import ClipPatches
from .cross_validation import check_training, learnable, outer_folds, strata
from .gradient_probe import RATES, gradient_scores
from .measures import knn_predict, mean_average_precision
from .rotation import rotate

MANY = 4000  # training rows of which a quarter, held out once, chooses C well enough
C_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass
class ProbeResult:
    """Outcome of a probe.

    Attributes:
        accuracy (`float`): share of the tested examples predicted right, each while its fold was held out; of those
            with several labels, all of them right.
        per_fold (`dict`): fold -> accuracy on that fold; with several labels the mean average precision, NaN where no
            example of the fold has a label.
        chosen_c (`dict`): fold -> the C, or other knob, that its training folds chose.
        correct (`np.ndarray`): (n,) bool, for paired tests; false where an example was not tested.
        predicted (`np.ndarray`): (n,) the class that was said of each, or multi-hot (n, classes); its own where it was
            not tested.
        scores (`np.ndarray`): with several labels (n, classes) float32, above 0 where a class was said; NaN where an
            example was not tested. Otherwise None.
        layer_weights (`dict`): fold -> the weights of the layers, where they were learned.
    """

    accuracy: float
    per_fold: dict
    chosen_c: dict
    correct: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray | None = None
    layer_weights: dict = field(default_factory=dict)


def _linear(x, y, train, test, grid, seed):
    """What is said of the test rows for each C of the ascending grid, and None for weights of layers.

    That is (len(grid), test rows) classes, or with several labels per row (len(grid), test rows, classes) of scores, by
    one regression for each class.
    """
    x_train, x_test = rotate(x[train], x[test])

    def over_grid(targets, say):
        model = LogisticRegression(solver="newton-cg", tol=1e-3, max_iter=1000, warm_start=True)
        return np.stack([say(model.set_params(C=c).fit(x_train, targets)) for c in grid])

    if y.ndim == 1:
        return over_grid(y[train], lambda model: model.predict(x_test)), None
    scores = np.empty((len(grid), len(x_test), y.shape[1]), dtype=np.float32)
    for label, targets in enumerate(y[train].T):
        if targets.min() == targets.max():
            scores[..., label] = 1.0 if targets[0] else -1.0  # of a class that all rows have, or none
        else:
            scores[..., label] = over_grid(targets, lambda model: model.decision_function(x_test))
    return scores, None


def _knn(x, y, train, test, grid, seed):
    """As `_linear`, for each k of the grid; k is never more than the training rows."""
    return knn_predict(x[train], y[train], x[test], np.minimum(grid, np.count_nonzero(train))), None


def _gradient(x, y, train, test, grid, seed):
    """As `_linear`, for each learning rate of the grid; and the weights of the layers, (len(grid), L)."""
    classes, targets = (None, y[train]) if y.ndim > 1 else np.unique(y[train], return_inverse=True)
    scores, weights = gradient_scores(x[train], targets, x[test], grid, seed=seed)
    return scores if classes is None else classes[scores.argmax(axis=2)], weights


KINDS = {
    "linear": (_linear, C_GRID),
    "knn": (_knn, (1, 3, 5, 10, 20, 50)),
    "gradient": (_gradient, RATES),
    "attentive": (_gradient, RATES),
}
LAYERED = ("gradient", "attentive")  # kinds that learn to weight layers


def _choose(predict, x, y, folds, grid, seed):
    """The value of the grid with the best accuracy, or mean average precision, over inner splits of the training rows;
    ties go to the first one.

    Splits that nothing can be learned from are left out; where that leaves none, the one in the middle is taken.
    """
    if len(grid) == 1:
        return grid[0]
    if len(np.unique(folds)) > 2:
        # Folds often keep the clips of one recording together, and an inner split has to respect that, too.
        splits = [(folds != fold, folds == fold) for fold in np.unique(folds)]
    else:
        # no more than the largest class has clips, as scikit-learn demands
        groups = strata(y)
        number = min(4, np.unique(groups, return_counts=True)[1].max())
        splits = []
        if number > 1:
            parts = StratifiedKFold(number, shuffle=True, random_state=seed).split(np.zeros(len(y)), groups)
            splits = [tuple(np.isin(np.arange(len(y)), rows) for rows in part) for part in parts]
        splits = splits[: 1 if len(y) > MANY else None]
    splits = [(train, test) for train, test in splits if learnable(y[train]) and (y.ndim == 1 or y[test].any())]
    if not splits:
        return grid[len(grid) // 2]
    good = sum(_goodness(predict(x, y, train, test, grid, seed)[0], y[test]) for train, test in splits)  # (len(grid),)
    return grid[int(np.argmax(good))]


def _goodness(said, y):
    """For each value of a grid, how many are right; or the mean average precision of the scores of several labels."""
    if y.ndim == 1:
        return (said == y).sum(axis=1)
    return np.array([mean_average_precision(scores, y) for scores in said])


def linear_probe(features, labels, folds=None, *, grid=None, seed=0, test_folds=None, kind="linear"):
    """Accuracy of a logistic regression, or a probe of another kind, on frozen features; or with several labels an
    example, its mean average precision.

    Each fold is the test set once. The one knob is searched inside the other folds only: by leaving one of them out at
    a time, or by seeded stratified splits where there are fewer than three (one of four where there are many rows).

    Args:
        features: (n, d); for "gradient" also (n, L, d), layers that it learns to weight; for "attentive" `ClipPatches`.
        labels: (n,) classes of any type, or multi-hot (n, classes) for several labels an example.
        folds: (n,) fold of each example; `None` draws five stratified folds from `seed`.
        grid: ascending values of the knob; by default those of `KINDS`.
        seed (`int`): of the splits that are not given.
        test_folds: folds to test on, each with all others for training; `None` is every fold.
        kind (`str`): "linear", L2 penalty chosen, for several labels one regression per class; "knn", cosine distance,
            k chosen, several labels by their mean over neighbours; "gradient", a linear classifier by AdamW
            (`gradient_scores`), learning rate chosen; "attentive", one learned query over the patches and a linear
            classifier, likewise.

    Returns:
        `ProbeResult`.

    Raises:
        ValueError: if features are not a finite matrix with one row per label, labels neither classes nor multi-hot,
            folds not one per label, or test folds none of the folds.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; it takes one of {', '.join(KINDS)}.")
    x, y = features if isinstance(features, ClipPatches) else np.asarray(features), np.asarray(labels)
    predict, usual = KINDS[kind]
    grid = usual if grid is None else grid
    _check(x, y, kind)
    folds = outer_folds(y, folds, seed)
    several, learned = y.ndim > 1, kind in LAYERED
    correct, said, per_fold, chosen = np.zeros(len(y), dtype=bool), y.copy(), {}, {}
    result = ProbeResult(0.0, per_fold, chosen, correct, said)
    if several:
        result.scores = np.full(y.shape, np.nan, dtype=np.float32)
    tested = np.unique(folds) if test_folds is None else np.asarray(test_folds)
    if len(tested) == 0 or not np.isin(tested, folds).all():
        raise ValueError(f"test_folds: got {tested.tolist()}; the folds are {np.unique(folds).tolist()}")
    check_training(y, folds, tested.tolist())

    def probe_fold(fold):
        test = folds == fold
        c = _choose(predict, x[~test], y[~test], folds[~test], grid, seed)
        found, weights = predict(x, y, ~test, test, [c], seed)
        return found[0], c, weights

    # The fits are small: a core for each of several folds is faster than all cores for one fold after the other.
    workers = min(len(tested), torch.get_num_threads())
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        for fold, (found, c, weights) in zip(tested, pool.map(probe_fold, tested), strict=True):
            rows = folds == fold
            if several:
                result.scores[rows] = found
            said[rows] = predicted(found, several=True) if several else found
            right = (said[rows] == y[rows]).all(axis=1) if several else said[rows] == y[rows]
            correct[rows] = right
            score = mean_average_precision(found, y[rows]) if several else right.mean()
            per_fold[fold.item()], chosen[fold.item()] = float(score), c
            if learned:
                result.layer_weights[fold.item()] = weights[0].tolist()
    result.accuracy = float(correct[np.isin(folds, tested)].mean())
    return result


def _check(x, y, kind):
    """Raise a `ValueError` for features or labels that a probe of this kind does not take."""
    patches = isinstance(x, ClipPatches)
    if patches != (kind == "attentive"):
        given = "ClipPatches" if patches else f"an array of shape {x.shape}"
        takes = "ClipPatches, see encoder_patches" if kind == "attentive" else "(number of labels, d)"
        raise ValueError(f"features: got {given}; kind {kind!r} takes {takes}")
    if not patches and not (x.ndim == 2 or x.ndim == 3 and kind == "gradient") or len(x) != len(y):
        shape = f"{len(x)} clips" if patches else f"shape {x.shape}"
        raise ValueError(f"features: got {shape} for {len(y)} labels; it takes (number of labels, d)")
    if y.ndim not in (1, 2) or y.ndim == 2 and not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"labels: got shape {y.shape}; a probe takes one class an example, (n,), or 0 and 1 for each, (n, classes)"
        )
    if not patches and not np.isfinite(x).all():
        raise ValueError("features: got NaN or inf; they must be finite")


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
