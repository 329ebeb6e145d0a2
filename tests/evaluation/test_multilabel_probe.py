"""Probes of clips with several labels: average precisions, folds, the three classifiers, and the commands."""

import json

import numpy as np
import pytest
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bridle_hf.cli.main import main
from bridle_hf.data import LabelError
from bridle_hf.data.labels import Labels
from bridle_hf.evaluation.comparison import draw_precisions, read_predictions, scored
from bridle_hf.evaluation.cross_validation import check_probe, outer_folds, strata
from bridle_hf.evaluation.measures import average_precisions, knn_predict, mean_average_precision
from bridle_hf.evaluation.metrics import load_metric
from bridle_hf.evaluation.probe import KINDS, LAYERED, linear_probe


def several(n=160, dims=8, classes=4, noise=0.7, seed=0):
    """Features whose first numbers tell the labels: (n, dims), multi-hot (n, classes), folds."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dims))
    y = (x[:, :classes] + noise * rng.normal(size=(n, classes)) > np.linspace(0.2, 1.2, classes)).astype(np.int8)
    return x, y, np.arange(n) % 4


@pytest.mark.parametrize("digits", [1, 8])  # with many equal scores, and without
def test_average_precision_is_scikit_learns_also_of_drawn_clips(digits):
    rng = np.random.default_rng(0)
    y = (rng.random((70, 5)) < [0.5, 0.3, 0.1, 0.05, 0.0]).astype(np.int8)
    scores = (0.5 * y + rng.normal(size=y.shape)).round(digits).astype(np.float32)
    weights = rng.multinomial(70, np.full(70, 1 / 70), size=6)
    got, drawn = average_precisions(scores, y), average_precisions(scores, y, weights)
    assert got.shape == (5,) and drawn.shape == (6, 5) and np.isnan(got[4]) and np.isnan(drawn[:, 4]).all()
    for label in range(4):
        assert got[label] == pytest.approx(average_precision_score(y[:, label], scores[:, label]), abs=1e-12)
        for draw, times in enumerate(weights):
            rows = np.repeat(np.arange(70), times)
            if y[rows, label].any():
                expected = average_precision_score(y[rows, label], scores[rows, label])
                assert drawn[draw, label] == pytest.approx(expected, abs=1e-12)
            else:
                assert np.isnan(drawn[draw, label])
    metric = load_metric("mean_average_precision").compute(predictions=scores, references=y)
    assert mean_average_precision(scores, y) == pytest.approx(metric["mean_average_precision"], abs=1e-12)
    assert metric["classes_left_out"] == 1


def test_neighbours_share_their_labels_as_in_scikit_learn():
    x, y, _ = several()
    got = knn_predict(x[:100], y[:100], x[100:], [1, 7], "euclidean")
    for k, scores in zip((1, 7), got, strict=True):
        expected = KNeighborsRegressor(k, algorithm="brute").fit(x[:100], y[:100]).predict(x[100:])
        np.testing.assert_allclose(scores + 0.5, expected, atol=1e-6)


def test_one_regression_a_class_scores_as_scikit_learns():
    x, y, folds = several(noise=1.0)
    x = x * np.geomspace(0.1, 10, 8) + 3
    result = linear_probe(x, y, folds, grid=(0.1,))
    for fold in range(4):
        test, precisions = folds == fold, []
        for label in range(4):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
            scores = model.fit(x[~test], y[~test, label]).decision_function(x[test])
            np.testing.assert_allclose(result.scores[test, label], scores, atol=2e-2)  # newton-cg ends at tol 1e-3
            precisions.append(average_precision_score(y[test, label], scores))
        assert result.per_fold[fold] == pytest.approx(np.mean(precisions), abs=0.01)
    assert (result.predicted == (result.scores > 0)).all()
    assert result.accuracy == pytest.approx((result.predicted == y).all(axis=1).mean())


@pytest.mark.parametrize(("kind", "grid"), [("linear", (0.001, 1.0)), ("knn", (1, 20)), ("gradient", (1e-6, 1e-2))])
def test_every_kind_learns_and_its_knob_is_chosen_by_the_other_folds_alone(kind, grid):
    x, y, folds = several(n=120, noise=0.3)
    plain = linear_probe(x, y, folds, kind=kind, grid=grid)
    assert min(plain.per_fold.values()) > 0.6 > 2 * y.mean()
    shuffled = y.copy()
    shuffled[folds == 2] = np.random.default_rng(0).permutation(y[folds == 2])
    other = linear_probe(x, shuffled, folds, kind=kind, grid=grid)
    assert other.chosen_c[2] == plain.chosen_c[2] and other.per_fold[2] < plain.per_fold[2]


def test_the_knob_is_that_of_the_best_mean_average_precision():
    x, y, folds = several(noise=1.5)
    grid = (1, 5, 20)
    result = linear_probe(x, y, folds, kind="knn", grid=grid)
    for fold in range(4):
        inner = [other for other in range(4) if other != fold]
        good = []
        for k in grid:
            found = []
            for held in inner:
                rows = np.isin(folds, [other for other in inner if other != held])
                unit = x / np.linalg.norm(x, axis=1, keepdims=True)
                model = KNeighborsRegressor(k, algorithm="brute").fit(unit[rows], y[rows])
                found.append(average_precision_score(y[folds == held], model.predict(unit[folds == held])))
            good.append(np.mean(found))
        assert result.chosen_c[fold] == grid[int(np.argmax(good))]


def test_a_class_that_the_training_lacks_costs_its_precision_alone():
    x, y, folds = several(n=80)
    y[folds != 1, 3] = 0
    y[folds != 1, 2] = 1
    for kind in ("linear", "knn", "gradient"):
        result = linear_probe(x, y, folds, kind=kind, test_folds=[1], grid=(1.0,) if kind == "linear" else (5,))
        assert np.isnan(result.scores[folds != 1]).all() and np.isfinite(result.scores[folds == 1]).all()
        if kind != "gradient":
            assert (result.scores[folds == 1, 3] < 0).all() and (result.scores[folds == 1, 2] > 0).all()


def test_folds_are_drawn_evenly_of_the_rarest_label():
    y = np.array([[1, 0], [1, 0], [1, 1], [0, 0]] * 10)
    assert strata(y).tolist() == [0, 0, 1, 2] * 10
    folds = outer_folds(y)
    for fold in range(1, 6):
        assert y[folds == fold].sum(axis=0).tolist() == [6, 2] and len(y[folds == fold]) == 8


def test_labels_that_nothing_can_be_learned_of_are_named():
    def labels(rows, folds):
        return Labels(np.array(rows, dtype=np.int8), ["a", "b"], np.array(folds))

    with pytest.raises(LabelError, match="all clips outside of fold 1 have the same labels"):
        check_probe(labels([[1, 0], [0, 1], [1, 1], [1, 1]], [1, 1, 2, 2]), several=True)
    with pytest.raises(LabelError, match="no clip of 2 has a label"):
        check_probe(labels([[1, 0], [0, 1], [0, 0], [0, 0]], [1, 1, 2, 2]), wanted=[2], several=True)
    with pytest.raises(LabelError, match="`bridle probe` several"):
        check_probe(labels([[1, 0], [0, 1]], [1, 2]))
    with pytest.raises(ValueError, match=r"labels: got shape \(4, 2\)"):
        linear_probe(np.zeros((4, 2)), np.array([[0, 2], [0, 1], [1, 0], [1, 1]]), np.arange(4) % 2)


def rows_of(scores, labels, folds, seeds=(0,)):
    return [
        {
            "clip": str(i),
            "fold": folds[i],
            "seed": seed,
            "label": json.dumps([n for n in "ab" if labels[i]["ab".index(n)]]),
        }
        | {"said": "[]", "score: a": scores[i][0], "score: b": scores[i][1]}
        for seed in seeds
        for i in range(len(labels))
    ]


def test_what_clips_say_together_is_drawn_anew_for_both():
    rng = np.random.default_rng(0)
    labels, folds = rng.integers(2, size=(60, 2)), np.arange(60) % 3
    scores = [labels + spread * rng.normal(size=(60, 2)) for spread in (1.0, 2.0)]
    first, second = (scored(rows_of(each, labels, folds)) for each in scores)
    by_fold = [average_precision_score(labels[folds == f], scores[0][folds == f]) for f in range(3)]
    assert first.precision() == pytest.approx(np.mean(by_fold), abs=1e-6)
    shuffled = scored(rows_of(scores[1], labels, folds)[::-1])  # another order of the file
    drawn = draw_precisions(first, second, draws=200)
    np.testing.assert_allclose(drawn, draw_precisions(first, shuffled, draws=200))
    assert drawn.shape == (2, 200) and drawn[0].std() > 0.01
    assert abs(drawn[0].mean() - first.precision()) < 0.05
    assert (drawn[0] - drawn[1]).std() < np.hypot(drawn[0].std(), drawn[1].std())  # paired
    assert not draw_precisions(first, first, draws=100).std(axis=0).any()


@pytest.fixture(scope="module")
def chords(tmp_path_factory, tone, to_wav):
    """30 clips with a low tone, a high one, both or none; columns audio, json.sounds (a list), fold (1, 2, 3)."""
    folder, rows = tmp_path_factory.mktemp("chords"), []
    for number in range(30):
        labels = ([], ["low"], ["high"], ["high", "low"])[number % 4]
        noise = np.random.default_rng(number).normal(size=5600) / 100
        samples = noise + sum(tone(("low", "high").index(name), number) for name in labels)
        rows.append({"audio": to_wav(samples), "json": {"sounds": labels}, "fold": number // 10 + 1})
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--fold-column", "fold"],
        ["--fold-column", "fold", "--kind", "knn"],
        ["--kind", "gradient", "--seeds", "0"],
        ["--fold-column", "fold", "--kind", "attentive"],
        ["--fold-column", "fold", "--baseline", "logmel-delta"],
    ],
)
def test_the_command_measures_mean_average_precision(chords, pretrained, options, tmp_path, capsys, monkeypatch):
    for kind in LAYERED:  # one rate, for speed
        monkeypatch.setitem(KINDS, kind, (KINDS[kind][0], (1e-2,)))
    common = ["probe", "--dataset", str(chords), "--label-column", "json.sounds"]
    common += [] if "logmel-delta" in options else ["--model", str(pretrained)]
    main([*common, *options, "--output", str(tmp_path / "first.csv")])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "accuracy" not in report and report["clips"] == 30
    assert (
        report["mean_average_precision"] == pytest.approx(np.mean(report["per_fold"])) and min(report["per_fold"]) > 0.6
    )
    assert report["interval"][0] <= report["mean_average_precision"] <= report["interval"][1]
    rows = read_predictions(tmp_path / "first.csv")
    for fold, precision in zip(report["folds"], report["per_fold"], strict=True):
        here = [row for row in rows if row["fold"] == str(fold)]
        y = np.array([[name in json.loads(row["label"]) for name in ("high", "low")] for row in here])
        scores = np.array([[float(row[f"score: {name}"]) for name in ("high", "low")] for row in here])
        assert precision == pytest.approx(average_precision_score(y, scores), abs=1e-9)
        assert all((row["said"] == '["high", "low"]') == (min(s) > 0) for row, s in zip(here, scores, strict=True))
    main(["compare", str(tmp_path / "first.csv")])
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["interval"] == report["interval"] and "average precision" in out
    main(["compare", str(tmp_path / "first.csv"), str(tmp_path / "first.csv")])
    assert json.loads(capsys.readouterr().out)["interval"] == [0.0, 0.0]
