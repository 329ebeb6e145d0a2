"""The classifier that is trained on all labels after the folds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from bridle_hf.data import DataArguments, LabelError
from bridle_hf.finetuning import finetune as finetuning
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune
from bridle_hf.hub.card import read_finetuning


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    def make(folder="run", **training):
        training = {"epochs": 3, "batch_size": 4, "warmup_epochs": 1, "learning_rate": 5e-3} | training
        return FinetuneRecipe(
            model=str(pretrained),
            output_dir=str(tmp_path / folder),
            data=DataArguments(dataset=str(tones), label_column="sound", fold_column="fold"),
            folds=[1, 2],
            final=True,
            training=FinetuneTraining(**training),
        )

    return make


def weights(recipe):
    return load_file(f"{recipe.output_dir}/final/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_all_clips_train_it_and_the_pipeline_loads_it(recipe, drawn, tone):
    made = recipe()
    results = finetune(made)
    folds, final = drawn[: 2 * 3 * 4], drawn[2 * 3 * 4 :]
    assert len(final) == 3 * 6 and sorted(row for rows in final for row in rows) == sorted([*range(24)] * 3)
    assert results["final_epochs"] == 3 and results["folds"] == [1, 2]
    folder = Path(made.output_dir, "final")
    assert not list(folder.glob("checkpoint-*")) and not list(folder.glob("*.csv"))
    classify = pipeline("audio-classification", model=str(folder))
    assert {found["label"] for found in classify(tone(0, 100).astype(np.float32))} == {"low", "high"}
    assert read_finetuning(folder)["scores"] == {} and read_finetuning(folder)["tested"] is None

    # the folds are what they are without it, and nothing is done twice
    drawn.clear()
    assert finetune(made) == results and not drawn
    without = finetune(replace(made, final=False))
    assert not drawn and {**without, "final_epochs": 3} == results
    alone = replace(made, final=False, output_dir=made.output_dir + "-alone")
    finetune(alone)
    assert drawn == folds


def test_a_killed_one_goes_on_and_ends_the_same(recipe, drawn, monkeypatch):
    """Epochs of the folds: 1 and 2 of 6; the mean of 1.5 is rounded to 2."""
    score_sound, values = finetuning.score_sound, []

    def call(what, *given):
        scores = score_sound(what, *given)
        return scores | {"accuracy": values.pop(0)} if "validation" in what else scores

    monkeypatch.setattr(finetuning, "score_sound", call)
    whole, killed = (
        recipe(folder, epochs=6, validation_share=0.25, patience=1, keep="best") for folder in ("whole", "killed")
    )
    values.extend([0.9, 0.5, 0.5, 0.9, 0.5])
    results = finetune(whole)
    assert results["epochs"] == [1, 2] and results["final_epochs"] == 2
    steps = 3 * (2 + 3)
    assert len(drawn) == steps + 2 * 6
    drawn.clear()
    drawn.stop_at = steps + 8
    values.extend([0.9, 0.5, 0.5, 0.9, 0.5])
    with pytest.raises(KeyboardInterrupt):
        finetune(killed)
    drawn.clear()
    drawn.stop_at = None
    assert finetune(killed) == results and len(drawn) == 6
    assert same(weights(killed), weights(whole))
    records = [json.loads(x) for x in Path(killed.output_dir, "final", "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]


def test_where_there_is_none_it_is_said(recipe):
    made = recipe()
    with pytest.raises(ValueError, match="`final` is true; with {fold} in `model`"):
        replace(made, model="runs/{fold}")
    with pytest.raises(ValueError, match="`final` is true; with `data.test_split`"):
        replace(made, data=replace(made.data, test_split="test", fold_column=None))
    with pytest.raises(ValueError, match="`final` is true; with a test_dataset"):
        finetune(made, [], [])


def test_it_can_be_trained_alone(recipe, drawn, tmp_path):
    made = recipe("alone")
    made.folds = []
    results = finetune(made)
    assert len(drawn) == 3 * 6 and results["folds"] == [] and results["final_epochs"] == 3 and "per_fold" not in results
    assert sorted(path.name for path in Path(made.output_dir).iterdir() if path.is_dir()) == ["final"]
    drawn.clear()
    assert finetune(made) == results and not drawn
    with pytest.raises(ValueError, match="`folds` is \\[\\]; it takes at least one fold"):
        replace(made, final=False)


def test_one_class_or_a_validation_share_is_refused_without_folds_too(recipe):
    made = replace(recipe(), folds=[])
    with pytest.raises(LabelError, match="all clips are of one class, 'low'; it takes at least two"):
        finetune(replace(made, data=replace(made.data, exclude={"sound": ["high"]})))
    with pytest.raises(ValueError, match=r"`training.validation_share` is 0.2; with folds=\[\] it takes 0"):
        replace(made, training=replace(made.training, validation_share=0.2))


def test_results_with_folds_stay_beside_a_final_alone(recipe, drawn, caplog):
    made = replace(recipe(epochs=1, warmup_epochs=0), final=False)
    folder = Path(made.output_dir)
    results = finetune(made)
    tables = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".csv", ".json")}
    alone = finetune(replace(made, folds=[], final=True))
    assert alone["folds"] == [] and alone["final_epochs"] == 1
    assert all((folder / name).read_bytes() == content for name, content in tables.items())
    assert json.loads(tables["results.json"]) == results
    # final/ is the same whatever folds there are
    drawn.clear()
    finetune(replace(made, final=True))
    assert not drawn
    # those of another recipe are moved away
    finetune(replace(made, folds=[], final=True, seed=1))
    assert "has results of another recipe (['seed'])" in caplog.text
    assert (folder / "results.md.old-1").read_bytes() == tables["results.md"] and not (folder / "results.md").exists()
    assert json.loads((folder / "results.json").read_text())["folds"] == []
