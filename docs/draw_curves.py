"""Draws docs/curves.svg, the curves of a run that learns and of one whose codes collapse, for light and dark pages.

bridle pretrain audio/demo training.optimizer=adamw encoder.learning_rate=1e-3 output_dir=runs/good phases.0.steps=600 evaluate='{label_column: label, fold_column: fold, every_steps: 100}'
bridle pretrain audio/demo training.optimizer=adamw encoder.learning_rate=1e-3 output_dir=runs/bad phases.0.steps=600 evaluate='{label_column: label, fold_column: fold, every_steps: 100}' phases.1.steps=20
python docs/draw_curves.py runs/good runs/bad
"""  # noqa: E501

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bridle_hf.evaluation.plots import GRID, SERIES, STYLE, to_svg
from bridle_hf.training.metrics import read_metrics

COLOURS = """
  svg { --ink: #1f2328; --grid: #d0d7de; --faint: #eceef1; font-family: system-ui, sans-serif }
  svg { --series-0: #57606a; --series-1: #0969da; --series-2: #bf5700; --series-3: #1a7f37; --series-4: #8250df }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --grid: #3a3f46; --faint: #22262b }
    svg { --series-0: #9198a1; --series-1: #58a6ff; --series-2: #f0883e; --series-3: #3fb950; --series-4: #bc8cff }
  }
"""
ROWS = ("learns", "codes collapse")
CODES = 128
TITLES = "loss", f"perplexity, of {CODES} codes", "accuracy of features, %"


def draw(runs: list[str]) -> Figure:
    """A row of panels for each run: the losses, the perplexity of each codebook, and what the features are worth."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5), layout="constrained")
        axes = figure.subplots(2, 3, sharex="all", sharey="col")
        for row, run in zip(axes, runs, strict=True):
            records = list(read_metrics(Path(run) / "metrics.jsonl"))
            steps = [record for record in records if "loss" in record]
            measured = [record for record in records if "evaluate" in record]
            for number, phase in enumerate(dict.fromkeys(record["phase"] for record in steps)):
                points = [(r["total_step"], r["loss"]) for r in steps if r["phase"] == phase]
                row[0].plot(*zip(*points, strict=True), color=SERIES[number + 1], label=phase)
            for book in range(len(steps[0]["codebooks"]["perplexity"])):
                points = [(r["total_step"], r["codebooks"]["perplexity"][book]) for r in steps]
                row[1].plot(*zip(*points, strict=True), color=SERIES[book + 1], label=f"codebook {book + 1}")
            for number, (key, label) in enumerate({"linear": "linear probe", "knn": "nearest neighbours"}.items()):
                points = [(r["total_step"], 100 * r["evaluate"][key]) for r in measured]
                row[2].plot(*zip(*points, strict=True), color=SERIES[number + 1], marker="o", markersize=3, label=label)
            begun = sorted({record["total_step"] - record["step"] for record in steps})
            for axis in row:
                axis.grid(axis="y")
                for step in begun[1:]:
                    axis.axvline(step, color=GRID, linewidth=0.8, linestyle=(0, (4, 3)))
        for axis, title in zip(
            axes[0], ("loss", f"perplexity, of {CODES} codes", "accuracy of features, %"), strict=True
        ):
            axis.set_title(title)
        for axis in axes[:, 1]:
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:.0f}")  # a power would be text in TeX
            axis.axhline(CODES / 8, color=SERIES[0], linewidth=0.8)  # below it a run warns
        for row, said in zip(axes, ROWS, strict=True):
            row[0].set_ylabel(said)
        for axis in axes[0]:
            axis.legend(loc="lower right" if axis is axes[0, 2] else "best")
        for axis in axes[1]:
            axis.set_xlabel("step of the run")
    return figure


if __name__ == "__main__":
    said = "Losses, perplexities and accuracies of a run that learns and of one whose codes collapse"
    svg = str(to_svg(draw(sys.argv[1:]), "curves", said)).replace(">", f"><style>{COLOURS}</style>", 1)
    Path(__file__).with_name("curves.svg").write_text(svg)
