"""Quick measures of frozen features: nearest neighbours, and two that need no labels."""

import numpy as np

NEIGHBOURS = 20  # Wu et al. 2018 (arXiv 1805.01978) and DINO's evaluation take 20 or 200
ROWS_AT_ONCE = 1024


def choose_neighbours(labels, most=NEIGHBOURS):
    """k for `knn_predictions`: no more than the mean number of clips of a class, from 1 to `most`."""
    return max(1, min(most, len(labels) // len(np.unique(labels))))


def knn_predictions(train, labels, test, k):
    """Classes by a vote of the k nearest training rows in cosine similarity.

    Between classes with equally many votes the similarities of the voters, added up, decide.

    Args:
        train: (n, d).
        labels: (n,) classes of any type.
        test: (m, d).
        k (`int`): voters, at most n.

    Returns:
        (m,) classes.
    """
    train, test = normalized(train), normalized(test)
    classes, index = np.unique(labels, return_inverse=True)
    k = min(k, len(train))
    found = []
    for start in range(0, len(test), ROWS_AT_ONCE):
        similarities = test[start : start + ROWS_AT_ONCE] @ train.T
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        # two sums of k similarities differ by 2 k at most, which is less than a vote here
        votes = 1 + np.take_along_axis(similarities, nearest, axis=1) / (2 * k + 1)
        scores = np.zeros((len(similarities), len(classes)))
        np.add.at(scores, (np.arange(len(scores))[:, None], index[nearest]), votes)
        found.append(classes[scores.argmax(axis=1)])
    return np.concatenate(found)


def knn_accuracy(features, labels, folds, *, k=None, test_folds=None):
    """Share of the tested rows that `knn_predictions` gets right, each from the rows outside of its fold.

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
        voters = k or choose_neighbours(labels[~test])
        right.append(knn_predictions(features[~test], labels[~test], features[test], voters) == labels[test])
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
