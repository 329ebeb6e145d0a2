"""Features on one scale, and no more of them than the training rows span: a fit costs less and finds the same."""

import numpy as np

PORTION = 8192  # rows that are looked at together


def rotate(train, test):
    """Standardise by the training rows, and keep their span only: fewer features where some repeat others.

    The logistic loss with an L2 penalty does not change under rotation, and the weights lie in the span of the
    training rows, so this changes the cost of a fit and not its result. The directions are eigenvectors of the smaller
    of two matrices of products, of features or of rows, in float64: beside the rows and the result, memory holds the
    square of that number. Directions with less than 1e-12 of the largest variance are left out as rounding; where none
    is, the standardised features are taken as they are, which spares a product with all rows.

    Args:
        train: (n, d).
        test: (m, d).

    Returns:
        float64 (n, rank) and (m, rank).
    """
    rows, width = train.shape
    mean = train.mean(axis=0, dtype=np.float64)
    products = np.zeros((width, width)) if width <= rows else None
    squares = np.zeros(width)
    for part in _portions(train):
        centred = part - mean
        if products is None:
            squares += np.square(centred).sum(axis=0)
        else:
            products += centred.T @ centred
    variance = (squares if products is None else np.diag(products)) / rows
    rounding = np.finfo(np.float64).eps * rows
    constant = variance <= rounding * variance + np.square(rounding * mean)  # as in scikit-learn's StandardScaler
    scale = np.where(constant, 1.0, np.sqrt(variance))
    if products is not None:
        basis, _ = _directions(products / np.outer(scale, scale))
    else:
        standard = (train - mean) / scale
        basis, values = _directions(standard @ standard.T)
        basis = standard.T @ (basis / np.sqrt(values))  # (d, rank)
    whole = basis.shape[1] == width

    def turned(x):
        found, start = np.empty((len(x), basis.shape[1])), 0
        for part in _portions(x):
            standard = (part - mean) / scale
            found[start : start + len(part)] = standard if whole else standard @ basis
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
