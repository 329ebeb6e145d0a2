"""BRIDLE in float64 numpy, written from the equations of arXiv 2502.02118: slow, plain, and nothing of the package."""

import numpy as np


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def residual_quantization(z, books, normalize="none"):
    """Eq. 1-3: e_1 = z; i_m = argmin_i |e_m - c_i|^2; e_{m+1} = e_m - c_{i_m}; q the sum of the codes.

    Args:
        z: (n, d). books: M arrays (K, d).
        normalize: "once" scales z to length 1 first; "per_stage" searches for the scaled e_m but subtracts from e_m.

    Returns:
        codes (n, M), q (n, d) and the residuals e_2 ... e_{M+1}, (M, n, d).
    """
    residual = np.asarray(z, np.float64)
    residual = unit(residual) if normalize == "once" else residual
    total, codes, residuals = np.zeros_like(residual), [], []
    for book in books:
        book = np.asarray(book, np.float64)
        key = unit(residual) if normalize == "per_stage" else residual
        index = np.array([np.argmin([np.sum((row - code) ** 2) for code in book]) for row in key])
        codes.append(index)
        total, residual = total + book[index], residual - book[index]
        residuals.append(residual)
    return np.stack(codes, axis=1), total, np.stack(residuals)


def codebook_losses(residuals, beta=0.25):
    """Eq. 5 for each stage, as a mean over dimensions: both terms have the value |e_{m+1}|^2 / d. (M,)"""
    return (1 + beta) * np.mean(np.square(residuals), axis=(1, 2))


def ema_step(size, sums, inputs, index, decay, epsilon):
    """Eq. 9-13 for one codebook.

    Args:
        size: N (K,). sums: m (K, d). inputs: (n, d) and index: (n,), the code of each.

    Returns:
        codes c (K, d), N (K,) and m (K, d) after the step.
    """
    size, sums = np.array(size, np.float64), np.array(sums, np.float64)
    inputs, index = np.asarray(inputs, np.float64), np.asarray(index)
    for i in range(len(size)):
        mine = inputs[index == i]  # eq. 9
        size[i] = decay * size[i] + (1 - decay) * len(mine)  # eq. 10
        sums[i] = decay * sums[i] + (1 - decay) * mine.sum(axis=0)  # eq. 12
    smoothed = (size + epsilon) * size.sum() / (size.sum() + len(size) * epsilon)  # eq. 11
    return sums / smoothed[:, None], size, sums  # eq. 13


def ema_limit(counts, sums, epsilon):
    """What eq. 10-13 tend to when every step brings the same counts n (K,) and sums l (K, d)."""
    total, size = np.sum(counts), len(counts)
    return np.asarray(sums) / (np.asarray(counts)[:, None] + epsilon) * (total + size * epsilon) / total


def code_usage(counts):
    """CUR, UE (in nats) and ECU of one codebook (eq. 29-31), from counts (K,)."""
    used = sum(1 for count in counts if count > 0)
    shares = [count / sum(counts) for count in counts if count > 0]
    entropy = -sum(share * np.log(share) for share in shares)
    return used / len(counts), entropy, used / len(counts) * entropy / np.log(len(counts))


def masked_cross_entropy(logits, codes, mask):
    """Eq. 4 as a mean over masked patches and codebooks: logits (B, N, M, K), codes (B, N, M), mask (B, N)."""
    terms = []
    for row, patch in np.argwhere(mask):
        for stage, code in enumerate(codes[row, patch]):
            x = np.asarray(logits[row, patch, stage], np.float64)
            terms.append(np.log(np.sum(np.exp(x - x.max()))) + x.max() - x[code])
    return np.mean(terms)


def cosine_loss_per_patch(a, b):
    """Mean over patches of 1 - cos: a, b (n, d)."""
    return np.mean([1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)])


def cosine_loss_of_sums(a, b):
    """Eq. 6 as printed: one minus a ratio of sums over patches."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - np.sum(a * b) / np.sum(norms)


def kept_patches(noise, grid, ratio, kind):
    """The set of patches one row of noise (N,) leaves visible, for masks of kind "random", "tube" and "2d"."""
    if kind == "random":
        return set(np.argsort(noise)[: max(1, int(len(noise) * (1 - ratio)))].tolist())
    if kind == "tube":
        frame = len(noise) // grid[0]
        places = kept_patches(noise[:frame], grid[1:], ratio, "random")
        return {t * frame + place for t in range(grid[0]) for place in places}
    field, share = noise.reshape(grid), (1 - ratio) ** (1 / len(grid))
    lines = []
    for axis, length in enumerate(grid):
        means = field.mean(axis=tuple(a for a in range(len(grid)) if a != axis))
        lines.append(np.argsort(means)[: max(1, int(length * share))])
    return set(np.ravel_multi_index([line.ravel() for line in np.meshgrid(*lines)], grid).tolist())
