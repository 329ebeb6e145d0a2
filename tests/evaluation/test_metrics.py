import math
import re
from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from bridle_hf.codebook_metrics import code_counts, usage
from bridle_hf.evaluation import metrics
from bridle_hf.evaluation.metrics import METRICS, load_metric


@pytest.fixture(scope="module")
def tagged():
    """Scores and multi-hot labels of 60 clips and 5 classes; the last class never occurs."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 5)) < 0.3).astype(np.int64)
    labels[:, 4] = 0
    return labels + rng.normal(size=(60, 5)), labels


def test_mean_average_precision_is_scikit_learns(tagged):
    scores, labels = tagged
    got = load_metric("mean_average_precision").compute(predictions=scores, references=labels)
    assert got["mean_average_precision"] == pytest.approx(
        average_precision_score(labels[:, :4], scores[:, :4]), abs=1e-6
    )
    assert got["classes_left_out"] == 1


def test_mean_average_precision_by_hand():
    # Ranks of the positives of class 0: 1 and 3 -> (1/1 + 2/3) / 2. Class 1 mirrors it: ranks 2 and 4 of the negatives.
    scores = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]
    got = load_metric("mean_average_precision").compute(predictions=scores, references=[0, 1, 0, 1])
    assert got["mean_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + (1 + 2 / 3) / 2) / 2)


def test_d_prime_of_known_auc(tagged):
    scores, labels = tagged
    got = load_metric("d_prime").compute(predictions=scores, references=labels)
    auc = roc_auc_score(labels[:, :4], scores[:, :4])
    assert got["auc"] == pytest.approx(auc, abs=1e-6)
    assert got["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-5)
    # Two unit normal distributions one standard deviation apart have d' = 1, in the limit.
    rng = np.random.default_rng(1)
    one = np.concatenate([rng.normal(1, 1, 20000), rng.normal(0, 1, 20000)])
    references = np.repeat([1, 0], 20000)
    measured = load_metric("d_prime").compute(predictions=np.stack([-one, one], 1), references=references)
    assert measured["d_prime"] == pytest.approx(1.0, abs=0.03)


def test_top_k_accuracy_is_scikit_learns_and_ties_are_misses():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    got = load_metric("top_k_accuracy").compute(predictions=scores, references=labels, k=3)
    assert got["accuracy"] == pytest.approx((scores.argmax(1) == labels).mean())
    assert got["top_k_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=3, labels=range(7)))
    constant = load_metric("top_k_accuracy").compute(predictions=np.zeros((9, 7)), references=labels[:9], k=5)
    assert constant == {"accuracy": 0.0, "top_k_accuracy": 0.0}


def test_nan_is_no_right_answer():
    scores = np.eye(3)
    scores[0] = np.nan
    found = load_metric("top_k_accuracy").compute(predictions=scores, references=[0, 1, 2], k=2)
    assert found == {"accuracy": pytest.approx(2 / 3), "top_k_accuracy": pytest.approx(2 / 3)}


def test_code_usage_by_hand_and_in_batches():
    codes = np.array([[0, 3], [1, 3], [2, 3], [3, 3]])
    metric = load_metric("code_usage")
    for row in codes:
        metric.add_batch(predictions=row[None])
    got = metric.compute(codebook_size=4)
    assert got["cur"] == [1.0, 0.25]
    assert got["entropy"] == pytest.approx([2.0, 0.0])
    assert got["perplexity"] == pytest.approx([4.0, 1.0])
    assert got["ecu"] == pytest.approx([1.0, 0.0])
    assert got["dead"] == [0, 3]


def test_code_usage_is_what_training_logs():
    codes = np.random.default_rng(0).zipf(1.5, size=(500, 3)) % 16
    got = load_metric("code_usage").compute(predictions=codes, codebook_size=16)
    logged = usage(code_counts(codes, 16))
    for name, values in got.items():
        assert values == pytest.approx(logged[name].tolist()), name


def test_the_scripts_need_nothing_of_the_package():
    """A Space that holds such a script alone has to be enough for `evaluate.load`."""
    for name in METRICS:
        source = (files(metrics) / name / f"{name}.py").read_text()
        imported = {found.split(".")[0] for found in re.findall(r"^(?:from|import) ([\w.]+)", source, re.MULTILINE)}
        assert imported <= {"datasets", "evaluate", "numpy", "scipy", "sklearn"}


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("top_k_accuracy", {"predictions": np.zeros((2, 3)), "references": [0, 1], "k": 4}, "k: got 4 for 3 classes"),
        ("top_k_accuracy", {"predictions": np.eye(3), "references": [0, 1, -1], "k": 1}, "references: got -1 to 1"),
        ("top_k_accuracy", {"predictions": np.eye(3), "references": [0, 1, 3], "k": 1}, "classes go from 0 to 2"),
        ("mean_average_precision", {"predictions": np.eye(3), "references": [0, 1, -1]}, "references: got -1 to 1"),
        ("mean_average_precision", {"predictions": np.zeros((2, 3)), "references": np.zeros((2, 3), int)}, "positive"),
        ("d_prime", {"predictions": np.zeros((2, 1)), "references": [0, 0]}, "positive and negative"),
        ("code_usage", {"predictions": np.array([[5]]), "codebook_size": 4}, r"5\.\.5"),
    ],
)
def test_bad_input_is_named(name, inputs, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name).compute(**inputs)


def test_unknown_metric_lists_what_there_is():
    with pytest.raises(ValueError, match="'map'.*" + METRICS[0]):
        load_metric("map")
