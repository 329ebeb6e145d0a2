"""Nearest neighbours of frozen features."""

import numpy as np

DISTANCES = ("cosine", "euclidean")
ROWS_AT_ONCE = 1024


def knn_predict(train, labels, test, k, distance="cosine"):
    """Classes by a vote of the k nearest training rows, each with one voice.

    Args:
        train: (n, d).
        labels: (n,) classes of any type.
        test: (m, d).
        k: voters, at most n; or several numbers of them.
        distance (`str`): "cosine" or "euclidean".

    Returns:
        (m,) classes, or (len(k), m); of classes with equally many votes the first in order, as in scikit-learn.

    Raises:
        ValueError: another distance, or a k that is not between 1 and n.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance: got {distance!r}; it takes one of {', '.join(DISTANCES)}.")
    voters = np.atleast_1d(k)
    if voters.min() < 1 or voters.max() > len(train):
        raise ValueError(f"k: got {voters.tolist()}; it takes numbers from 1 to {len(train)}, the training rows.")
    train, test = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if distance == "cosine":
        train, test = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (train, test))
    classes, index = np.unique(labels, return_inverse=True)
    found = np.empty((len(voters), len(test)), dtype=classes.dtype)
    for start in range(0, len(test), ROWS_AT_ONCE):
        rows = test[start : start + ROWS_AT_ONCE]
        # |a - b|^2 without |a|^2, which is the same for all neighbours of a row; of length 1 it is the cosine, too
        far = np.square(train).sum(axis=1) - 2 * rows @ train.T
        nearest = index[np.argsort(far, axis=1, kind="stable")[:, : voters.max()]]  # (rows, k)
        for number, most in enumerate(voters):
            votes = (nearest[:, :most, None] == np.arange(len(classes))).sum(axis=1)
            found[number, start : start + len(rows)] = classes[votes.argmax(axis=1)]
    return found if np.ndim(k) else found[0]
