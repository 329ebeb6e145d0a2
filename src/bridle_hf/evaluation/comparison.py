"""What single clips say about a probe: intervals, paired tests of two of them, confusions, clips that it gets wrong."""

import csv
import json
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix

from . import classes
from .measures import mean_average_precision, mean_of_known

SAMPLES = 10_000
DRAWS = 1_000  # of clips with several labels, since each draw is ranked anew for every class
SCORE = "score: "  # begins the names of the columns with the scores of classes
COLUMNS = {"clip", "label", "said"}  # of a file of predictions, that a comparison needs


def draw_accuracies(*probes, seed=0, samples=SAMPLES):
    """Bootstrap samples of the accuracies of several probes on the same clips.

    Every sample draws clips with replacement and uses the same draw for all probes, so that differences are paired.

    Args:
        probes: for each probe the array (2, clips) of `by_clip`, with the clips in the same order.
        samples: number of bootstrap samples.

    Returns:
        array (probes, samples).
    """
    rng, number, found = np.random.default_rng(seed), probes[0].shape[1], []
    for _ in range(samples // 100):
        drawn = rng.integers(number, size=(100, number))
        found.append([accuracy_of(probe.take(drawn, axis=1)) for probe in probes])
    return np.concatenate(found, axis=1)


def accuracy_of(parts):
    """Accuracy, the mean over seeds and folds, from an array (2, ..., clips) of `by_clip`, possibly resampled."""
    right, weights = parts.sum(axis=-1)
    return right / weights


def interval_of(draws, level=0.95):
    """Percentile interval: lower end, upper end. A draw that says nothing (NaN) does not count."""
    return tuple(np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist())


@dataclass
class Scored:
    """What a probe says of clips with several labels.

    Attributes:
        clips: names, in the order in which they come first.
        classes: names.
        groups: for each seed and fold the numbers of its clips (m,), scores (m, classes) and labels (m, classes).
    """

    clips: list
    classes: list
    groups: list

    def precision(self, weights=None):
        """Mean over seeds and folds of the mean average precision: a number, or of weights (draws, clips) (draws,)."""
        found = [
            mean_average_precision(scores, labels, None if weights is None else weights[:, numbers])
            for numbers, scores, labels in self.groups
        ]
        return mean_of_known(np.stack(found, axis=-1))


def scored(rows):
    """`Scored` of the rows of clips with several labels; None of those with one."""
    columns = [name for name in rows[0] if name.startswith(SCORE)]
    if not columns:
        return None
    names, parts = [column.removeprefix(SCORE) for column in columns], defaultdict(list)
    numbers = {clip: number for number, clip in enumerate(dict.fromkeys(row["clip"] for row in rows))}
    for row in rows:
        parts[str(row["seed"]), str(row["fold"])].append(row)
    groups = []
    for part in parts.values():
        labels = np.array([np.isin(names, json.loads(row["label"])) for row in part])
        scores = np.array([[row[column] for column in columns] for row in part], dtype=np.float32)
        groups.append((np.array([numbers[row["clip"]] for row in part]), scores, labels))
    return Scored(list(numbers), names, groups)


def draw_precisions(*probes, seed=0, draws=DRAWS):
    """Mean average precision (probes, draws) of `Scored` of the same clips when these are drawn anew, for all of them
    the same ones. A class that none of the drawn clips of a fold has does not count there."""
    rng, order = np.random.default_rng(seed), {clip: number for number, clip in enumerate(probes[0].clips)}
    places = [[order[clip] for clip in probe.clips] for probe in probes]
    number, found = len(order), []
    for start in range(0, draws, 100):
        weights = rng.multinomial(number, np.full(number, 1 / number), size=min(100, draws - start))
        found.append([probe.precision(weights[:, place]) for probe, place in zip(probes, places, strict=True)])
    return np.concatenate(found, axis=1)


def confusion_rows(labels, predictions):
    """Rows of a table: a true class, and how many of its clips each class was said of."""
    names = sorted({*labels, *predictions})
    header, *rows = classes.confusion_rows(confusion_matrix(labels, predictions, labels=names), names)
    return [dict(zip(header, row, strict=True)) for row in rows]


def wrong_rows(names, labels, predictions):
    """Rows of a table of the clips that were got wrong."""
    triples = zip(names, labels, predictions, strict=True)
    return [{"clip": name, "true class": true, "said": said} for name, true, said in triples if true != said]


def by_clip(rows):
    """Array (2, clips): row 0 is weight * share of the seeds that classified the clip correctly, row 1 is the weight.

    Clips are in the order of their first row. Weights make all folds count equally: they are 1 if the folds have equal
    sizes, and larger for clips of smaller folds.
    """
    folds = [(row.get("seed"), row.get("fold")) for row in rows]
    sizes, parts = Counter(folds), defaultdict(list)
    for row, fold in zip(rows, folds, strict=True):
        weight = len(rows) / (len(sizes) * sizes[fold])
        parts[row["clip"]].append((weight * (row["label"] == row["said"]), weight))
    # a contiguous copy: numpy sums contiguous rows pairwise, which is more accurate
    return np.array([np.mean(each, axis=0) for each in parts.values()]).T.copy()


def summary(rows):
    """`accuracy`, or of clips with several labels `mean_average_precision`, both the mean over seeds and folds; its
    95 % `interval` by bootstrap over clips, and the number of `clips`."""
    if several := scored(rows):
        interval = interval_of(draw_precisions(several)[0])
        return {"mean_average_precision": several.precision(), "interval": interval, "clips": len(several.clips)}
    right = by_clip(rows)
    interval = interval_of(draw_accuracies(right)[0])
    return {"accuracy": accuracy_of(right), "interval": interval, "clips": right.shape[1]}


def tables(rows):
    """Tables, as lists of dicts: confusions and the clips that were got wrong; of clips with several labels the
    classes with their precisions, lowest first."""
    if several := scored(rows):
        scores, labels = (np.concatenate(each) for each in list(zip(*several.groups, strict=True))[1:])
        by_class = classes.class_rows(scores, labels.astype(np.int64), several.classes)
        return [classes.worst_classes(by_class, number=len(by_class))]
    columns = [[row[name] for row in rows] for name in ("clip", "label", "said")]
    return [confusion_rows(*columns[1:]), wrong_rows(*columns)]


def write_predictions(path, rows):
    """Write rows with `clip`, `fold`, `seed`, `label` and `said` as CSV; of clips with several labels the last two are
    lists in JSON, and a column `score: NAME` follows for each class."""
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
    columns = COLUMNS | ({"seed", "fold"} if rows and any(str(name).startswith(SCORE) for name in rows[0]) else set())
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"{str(path)!r} holds no predictions; {takes}.")
    for number, row in enumerate(rows, start=1):
        if None in row or any(row[name] is None for name in columns):
            raise ValueError(f"{str(path)!r} is damaged: its row {number} has other columns than its header.")
    return rows


def compare(first, second):
    """Paired comparison of two lists of rows on the same clips.

    Returns:
        dict: `accuracy` of both, or of clips with several labels `mean_average_precision`, their `difference` (second -
        first), its 95 % `interval` by bootstrap over clips, and `clips`.

    Raises:
        ValueError: they are of different clips, or classes of them.
    """
    labels = [{row["clip"]: row["label"] for row in rows} for rows in (first, second)]
    if labels[0] != labels[1]:
        raise ValueError(
            f"the files are of {len(labels[0])} and {len(labels[1])} clips, not all of them the same with the same "
            "classes; a paired comparison takes two probes of one dataset."
        )
    several = [scored(rows) for rows in (first, second)]
    if None not in several and several[0].classes != several[1].classes:
        raise ValueError("the files have scores of other classes; a paired comparison takes two probes of one dataset.")
    if None not in several:
        a, b = (probe.precision() for probe in several)
        drawn = draw_precisions(*several)
        return {
            "mean_average_precision": [a, b],
            "difference": b - a,
            "interval": interval_of(drawn[1] - drawn[0]),
            "clips": len(labels[0]),
        }
    order = {clip: number for number, clip in enumerate(labels[0])}
    probes = [by_clip(sorted(rows, key=lambda row: order[row["clip"]])) for rows in (first, second)]
    (a, b), drawn = map(accuracy_of, probes), draw_accuracies(*probes)
    return {
        "accuracy": [a, b],
        "difference": b - a,
        "interval": interval_of(drawn[1] - drawn[0]),
        "clips": len(order),
    }
