"""How unevenly the codes of each method are used: figure 2 of T. Morita (2026)."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure


def plot_popularity(results: list[dict], path: Path) -> None:
    """Share of the places that each code has, the most popular first: a line a method (figure 2 of the paper)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, result in enumerate(results):
        shares = np.array(result["popularity"])
        shares = shares[shares > 0]
        line = dict(color=colormaps["tab20"](number % 20), marker="o" if len(shares) == 1 else None)
        axes.loglog(np.arange(1, 1 + len(shares)), shares, label=result["method"], **line)
    axes.set(xlabel="code, by popularity", ylabel="share of all places")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
