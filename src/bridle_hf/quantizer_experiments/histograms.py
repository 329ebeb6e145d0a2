"""Use of the codes image by image, and popularity of each code: figure 2 of T. Morita (2026)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

BINS = np.linspace(0, 100, 41)  # per cent


def plot_code_histograms(results: list[dict], path: Path) -> None:
    """Draw two histograms per method.

    On the left, per cent of the codes that an image uses at least once, over images; on the right, per cent of the
    images that contain a code, over codes.

    Args:
        results: as `autoencoding.evaluate` returns them, with "method".
        path: of the picture, svg or png.
    """
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), 2, sharex=True, squeeze=False)
    for (left, right), result in zip(grid, results, strict=True):
        popularity = np.array(result["images_with_code"]) / result["images"]
        numbers = np.array([int(number) for number in result["images_by_codes"]])
        draw_shares(left, 100 * numbers / len(popularity), list(result["images_by_codes"].values()))
        draw_shares(right, 100 * popularity)
        left.set_ylabel(result["method"], rotation=0, ha="right", va="center", fontsize=8)
    grid[0, 0].set_title("codes used in an image", fontsize=9)
    grid[0, 1].set_title("images that contain a code", fontsize=9)
    grid[-1, 0].set_xlabel("% of the codebook")
    grid[-1, 1].set_xlabel("% of the images")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_shares(axes, values: np.ndarray, weights: list | None = None) -> None:
    """A histogram of per cents whose highest bar fills the panel."""
    heights, _ = np.histogram(values, BINS, weights=weights)
    axes.stairs(heights / max(heights.max(), 1), BINS, fill=True, color="#4c72b0")
    axes.set(ylim=(0, 1.05), yticks=[], xlim=(0, 100))
    axes.spines[["top", "right", "left"]].set_visible(False)
