"""What a classifier does with each class and each clip: rows for tables, and the confusion matrix."""

import csv
import io
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from ..files import write_whole

HALF = 0.0  # the logit of a probability of one half, above which a clip with several labels has one


def csv_text(rows):
    """A csv file of lists, the first of them the header; None is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write_text(path, text):
    """Write a text file atomically; its folder is created. Characters of names that are not UTF-8 are escaped."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), text.encode(errors="backslashreplace"))


def with_header(rows):
    """Dicts with the same keys as lists, the keys first."""
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def predicted(logits, several):
    """Bool (n, classes): the class of the highest logit, or all that are likelier than not with `several`."""
    return logits > HALF if several else np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)]


def class_rows(logits, labels, label_names):
    """One dict per class, in the order of the classes.

    Args:
        logits: (n, classes), finite.
        labels: (n,) classes or multi-hot (n, classes).

    Returns:
        `class`; `support`, the clips that have it; `precision`, `recall`, `f1` of what is `predicted`; with several
        labels `average_precision`. None is what the clips cannot tell: the precision of a class that is never
        predicted, the rest of one that no clip has.
    """
    several = labels.ndim > 1
    true = labels > 0 if several else np.eye(len(label_names), dtype=bool)[labels]
    found = predicted(logits, several)
    rows = []
    for label, name in enumerate(label_names):
        right = int((true[:, label] & found[:, label]).sum())
        support, claimed = int(true[:, label].sum()), int(found[:, label].sum())
        row = {
            "class": name,
            "support": support,
            "precision": right / claimed if claimed else None,
            "recall": right / support if support else None,
            "f1": 2 * right / (support + claimed) if support else None,
        }
        if several:
            precision = average_precision_score(true[:, label], logits[:, label]) if support else None
            row["average_precision"] = precision if precision is None else float(precision)
        rows.append(row)
    return rows


def confusion_matrix(logits, labels):
    """Counts (classes, classes) of clips: rows are the true class, columns the predicted one.

    Args:
        logits: (n, classes).
        labels: (n,) classes.
    """
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def confusion_rows(counts, label_names):
    """Rows of a confusion matrix: the first column has the true class, and one follows for each predicted class."""
    names = ["true class", *label_names]  # one of them may be called like another column
    return [names, *([name, *row] for name, row in zip(label_names, counts.tolist(), strict=True))]


def prediction_rows(clip_names, logits, labels, label_names):
    """One dict per clip: `name`, `label`, `prediction`, and its `score`.

    The score is the probability of the predicted class. With several labels per clip, `label`, `prediction` and `score`
    are lists in JSON. Prediction and score are None where logits are NaN or inf.
    """
    several = labels.ndim > 1
    rows = []
    for name, scores, label in zip(clip_names, logits.astype(np.float64), labels, strict=True):
        row = {"name": name, "label": None, "prediction": None, "score": None}
        finite = np.isfinite(scores).all()
        if several:
            row["label"] = _json([label_names[each] for each in np.flatnonzero(label)])
            if finite:
                chosen = np.flatnonzero(scores > HALF)
                shares = 1 / (1 + np.exp(-scores[chosen]))
                row["prediction"] = _json([label_names[each] for each in chosen])
                row["score"] = _json(shares.round(6).tolist())
        else:
            row["label"] = label_names[label]
            if finite:
                share = 1 / np.exp(scores - scores.max()).sum()
                row |= {"prediction": label_names[scores.argmax()], "score": round(float(share), 6)}
        rows.append(row)
    return rows


def worst_classes(rows, counts=None, number=10):
    """Rows for a table of the classes with the lowest average precision, or without it F1, worst first.

    Args:
        rows: of `class_rows`; those without clips are left out.
        counts: of `confusion_matrix`; with it a column says what a class is taken for most often.
    """
    measure = "average_precision" if rows and "average_precision" in rows[0] else "f1"
    order = sorted((label for label, row in enumerate(rows) if row["support"]), key=lambda label: rows[label][measure])
    table = []
    for label in order[:number]:
        row = {key: _short(value) for key, value in rows[label].items()}
        if counts is not None:
            wrong = counts[label] * (np.arange(len(rows)) != label)
            taken = wrong.argmax()
            row["taken for"] = f"{rows[taken]['class']} ({wrong[taken]})" if wrong[taken] else ""
        table.append({key.replace("_", " "): value for key, value in row.items()})
    return table


def _short(value):
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def _json(value):
    return json.dumps(value, ensure_ascii=False)
