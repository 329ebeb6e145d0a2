"""What fine-tuning leaves about each class and each clip."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bridle_hf.data import DataArguments
from bridle_hf.finetuning import finetune as finetuning
from bridle_hf.finetuning import tables
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    return FinetuneRecipe(
        model=str(pretrained),
        output_dir=str(tmp_path / "run"),
        data=DataArguments(dataset=str(tones), label_column="sound", fold_column="fold"),
        folds=[1, 2],
        training=FinetuneTraining(epochs=2, batch_size=4, warmup_epochs=1),
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_of_each_fold_and_of_all(recipe, tmp_path, caplog):
    results, run = finetune(recipe), tmp_path / "run"
    right = {}
    for fold, accuracy in zip((1, 2), results["per_fold"], strict=True):
        clips = read(run / f"fold-{fold}" / "predictions.csv")
        assert [clip["label"] for clip in clips] == ["low", "high"] * 4
        right[fold] = [clip["label"] == clip["prediction"] for clip in clips]
        assert np.mean(right[fold]) == accuracy
        assert all(0.5 <= float(clip["score"]) <= 1 for clip in clips)
        classes = read(run / f"fold-{fold}" / "per_class.csv")
        assert [(row["class"], row["support"]) for row in classes] == [("high", "4"), ("low", "4")]
        assert sum(float(row["recall"]) * 4 for row in classes) == sum(right[fold])
    pooled = read(run / "predictions.csv")
    assert [clip["fold"] for clip in pooled] == ["1"] * 8 + ["2"] * 8
    counts = read(run / "confusion.csv")
    assert int(counts[0]["high"]) + int(counts[1]["low"]) == sum(right[1] + right[2])
    assert [row["support"] for row in read(run / "per_class.csv")] == ["8", "8"]
    text = (run / "results.md").read_text()
    assert f"| mean | {results['accuracy']:.4f} |" in text and "## Worst classes" in text
    with Image.open(run / "confusion.png") as picture:
        assert min(picture.size) > 200

    # of folds that were done before, what they left is read
    finetune(replace(recipe, folds=[1, 2, 3]))
    assert len(read(run / "predictions.csv")) == 24
    (run / "fold-2" / "logits.npy").unlink()
    finetune(replace(recipe, folds=[1, 2, 3]))
    assert len(read(run / "predictions.csv")) == 16 and "fold-2 has no logits.npy" in caplog.text
    assert json.loads((run / "results.json").read_text())["folds"] == [1, 2, 3]


def test_clips_that_give_nan_are_in_no_class(recipe, tmp_path, monkeypatch):
    predict = finetuning.predict

    def spoil(*given):
        logits = predict(*given)
        logits[3] = np.nan
        return logits

    monkeypatch.setattr(finetuning, "predict", spoil)
    finetune(replace(recipe, folds=[1]))
    clips = read(tmp_path / "run" / "fold-1" / "predictions.csv")
    assert [clip["prediction"] == "" for clip in clips] == [row == 3 for row in range(8)]
    assert [row["support"] for row in read(tmp_path / "run" / "per_class.csv")] == ["3", "4"]


def test_pictures_have_up_to_sixty_classes_and_take_matplotlib(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "confusion.png"
    tables.draw(path, np.eye(61, dtype=int), [str(label) for label in range(61)])
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    tables.draw(path, np.eye(2, dtype=int), ["a", "b"])
    assert not path.exists() and 'pip install "bridle-hf[report]"' in caplog.text
    monkeypatch.undo()
    tables.draw(path, np.eye(60, dtype=int), ["a $name_{of}$ many" + "x" * 40] * 60)
    assert path.exists()
    assert [each.name for each in Path(tmp_path).iterdir()] == ["confusion.png"]
