"""Probes by nearest neighbours and by gradient descent, and what single clips say of them."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from bridle_hf.cli.main import main
from bridle_hf.evaluation import measures
from bridle_hf.evaluation.comparison import (
    by_clip,
    compare,
    confusion_rows,
    draw_accuracies,
    interval_of,
    read_predictions,
    summary,
    write_predictions,
    wrong_rows,
)
from bridle_hf.evaluation.gradient_probe import gradient_scores
from bridle_hf.evaluation.measures import knn_predict
from bridle_hf.evaluation.probe import linear_probe


def clusters(n=120, dims=8, classes=3, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, dims))[labels] + noise * rng.normal(size=(n, dims)), labels, np.arange(n) // 3 % 4


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_vote_as_in_scikit_learn(distance, monkeypatch):
    monkeypatch.setattr(measures, "ROWS_AT_ONCE", 7)
    x, y, _ = clusters(noise=2.0)
    names = np.array(["dog", "rain", "sea"])[y]
    got = knn_predict(x[:80], names[:80], x[80:], [1, 5, 80], distance)
    for k, predictions in zip((1, 5, 80), got, strict=True):
        model = KNeighborsClassifier(k, metric=distance, algorithm="brute").fit(x[:80], names[:80])
        assert predictions.tolist() == model.predict(x[80:]).tolist()
        assert knn_predict(x[:80], names[:80], x[80:], k, distance).tolist() == predictions.tolist()
    for k, distance_, message in ((0, "cosine", r"k: got \[0\]"), (81, "cosine", "from 1 to 80"), (1, "l1", "'l1'")):
        with pytest.raises(ValueError, match=message):
            knn_predict(x[:80], y[:80], x[80:], k, distance_)


def test_gradient_descent_comes_where_newton_does():
    x, y, _ = clusters(n=200, noise=2.0)
    x = x * np.geomspace(0.01, 100, 8) + 7  # standardised first
    scores, mix = gradient_scores(x[:150], y[:150], x[150:], [1e-2], epochs=100, batch_size=50)
    z = (x - x[:150].mean(axis=0)) / x[:150].std(axis=0)
    expected = LogisticRegression(C=1e3, max_iter=1000).fit(z[:150], y[:150]).predict(z[150:])
    assert (scores[0].argmax(axis=1) == expected).mean() > 0.95 and mix.tolist() == [[1.0]]
    again, _ = gradient_scores(x[:150], y[:150], x[150:], [1e-2], epochs=100, batch_size=50)
    assert np.array_equal(scores, again)


def test_gradient_descent_weights_the_layer_that_says_something():
    x, y, _ = clusters(n=200, noise=0.5)
    layers = np.stack([np.random.default_rng(1).normal(size=x.shape), x], axis=1)
    scores, mix = gradient_scores(layers[:150], y[:150], layers[150:], [1e-2], epochs=100)
    assert mix[0, 1] > 0.6 and (scores[0].argmax(axis=1) == y[150:]).mean() > 0.9


def test_gradient_descent_takes_several_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 10))
    y = (x[:, :3] + 0.3 * rng.normal(size=(300, 3)) > 0.5).astype(np.int8)
    scores, _ = gradient_scores(x[:200], y[:200], x[200:], [1e-2], epochs=50, batch_size=20)
    precision = [average_precision_score(y[200:, c], scores[0, :, c]) for c in range(3)]
    assert min(precision) > 0.9 > np.mean(y)


@pytest.mark.parametrize("kind", ["knn", "gradient"])
def test_the_knob_is_chosen_by_the_other_folds_alone(kind):
    x, y, folds = clusters(n=60, noise=0.7)
    grid = (1, 5, 20) if kind == "knn" else (1e-6, 1e-2)
    names = np.array(["dog", "rain", "sea"])[y]
    plain = linear_probe(x, names, folds, kind=kind, grid=grid)
    assert plain.accuracy > 0.7
    assert ((plain.predicted == names) == plain.correct).all()
    shuffled = names.copy()
    shuffled[folds == 2] = np.random.default_rng(0).permutation(names[folds == 2])
    assert linear_probe(x, shuffled, folds, kind=kind, grid=grid).chosen_c[2] == plain.chosen_c[2]


def test_a_kind_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="kind: got 'svm'; it takes one of linear, knn, gradient"):
        linear_probe(np.zeros((8, 2)), np.arange(8) % 2, kind="svm")


def test_the_interval_of_a_share_is_about_that_of_the_normal_law():
    right = np.arange(400) % 5 > 0  # 80 %
    low, high = interval_of(draw_accuracies(np.stack([right, np.ones(400)]))[0])
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.02, 0.8 + 1.96 * 0.02), abs=0.005)
    assert interval_of(draw_accuracies(np.ones((2, 5)))[0]) == (1.0, 1.0)


def test_an_interval_is_that_of_the_mean_over_folds_which_is_printed():
    """Folds of 4 and 96 clips with accuracies of 50 % and 100 %: the mean over folds is 75 %, over clips it is 98 %."""
    rows = [{"clip": f"{i}", "fold": i < 4, "seed": 0, "label": "x", "said": "y" if i < 2 else "x"} for i in range(100)]
    found = summary(rows)
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["interval"][0] < 0.7 and 0.8 < found["interval"][1] <= 1
    even = [{**row, "fold": int(row["clip"]) % 5} for row in rows]
    assert summary(even)["accuracy"] == 0.98  # of folds of one size it is the share of the clips, to the last digit
    better = [{**row, "said": "x"} for row in rows]
    paired = compare(rows, better)
    assert paired["accuracy"] == pytest.approx([0.75, 1.0]) and paired["difference"] == pytest.approx(0.25)
    assert paired["interval"] == pytest.approx([1 - end for end in found["interval"][::-1]])


def rows_of(said, seed=0):
    labels = ["dog", "dog", "rain", "rain"]
    return [
        {"clip": f"{i}", "fold": 1, "seed": seed, "label": label, "said": each}
        for i, (label, each) in enumerate(zip(labels, said, strict=True))
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00PAR1", "is no CSV file ("),
        (b'clip,label,said\n"' + b"x" * 200_000, "is no CSV file (field larger than"),
        (b"clip,fold,seed,label,said\na,1,0,x,x\nb,1,0,x\n", "is damaged: its row 2 has other columns than"),
        (b"clip,label,said\na,x,x,y\n", "is damaged: its row 1 has"),
        (b"", "holds no predictions; it takes a file of `bridle probe --output`"),
        (b"clip,label\na,x\n", "holds no predictions"),
    ],
)
def test_a_file_of_something_else_is_named_in_one_line(content, message, tmp_path, capsys):
    (tmp_path / "said.csv").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(tmp_path / "said.csv")])
    assert f"error: '{tmp_path}/said.csv' {message}" in capsys.readouterr().err.splitlines()[-1]


def test_clips_are_counted_by_hand(tmp_path, capsys):
    first = rows_of(["dog", "rain", "rain", "rain"]) + rows_of(["dog", "dog", "dog", "rain"], seed=1)
    second = rows_of(["rain", "rain", "rain", "dog"])[::-1]  # in another order
    assert by_clip(first).tolist() == [[1.0, 0.5, 0.5, 1.0], [1.0] * 4]
    found = compare(first, second)
    assert found["accuracy"] == [0.75, 0.25] and found["difference"] == -0.5 and found["clips"] == 4
    drawn = np.random.default_rng(0).integers(4, size=(10_000, 4))
    expected = np.quantile(np.array([-1.0, -0.5, 0.5, -1.0])[drawn].mean(axis=1), [0.025, 0.975])
    assert found["interval"] == pytest.approx(expected, abs=0.02)
    labels, said = ["dog", "dog", "rain", "rain"], ["dog", "rain", "rain", "rain"]
    assert confusion_rows(labels, said) == [
        {"true class": "dog", "dog": 1, "rain": 1},
        {"true class": "rain", "dog": 0, "rain": 2},
    ]
    assert wrong_rows("abcd", labels, said) == [{"clip": "b", "true class": "dog", "said": "rain"}]
    for name, rows in (("a.csv", first), ("b.csv", second)):
        write_predictions(tmp_path / name, rows)
        assert [row["said"] for row in read_predictions(tmp_path / name)] == [row["said"] for row in rows]
    main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert json.loads(capsys.readouterr().out)["difference"] == -0.5
    main(["compare", str(tmp_path / "a.csv")])
    out = capsys.readouterr().out
    assert "| dog | 3 | 1 |" in out and "| 1 | dog | rain |" in out
    assert json.loads(out.splitlines()[-1])["accuracy"] == 0.75
    write_predictions(tmp_path / "c.csv", first[:3])
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "c.csv")])
    assert "the files are of 4 and 3 clips" in capsys.readouterr().err
