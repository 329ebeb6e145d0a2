"""Figures of the report as inline SVG whose colours are CSS variables, so that they follow a light or dark page."""

import io
import re

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..codebook_metrics import norm_histogram
from ..markdown import one_line

# matplotlib draws in these placeholder colours; `to_svg` exchanges them for what the page's style says.
INK, GRID, FAINT = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
VARIABLES = {INK: "--ink", GRID: "--grid", FAINT: "--faint"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollar signs
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
}

# titles of the curves of `evaluation_curves`, and the measures in each
EVALUATED = {
    "accuracy": {"knn": "nearest neighbours", "linear": "linear probe"},
    "RankMe": {"rankme": "RankMe"},
    "spread of the features": {"std": "spread"},
}


def to_svg(figure, name, description):
    """A figure as an `<svg>` element for a page; `name` keeps its ids apart from those of other figures.

    `description` is plain text. Matplotlib escapes the text in the figure.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its style element would hold for the whole page, and its ids would meet those of the other figures.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    wanted = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in wanted else "", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    opening = Markup('<svg role="img" aria-label="{}"').format(description)
    return Markup(svg.replace("<svg", opening, 1))


def panel(width=2.7, height=2.1, **options):
    """Figure of one panel and its axes in the page's style; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(**options)
    for axis in np.atleast_1d(axes):
        axis.grid(axis="y")
        axis.set_axisbelow(True)
    return figure, axes


def legend_above(axis, **options):
    """Lets the axis begin at zero, with room above the lines for the legend."""
    axis.set_ylim(0, 1.3 * (axis.dataLim.y1 or 1))
    axis.legend(loc="upper right", **options)


@matplotlib.rc_context(STYLE)
def loss_curves(records):
    """Loss of each phase over its steps: a figure for each kind of phase.

    Args:
        records: of metrics.jsonl: `phase`, `phase_index`, `step`, `loss`.
    """
    phases = {}
    for record in _telling(records, "phase_index", "phase", "step", "loss"):
        phases.setdefault((record["phase_index"], record["phase"]), []).append((record["step"], record["loss"]))
    figures = []
    for kind in sorted({_kind(name) for _, name in phases}):
        figure, axis = panel(4.2, 2.6)
        lines = [(name, points) for (_, name), points in sorted(phases.items()) if _kind(name) == kind]
        for number, (name, points) in enumerate(lines):
            axis.plot(*zip(*points, strict=True), color=SERIES[number % len(SERIES)], label=name)
        axis.set(title=f"{kind} loss", xlabel="step")
        axis.legend()
        figures.append(figure)
    return figures


@matplotlib.rc_context(STYLE)
def codebook_curves(records):
    """ECU of each codebook and the energy left after it, over the steps of the whole run: a figure each.

    Args:
        records: of metrics.jsonl; those without `codebooks` are passed over.
    """
    records = _telling(records, "total_step", "codebooks")
    figures = []
    for key, title in {"ecu": "ECU in a batch", "residual": "share of the energy left"}.items():
        points = [(record["total_step"], record["codebooks"][key]) for record in records if key in record["codebooks"]]
        if not points:
            continue
        figure, axis = panel(4.2, 2.6)
        steps, values = zip(*points, strict=True)
        for stage, line in enumerate(zip(*values, strict=True)):
            axis.plot(steps, line, color=SERIES[stage % len(SERIES)], label=f"codebook {stage + 1}")
        axis.set(title=title, xlabel="step of the run")
        legend_above(axis, ncols=2)
        figures.append(figure)
    return figures


@matplotlib.rc_context(STYLE)
def evaluation_curves(records):
    """What was measured of the encoder while it trained, over the steps of the whole run: a figure each for accuracies,
    RankMe and the spread of the features.

    Args:
        records: of metrics.jsonl; those without `evaluate` are passed over.
    """
    records = _telling(records, "total_step", "evaluate")
    begun = sorted({record["total_step"] - record["step"] for record in records if record.get("step")})
    figures = []
    for title, names in EVALUATED.items():
        lines = {
            label: [(r["total_step"], r["evaluate"][key]) for r in records if key in r["evaluate"]]
            for key, label in names.items()
        }
        if not any(lines.values()):
            continue
        figure, axis = panel(4.2, 2.6)
        for number, (label, points) in enumerate(lines.items(), start=1):  # the first colour is a grey
            if points:
                axis.plot(*zip(*points, strict=True), color=SERIES[number], marker="o", markersize=3, label=label)
        for step in begun[1:]:
            axis.axvline(step, color=GRID, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set(title=title, xlabel="step of the run")
        if len(names) > 1:
            legend_above(axis, ncols=2)
        else:
            axis.set_ylim(bottom=0)
        figures.append(figure)
    return figures


def _telling(records, *keys):
    """The records that have these keys; somebody may have added lines to metrics.jsonl."""
    return [record for record in records if isinstance(record, dict) and record.keys() >= set(keys)]


def _kind(phase):
    """`encoder-iter2` -> `encoder`."""
    return phase.split("-")[0]


@matplotlib.rc_context(STYLE)
def code_histograms(counts, codebook_sizes):
    """Share of each code, most frequent first: a figure for each codebook.

    Args:
        counts: name of a tokenizer -> counts (M, K).
        codebook_sizes: K of each codebook.
    """
    shares = {name: -np.sort(-table, axis=1) / table.sum(axis=1, keepdims=True) for name, table in counts.items()}
    lowest = min(share[share > 0].min() for share in shares.values())
    figures = []
    for stage, size in enumerate(codebook_sizes):
        figure, axis = panel()
        axis.axhline(1 / size, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for number, (name, share) in enumerate(shares.items()):
            axis.stairs(share[stage, :size], np.arange(size + 1), color=SERIES[number], label=name, linewidth=1.4)
        axis.set(title=f"codebook {stage + 1}: share of patches", xlabel="code, by frequency")
        axis.set(yscale="log", ylim=(lowest / 1.5, 1))
        axis.yaxis.set_major_formatter("{x:g}")  # powers are written in TeX, which STYLE leaves as it is
        axis.legend(loc="upper right")
        figures.append(figure)
    return figures


@matplotlib.rc_context(STYLE)
def norm_histograms(norms):
    """Number of codes by their length, whether chosen or not: a figure for each codebook.

    Args:
        norms: name of a tokenizer -> lengths (K,) of the codes of each of its codebooks.
    """
    figures = []
    for stage in range(len(next(iter(norms.values())))):
        edges, counts = norm_histogram({name: lengths[stage] for name, lengths in norms.items()})
        figure, axis = panel()
        for number, (name, count) in enumerate(counts.items()):
            axis.stairs(count, edges, color=SERIES[number], label=name, linewidth=1.4)
        axis.set(title=f"codebook {stage + 1}: number of codes", xlabel="length of the code")
        legend_above(axis)
        figures.append(figure)
    return figures


@matplotlib.rc_context(STYLE)
def norms_by_depth(qualities):
    """Mean length of the chosen codes and of the residual left, and the energy left: a figure each, over the stages.

    Args:
        qualities: name of a tokenizer -> what `tokenizer_quality` gives.
    """
    titles = {
        "code_norm": "length of the chosen code",
        "residual_norm": "length of the residual left",
        "residual_energy": "share of the energy left",
    }
    figures = []
    for key, title in titles.items():
        figure, axis = panel()
        for number, (name, quality) in enumerate(qualities.items()):
            stages = range(1, len(quality[key]) + 1)
            axis.plot(stages, quality[key], color=SERIES[number], marker="o", markersize=4, label=name)
        axis.set(title=title, xlabel="codebook")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axis)
        figures.append(figure)
    return figures


@matplotlib.rc_context(STYLE)
def confusion_picture(counts, names):
    """A confusion matrix, each cell as its share of the clips of the true class; with the counts, where they fit.

    It is drawn for a white page, since it is a file of its own.

    Args:
        counts: (classes, classes), rows the true class.
        names: of the classes.
    """
    classes = len(names)
    side = 1.6 + max(2.0, 0.24 * classes)
    figure, axis = panel(side + 0.8, side)
    axis.grid(False)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    short = [name if len(name) <= 24 else f"{name[:23]}\u2026" for name in map(one_line, names)]
    size = 8 if classes <= 30 else 6
    axis.set_xticks(range(classes), short, rotation=90, fontsize=size)
    axis.set_yticks(range(classes), short, fontsize=size)
    axis.tick_params(length=0)
    axis.set(xlabel="predicted class", ylabel="true class")
    for row, column in zip(*np.nonzero(counts), strict=True):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7 if len(text) < 4 else 4)
    bar = figure.colorbar(image, ax=axis, shrink=0.6, aspect=30)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def codes_over_picture(picture, codes, valid, grid):
    """A clip with the first code of each patch written on it, and a map of the codes of each stage.

    Args:
        picture: (T, F): log-mel frames, or what `Modality.picture` makes of images and videos.
        codes: (N, M).
        valid: (N,), false where a patch is padding.
        grid: patches along both axes.

    In the maps a code has the colour of its rank by the mean level of its patches: brighter codes stand for louder or
    brighter patches, and patches of one colour share a code.
    """
    time, frequency = grid
    shown = int(valid.reshape(grid).any(axis=1).sum())
    patch = picture.shape[0] // time, picture.shape[1] // frequency
    picture = picture[: shown * patch[0]]
    level = picture.reshape(shown, patch[0], frequency, patch[1]).mean(axis=(1, 3))  # (shown, frequency)
    stages = codes.reshape(*grid, -1)[:shown]
    count = stages.shape[-1]
    figure, axes = panel(9, 2.5 + 1.1 * count, nrows=1 + count, height_ratios=[2.2] + [1] * count, sharex=True)
    extent = (0, shown, 0, frequency)
    for axis in axes:
        axis.grid(False)
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)
    top = axes[0]
    top.imshow(picture.T, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    top.set_title("the clip; on each patch, its first code")
    middle = np.median(level)
    for column in range(shown):
        for row in range(frequency):
            top.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#ffffff", alpha=0.25, linewidth=0.4))
            ink = "#ffffff" if level[column, row] < middle + level.std() else "#000000"
            text = str(stages[column, row, 0])
            top.text(column + 0.5, row + 0.5, text, color=ink, fontsize=5, ha="center", va="center")
    for stage in range(count):
        axis = axes[1 + stage]
        kinds, index = np.unique(stages[..., stage], return_inverse=True)
        index = index.reshape(shown, frequency)
        means = np.array([level[index == code].mean() for code in range(len(kinds))])
        rank = means.argsort().argsort() / max(len(kinds) - 1, 1)
        axis.imshow(rank[index].T, origin="lower", aspect="auto", extent=extent, cmap="viridis", vmin=0, vmax=1)
        axis.set_title(f"codebook {stage + 1}: {len(kinds)} codes in this clip")
    axes[-1].set_xlabel("patch")
    return figure
