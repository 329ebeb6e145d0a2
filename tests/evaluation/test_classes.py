"""Results of each class and clip are scikit-learn's."""

import csv
import io
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from bridle_hf.evaluation import classes
from bridle_hf.evaluation.classes import class_rows, csv_text, prediction_rows, with_header, worst_classes

NAMES = ["rain", 'dog, "bark"', "true class", "sea\nwaves"]


@pytest.fixture
def clips():
    """Logits (60, 4) that are often right, and labels; nobody has class 3, and nobody predicts class 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    logits = rng.normal(size=(60, 4)) + 1.5 * np.eye(4)[labels]
    logits[:, 2] = -9
    return logits, labels


def test_one_label_a_clip(clips):
    logits, labels = clips
    rows = class_rows(logits, labels, NAMES)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(4), zero_division=np.nan
    )
    assert [row["class"] for row in rows] == NAMES and [row["support"] for row in rows] == support.tolist()
    for name, expected in (("precision", precision), ("recall", recall)):
        measured = [np.nan if row[name] is None else row[name] for row in rows]
        np.testing.assert_allclose(measured, expected)
    assert [row["f1"] for row in rows[:3]] == pytest.approx(f1[:3]) and rows[3]["f1"] is None
    counts = classes.confusion_matrix(logits, labels)
    assert counts.tolist() == confusion_matrix(labels, logits.argmax(1), labels=range(4)).tolist()


def test_several_labels_a_clip():
    rng = np.random.default_rng(1)
    labels = (rng.random((80, 3)) < [0.5, 0.2, 0]).astype(np.int8)
    logits = rng.normal(size=(80, 3)) + labels
    rows = class_rows(logits, labels, NAMES[:3])
    precision, recall, f1, support = precision_recall_fscore_support(labels, logits > 0, zero_division=np.nan)
    assert [row["support"] for row in rows] == support.tolist() and support[2] == 0
    for label in range(2):
        row = rows[label]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(
            (precision[label], recall[label], f1[label])
        )
        assert row["average_precision"] == pytest.approx(average_precision_score(labels[:, label], logits[:, label]))
    assert rows[2]["precision"] == 0 and rows[2]["recall"] is rows[2]["average_precision"] is None
    worst = worst_classes(rows)
    assert [row["class"] for row in worst] == sorted(NAMES[:2], key=lambda n: rows[NAMES.index(n)]["average_precision"])


def test_clips_by_hand():
    logits = np.array([[0.0, np.log(3)], [np.nan, 0.0]], dtype=np.float32)
    assert prediction_rows(["a.wav", "b.wav"], logits, np.array([0, 1]), ["x", "y"]) == [
        {"name": "a.wav", "label": "x", "prediction": "y", "score": 0.75},
        {"name": "b.wav", "label": "y", "prediction": None, "score": None},
    ]
    several = prediction_rows(["a.wav", "b.wav"], logits, np.array([[1, 1], [0, 0]]), ["x", "é"])
    assert [json.loads(several[0][key]) for key in ("label", "prediction", "score")] == [["x", "é"], ["é"], [0.75]]
    assert several[1] == {"name": "b.wav", "label": "[]", "prediction": None, "score": None}


def test_the_worst_come_first_with_what_they_are_taken_for(clips):
    logits, labels = clips
    rows, counts = class_rows(logits, labels, NAMES), classes.confusion_matrix(logits, labels)
    worst = worst_classes(rows, counts)
    assert worst[0]["class"] == "true class" and worst[0]["f1"] == "0.000" and worst[0]["precision"] == ""
    assert [row["class"] for row in worst[1:]] == sorted(NAMES[:2], key=lambda name: rows[NAMES.index(name)]["f1"])
    wrong = counts[2].copy()
    wrong[2] = 0
    assert worst[0]["taken for"] == f"{NAMES[wrong.argmax()]} ({wrong.max()})"
    perfect = np.diag([3, 2])
    assert [r["taken for"] for r in worst_classes(class_rows(np.eye(2), np.arange(2), ["a", "b"]), perfect)] == ["", ""]


def test_any_name_stays_in_its_cell(clips):
    logits, labels = clips
    table = list(csv.reader(io.StringIO(csv_text(with_header(class_rows(logits, labels, NAMES))))))
    assert [row[0] for row in table] == ["class", *NAMES]
    counts = classes.confusion_matrix(logits, labels)
    table = list(csv.reader(io.StringIO(csv_text(classes.confusion_rows(counts, NAMES)))))
    assert table[0] == ["true class", *NAMES] and [row[0] for row in table[1:]] == NAMES
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == counts.tolist()
    assert csv_text(with_header([])) == ""
