"""What single clips say about a probe: intervals, paired tests of two of them, confusions, clips that it gets wrong."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

from . import classes

SAMPLES = 10_000
COLUMNS = {"clip", "label", "said"}  # of a file of predictions, that a comparison needs


def bootstrap(values, seed=0, samples=SAMPLES, level=0.95):
    """Percentile interval of the mean of values (n,) of clips, when clips are drawn anew.

    For a paired test of two results take the differences of their values, clip by clip.

    Returns:
        lower end, upper end.
    """
    values, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = np.concatenate(
        [values[rng.integers(len(values), size=(100, len(values)))].mean(axis=1) for _ in range(samples // 100)]
    )
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist())


def confusion_rows(labels, predictions):
    """Rows of a table: a true class, and how many of its clips each class was said of."""
    names = sorted({*labels, *predictions})
    header, *rows = classes.confusion_rows(confusion_matrix(labels, predictions, labels=names), names)
    return [dict(zip(header, row, strict=True)) for row in rows]


def wrong_rows(names, labels, predictions):
    """Rows of a table of the clips that were got wrong."""
    triples = zip(names, labels, predictions, strict=True)
    return [{"clip": name, "true class": true, "said": said} for name, true, said in triples if true != said]


def mean_by_clip(rows):
    """(clips,) share of the seeds that got each clip right, in the order in which clips come first."""
    right = defaultdict(list)
    for row in rows:
        right[row["clip"]].append(row["label"] == row["said"])
    return np.array([np.mean(values) for values in right.values()])


def write_predictions(path, rows):
    """Write rows with `clip`, `fold`, `seed`, `label` and `said` as CSV."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    classes.write_text(path, classes.csv_text(classes.with_header(rows)))


def read_predictions(path):
    """The rows of `write_predictions`.

    Raises:
        ValueError: the file is another one.
    """
    takes = "it takes a file of `bridle probe --output`"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} is no CSV file ({error}); {takes}.") from error
    if not rows or not COLUMNS <= rows[0].keys():
        raise ValueError(f"{str(path)!r} holds no predictions; {takes}.")
    for number, row in enumerate(rows, start=1):
        if None in row or any(row[name] is None for name in COLUMNS):
            raise ValueError(f"{str(path)!r} is damaged: its row {number} has other columns than its header.")
    return rows


def compare(first, second):
    """Paired comparison of two lists of rows on the same clips.

    Returns:
        dict: `accuracy` of both, their `difference` (second - first), its 95 % `interval` by bootstrap over clips, and
        `clips`.

    Raises:
        ValueError: they are of different clips, or classes of them.
    """
    labels = [{row["clip"]: row["label"] for row in rows} for rows in (first, second)]
    if labels[0] != labels[1]:
        raise ValueError(
            f"the files are of {len(labels[0])} and {len(labels[1])} clips, not all of them the same with the same "
            "classes; a paired comparison takes two probes of one dataset."
        )
    order = {clip: number for number, clip in enumerate(labels[0])}
    a, b = (mean_by_clip(sorted(rows, key=lambda row: order[row["clip"]])) for rows in (first, second))
    return {
        "accuracy": [a.mean(), b.mean()],
        "difference": (b - a).mean(),
        "interval": bootstrap(b - a),
        "clips": len(a),
    }
