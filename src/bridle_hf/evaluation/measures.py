"""Quick measures of frozen features: nearest neighbours, and two that need no labels."""

import numpy as np

NEIGHBOURS = 20  # Wu et al. 2018 (arXiv 1805.01978) and DINO's evaluation take 20 or 200
DISTANCES = ("cosine", "euclidean")
ROWS_AT_ONCE = 1024


def choose_neighbours(labels, most=NEIGHBOURS):
    """k for `knn_predict`: no more than the mean number of clips of a class, from 1 to `most`."""
    return max(1, min(most, len(labels) // len(np.unique(labels))))


def knn_predict(train, labels, test, k, distance="cosine"):
    """Classes by a vote of the k nearest training rows, each with one voice.

    Args:
        train: (n, d).
        labels: (n,) classes of any type; or multi-hot (n, classes), of which each is voted on alone.
        test: (m, d).
        k: voters, at most n; or several numbers of them.
        distance (`str`): "cosine" or "euclidean".

    Returns:
        (m,) classes, or (len(k), m); of classes with equally many votes the first in order, as in scikit-learn. Of
        several labels (m, classes), or (len(k), m, classes): the share of the votes for each, less one half.

    Raises:
        ValueError: another distance, or a k that is not between 1 and n.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance: got {distance!r}; it takes one of {', '.join(DISTANCES)}.")
    voters, labels = np.atleast_1d(k), np.asarray(labels)
    if voters.min() < 1 or voters.max() > len(train):
        raise ValueError(f"k: got {voters.tolist()}; it takes numbers from 1 to {len(train)}, the training rows.")
    train, test = (normalized(x) if distance == "cosine" else np.asarray(x, dtype=np.float64) for x in (train, test))
    if labels.ndim > 1:
        found = np.empty((len(voters), len(test), labels.shape[1]), dtype=np.float32)
    else:
        classes, index = np.unique(labels, return_inverse=True)
        found = np.empty((len(voters), len(test)), dtype=classes.dtype)
    for start in range(0, len(test), ROWS_AT_ONCE):
        rows = test[start : start + ROWS_AT_ONCE]
        # |a - b|^2 without |a|^2, which is the same for all neighbours of a row; of length 1 it is the cosine, too
        far = np.square(train).sum(axis=1) - 2 * rows @ train.T
        nearest = np.argsort(far, axis=1, kind="stable")[:, : voters.max()]  # (rows, k)
        for number, most in enumerate(voters):
            if labels.ndim > 1:
                said = labels[nearest[:, :most]].mean(axis=1) - 0.5
            else:
                votes = (index[nearest[:, :most], None] == np.arange(len(classes))).sum(axis=1)
                said = classes[votes.argmax(axis=1)]
            found[number, start : start + len(rows)] = said
    return found if np.ndim(k) else found[0]


def knn_accuracy(features, labels, folds, *, k=None, test_folds=None):
    """Share of the tested rows that `knn_predict` gets right, each from the rows outside of its fold.

    Args:
        features: (n, d).
        labels: (n,) classes of any type.
        folds: (n,) fold of each row.
        k (`int`): voters; by default what `choose_neighbours` makes of the training rows of a fold.
        test_folds: folds to test on; `None` is every fold.
    """
    features, labels, folds = np.asarray(features), np.asarray(labels), np.asarray(folds)
    right = []
    for fold in np.unique(folds) if test_folds is None else test_folds:
        test = folds == fold
        voters = min(k or choose_neighbours(labels[~test]), np.count_nonzero(~test))
        right.append(knn_predict(features[~test], labels[~test], features[test], voters) == labels[test])
    return float(np.concatenate(right).mean())


def rank_me(features, epsilon=1e-7):
    """RankMe (arXiv 2210.02885, eq. 1): exp of the entropy of the singular values of the features, as shares.

    It lies between 1, where all rows are multiples of one, and min(n, d), so it compares sets of one size alone.

    Args:
        features: (n, d).
        epsilon (`float`): added to each share, as in the paper.
    """
    values = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    shares = values / max(values.sum(), np.finfo(float).tiny) + epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(features):
    """Mean standard deviation over the rows of the features at length 1, times sqrt(d).

    0 where all rows point the same way (collapse), 1 where they point everywhere alike (SimSiam, arXiv 2011.10566,
    section 4.1).

    Args:
        features: (n, d).
    """
    rows = normalized(features)
    return float(rows.std(axis=0).mean() * rows.shape[1] ** 0.5)


def normalized(features):
    """(n, d) float64, the rows at length 1; rows of zeros stay."""
    features = np.asarray(features, dtype=np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=np.finfo(float).tiny)


def average_precisions(scores, labels, weights=None):
    """Average precision of each class, as scikit-learn's; for clips drawn anew many at a time.

    Args:
        scores: (n, classes), any monotone scale.
        labels: (n, classes), multi-hot.
        weights: (draws, n), how often each clip was drawn; each once by default.

    Returns:
        (classes,), or (draws, classes); NaN for a class that no clip has.
    """
    drawn = np.ones((1, len(scores))) if weights is None else np.asarray(weights, dtype=np.float64)
    found = np.full((len(drawn), scores.shape[1]), np.nan)
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        falling = -scores[order, label]
        places = np.flatnonzero(labels[order, label])  # of the clips that have it, by score
        if len(places) == 0:
            continue
        # clips of equal scores come together: what counts is the end of them
        ends = np.searchsorted(falling, falling[places], side="right") - 1
        ranked = drawn[:, order]
        true = ranked[:, places]
        hits = true.cumsum(axis=1)
        above = ranked.cumsum(axis=1)[:, ends]
        hits_above = hits[:, np.searchsorted(places, ends, side="right") - 1]
        precision = np.divide(hits_above, above, out=np.zeros_like(above), where=above > 0)
        np.divide((true * precision).sum(axis=1), hits[:, -1], out=found[:, label], where=hits[:, -1] > 0)
    return found if weights is not None else found[0]


def mean_average_precision(scores, labels, weights=None):
    """The mean of `average_precisions` over the classes that a clip has: a number or (draws,); NaN where none has any.

    It is the metric `mean_average_precision` of fine-tuning, which knows no weights.
    """
    return mean_of_known(average_precisions(scores, labels, weights))


def mean_of_known(values):
    """The mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    number, total = known.sum(axis=-1), np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)[()]
