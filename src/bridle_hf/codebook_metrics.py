"""Measures of discrete codes: pure functions of codes (n, M) or counts (M, K), in numpy float64.

Everything is meant for held-out data and a frozen codebook. Entropies and mutual information are in bits.
"""

import numpy as np

from .codebook_bridle import sizes_of


def _as_codes(codes, name="codes"):
    """Codes of any leading shape as an int64 array (n, M)."""
    codes = codes.detach().cpu().numpy() if hasattr(codes, "detach") else np.asarray(codes)
    if codes.ndim < 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{name}: got {codes.dtype} of shape {codes.shape}; it takes integers of shape (..., M)")
    return codes.reshape(-1, codes.shape[-1]).astype(np.int64)


def code_counts(codes, codebook_size):
    """How often each code was chosen.

    Args:
        codes: integers (..., M) in [0, codebook_size).
        codebook_size (`int` or `list[int]`): K, or one number per codebook.

    Returns:
        int64 array (M, K), K that of the largest codebook.

    Raises:
        ValueError: if codes are not integers, are empty, or lie outside the codebook.
    """
    codes = _as_codes(codes)
    if not len(codes):
        raise ValueError("codes: got none; at least one row is needed")
    sizes = sizes_of(codebook_size, codes.shape[1])
    if codes.min() < 0 or (codes >= sizes).any():
        raise ValueError(f"codes: got values {codes.min()}..{codes.max()}; they must lie in [0, {codebook_size})")
    return np.stack([np.bincount(stage, minlength=max(sizes)) for stage in codes.T])  # (M, K)


def entropy(counts, corrected=False):
    """Entropy in bits of the distributions behind counts (..., K).

    Args:
        counts: non-negative counts (..., K).
        corrected (`bool`): add the Miller-Madow term (used - 1) / (2 n), which removes the first-order bias of
            the plug-in estimate.
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(-1, keepdims=True)
    p = counts / total
    bits = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)
    if corrected:
        bits = bits + ((counts > 0).sum(-1) - 1) / (2 * total[..., 0] * np.log(2))
    return bits


def norm_histogram(norms, bins=32):
    """How many codes of a codebook have which length, before and after training, say.

    Args:
        norms: name -> lengths (K,) of all codes.
        bins (`int`): number of bins, of one width and the same for all names.

    Returns:
        edges (bins + 1,), from 0 to the greatest length, and name -> int64 counts (bins,).
    """
    greatest = max(np.max(lengths) for lengths in norms.values())
    edges = np.linspace(0, greatest if greatest > 0 else 1, bins + 1)
    return edges, {name: np.histogram(lengths, edges)[0] for name, lengths in norms.items()}


def usage(counts, codebook_size=None):
    """Usage of each codebook (arXiv 2502.02118, eq. 29 to 31 for CUR, UE and ECU).

    Args:
        counts: (M, K).
        codebook_size (`int` or `list[int]`): K where that of a codebook is less than the number of columns.

    Returns:
        dict of arrays (M,): `cur` = used / K; `entropy` UE in bits; `perplexity` = 2^UE; `ecu` = CUR UE / log2 K,
        1 for uniform use, also of a single code; `ecu_table6`, see `ecu_table6`; `dead`, the number of codes never
        chosen.
    """
    counts = np.asarray(counts)
    size = np.asarray(counts.shape[-1] if codebook_size is None else codebook_size)
    used = (counts > 0).sum(-1)
    bits = entropy(counts)
    return {
        "cur": used / size,
        "entropy": bits,
        "perplexity": 2.0**bits,
        "ecu": np.where(size > 1, used / size * bits / np.log2(np.maximum(size, 2)), used / size),
        "ecu_table6": ecu_table6(counts, size),
        "dead": size - used,
    }


def few_codes(perplexity, codebook_size, vectors):
    """A sentence about each codebook that uses few of its codes: a perplexity below an eighth of what it could be.

    Args:
        perplexity: one number per codebook.
        codebook_size (`int` or `list[int]`): K, or one number per codebook.
        vectors (`int`): how many were given codes; no more than as many codes can be in use.
    """
    sizes = sizes_of(codebook_size, len(perplexity))
    return [
        f"codebook {number} of {len(sizes)} uses its {size} codes as if they were {found:.1f} (perplexity)"
        for number, (found, size) in enumerate(zip(perplexity, sizes, strict=True), start=1)
        if found < min(size, vectors) / 8
    ]


def ecu_table6(counts, codebook_size=None):
    """The figure printed in the paper's table 6: CUR / (UE in bits * ln K). For comparison only.

    It divides by the entropy where eq. 31 multiplies, and mixes two log bases: lower is more even, and the floor
    depends on K (0.02254 for 256 codes, 0.01443 for 1024). Infinite when a single code is used.
    """
    counts = np.asarray(counts)
    size = counts.shape[-1] if codebook_size is None else codebook_size
    with np.errstate(divide="ignore"):
        return (counts > 0).sum(-1) / size / (entropy(counts) * np.log(size))


def mutual_information(a, b, corrected=True):
    """Mutual information in bits of two integer sequences of one length.

    Args:
        a, b: integers (n,), e.g. the codes of two stages, or codes and positions.
        corrected (`bool`): Miller-Madow correction of the three entropies. The plug-in estimate of independent
            sequences is about (A - 1)(B - 1) / (2 n ln 2) bits, far from 0 unless n is much larger than A B.
            The corrected value can be slightly negative.
    """
    a, b = np.unique(np.ravel(a), return_inverse=True)[1], np.unique(np.ravel(b), return_inverse=True)[1]
    if a.shape != b.shape:
        raise ValueError(f"a, b: got {a.size} and {b.size} values; both must have the same number")
    joint = np.unique(a * (b.max() + 1) + b, return_counts=True)[1]
    return float(
        entropy(np.bincount(a), corrected) + entropy(np.bincount(b), corrected) - entropy(joint, corrected),
    )


def residual_energy(z, stages):
    """Share of the energy of z that is left after each stage of a residual quantizer.

    Args:
        z: vectors (n, d), as the quantizer subtracts from them.
        stages: the codewords chosen at each stage (n, M, d).

    Returns:
        array (M,): sum |z - c_1 - ... - c_m|^2 / sum |z|^2.
    """
    z, stages = (np.asarray(x, dtype=np.float64) for x in (z, stages))
    left = z[:, None] - stages.cumsum(axis=1)  # (n, M, d)
    return np.square(left).sum(axis=(0, 2)) / np.square(z).sum()


def churn(before, after):
    """Share of patches whose code differs between two checkpoints, per stage: (M,)."""
    before, after = _as_codes(before, "before"), _as_codes(after, "after")
    if before.shape != after.shape:
        raise ValueError(f"before, after: got shapes {before.shape} and {after.shape}; they must agree")
    return (before != after).mean(axis=0)


def code_histograms(codes, valid, codebook_size):
    """Bag of codes: for each clip the share of each code of each stage.

    Args:
        codes: (B, N, M).
        valid: (B, N), true where a patch is no padding.
        codebook_size (`int` or `list[int]`): K, or one number per codebook.

    Returns:
        float array (B, M * K), K that of the largest codebook; each stage's K values sum to 1.
    """
    rows = [code_counts(clip[keep], codebook_size) / keep.sum() for clip, keep in zip(codes, valid, strict=True)]
    return np.stack(rows).reshape(len(rows), -1)


def bag_of_codes_accuracy(codes, valid, codebook_size, labels, folds):
    """Accuracy of a linear SVM on per-clip code histograms, one value a fold: what the codes say about the clip.

    Histograms are square-rooted (Hellinger kernel), so that a few frequent codes do not drown the rest.

    Args:
        codes, valid, codebook_size: as for `code_histograms`.
        labels: (B,) classes.
        folds: (B,) fold of each clip; each is the test set once.

    Returns:
        dict fold -> accuracy.

    Raises:
        ValueError: the clips outside a fold are of less than two classes.
    """
    from sklearn.svm import LinearSVC

    labels, folds = np.asarray(labels), np.asarray(folds)
    for fold in np.unique(folds):
        if len(classes := np.unique(labels[folds != fold])) < 2:
            raise ValueError(
                f"`labels` of the clips outside fold {fold} are {classes.tolist()}; they take at least two classes."
            )
    x = np.sqrt(code_histograms(codes, valid, codebook_size))  # (B, M K)
    accuracy = {}
    for fold in np.unique(folds):
        test = folds == fold
        svm = LinearSVC(C=1.0, random_state=0).fit(x[~test], labels[~test])
        accuracy[fold.item()] = float(svm.score(x[test], labels[test]))
    return accuracy
