"""What a code sounds like: the patches nearest to it, as sounds that a page can play."""

import base64
import io

import numpy as np
import soundfile
import torch

from .quality import projected

EXCERPT_SECONDS = 1.0


@torch.no_grad()
def code_distances(tokenizer, examples, codes, valid, batch_size=32):
    """Distance of every patch from its code of the first codebook, in the space where the quantizer searches.

    Args:
        codes, valid: (n, N, M) and (n, N), of `tokenize`.

    Returns:
        float array (n, N), infinite where a patch is padding; None for a quantizer without codebooks.
    """
    quantizer = tokenizer.eval().quantizer
    if not quantizer.codebooks:
        return None
    book = quantizer.codebooks[0].embed.float()
    distances = np.full(valid.shape, np.inf)
    first = torch.as_tensor(codes[valid][:, 0], device=book.device)  # (patches,), row after row
    found, start = [], 0
    for vectors, _ in projected(tokenizer, examples, batch_size):
        chosen = book[first[start : start + len(vectors)]]
        key = quantizer.search_key(quantizer.flatten(vectors))
        found.append((key - chosen).norm(dim=-1).cpu().numpy())
        start += len(vectors)
    distances[valid] = np.concatenate(found)
    return distances


def nearest_patches(codes, distances, number_of_codes=6, clips=3):
    """For some codes of the first codebook, the nearest patch of each of the nearest clips.

    Args:
        codes: (n, N, M).
        distances: (n, N), of `code_distances`.
        number_of_codes (`int`): evenly spread from the most to the least frequent of those in at least `clips` clips.
        clips (`int`): a code.

    Returns:
        dict code -> list of (row, patch), the nearest first.
    """
    first = np.where(np.isfinite(distances), codes[..., 0], -1)  # (n, N)
    counts = np.bincount(first[first >= 0])
    spread = [code for code in np.argsort(-counts, kind="stable") if (first == code).any(axis=1).sum() >= clips]
    picks = np.unique(np.linspace(0, len(spread) - 1, number_of_codes).round().astype(int)) if spread else []
    nearest = {}
    for code in (int(spread[pick]) for pick in picks):
        own = np.where(first == code, distances, np.inf)
        patches = own.argmin(axis=1)  # (n,)
        rows = np.argsort(own.min(axis=1), kind="stable")[:clips]
        nearest[code] = [(int(row), int(patches[row])) for row in rows]
    return nearest


def excerpt(samples, rate, patch, grid, seconds_per_patch):
    """The second around a patch (number in the grid), as far as the clip reaches: samples of it."""
    middle, size = (patch // grid[1] + 0.5) * seconds_per_patch, round(EXCERPT_SECONDS * rate)
    start = max(0, min(round(middle * rate) - size // 2, len(samples) - size))
    return samples[start : start + size]


def wav_in_base64(samples, rate):
    """A wav file in base64, scaled to its peak."""
    buffer = io.BytesIO()
    peak = np.abs(samples).max(initial=1e-6)
    soundfile.write(buffer, samples / peak * 0.9, rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()
