"""Fine-tuning that is stopped, fails or is started again: what is kept, and what it goes on to."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification
from bridle_hf.data import DataArguments
from bridle_hf.finetuning import finetune as finetuning
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, TrainingBatches, finetune

HIDING = {"drop_path_rate": 0.3, "classifier_mask_ratio": [0.3, 0.3]}  # what draws random numbers in the model


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    def make(folder="run", folds=(1,), model=pretrained, data=(), **training):
        data = {"dataset": str(tones), "label_column": "sound", "fold_column": "fold"} | dict(data)
        training = {"epochs": 4, "batch_size": 4, "warmup_epochs": 1} | training
        return FinetuneRecipe(
            model=str(model),
            output_dir=str(tmp_path / folder),
            data=DataArguments(**data),
            folds=list(folds),
            config=HIDING,
            training=FinetuneTraining(**training),
        )

    return make


@pytest.fixture
def drawn(monkeypatch):
    """The rows of every training batch; `drawn.stop_at` is the number of the one at which the run is killed."""

    class Drawn(list):
        stop_at = None

    rows, draw = Drawn(), TrainingBatches.__call__

    def call(self, some):
        rows.append(some)
        if len(rows) == rows.stop_at:
            raise KeyboardInterrupt
        return draw(self, some)

    monkeypatch.setattr(TrainingBatches, "__call__", call)
    return rows


def weights(recipe, fold=1):
    return load_file(f"{recipe.output_dir}/fold-{fold}/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "training",
    [{}, {"gradient_accumulation_steps": 3}, {"balanced": True, "clips_per_epoch": 14}],
    ids=["shuffled", "accumulated", "balanced"],
)
def test_a_killed_fold_goes_on_from_its_last_epoch_and_ends_the_same(recipe, drawn, tmp_path, training):
    whole, killed = (recipe(folder, **training) for folder in ("whole", "killed"))
    expected = finetune(whole)
    steps = drawn.copy()  # 4 epochs of 4 batches
    drawn.clear()
    drawn.stop_at = 11
    with pytest.raises(KeyboardInterrupt):
        finetune(killed)
    (checkpoint,) = (tmp_path / "killed" / "fold-1").glob("checkpoint-*")
    (checkpoint.parent / "checkpoint-999").mkdir()  # one that was being written
    drawn.clear()
    assert finetune(killed) == expected
    assert drawn == steps[8:]
    assert same(weights(killed), weights(whole))
    assert not list((tmp_path / "killed").glob("*/checkpoint-*"))


def test_long_folds_have_fewer_checkpoints_than_epochs(recipe, drawn, monkeypatch):
    monkeypatch.setattr(finetuning, "CHECKPOINTS", 2)
    drawn.stop_at = 15
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe())
    drawn.clear()
    drawn.stop_at = None
    finetune(recipe())
    assert len(drawn) == 8  # the last two epochs of four


def test_a_test_that_fails_does_not_cost_the_training(recipe, drawn, monkeypatch, tmp_path):
    made = recipe()

    def fail(*_):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "predict", fail)
        with pytest.raises(torch.OutOfMemoryError):
            finetune(made)
    trained = weights(made)
    BridleForAudioClassification.from_pretrained(tmp_path / "run" / "fold-1")
    BridleFeatureExtractor.from_pretrained(tmp_path / "run" / "fold-1")
    drawn.clear()
    results = finetune(made)
    assert not drawn and same(weights(made), trained)
    assert results == finetune(recipe("other"))


def test_folds_that_are_done_are_kept(recipe, drawn, tmp_path, monkeypatch):
    first, second = {"accuracy": 0.5, "d_prime": float("inf")}, {"accuracy": 1.0, "d_prime": 2.0}
    scores = [first, second]
    monkeypatch.setattr(finetuning, "score", lambda *_: scores.pop(0))
    assert finetune(recipe())["per_fold_d_prime"] == [None]
    batches = len(drawn)
    results = finetune(recipe(folds=(1, 3), data={"num_workers": 1, "cache_dir": str(tmp_path / "cache")}))
    assert len(drawn) == 2 * batches
    assert results["folds"] == [1, 3] and results["per_fold"] == [0.5, 1.0] and results["accuracy"] == 0.75
    assert results["per_fold_d_prime"] == [None, 2.0] and results["d_prime"] is None
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert finetune(recipe(folds=(1, 3))) == results and len(drawn) == 2 * batches


@pytest.mark.parametrize("done", [True, False])
def test_what_is_of_another_recipe_is_moved_away(recipe, drawn, tmp_path, caplog, done):
    made = recipe()
    drawn.stop_at = None if done else 6
    if done:
        finetune(made)
    else:
        with pytest.raises(KeyboardInterrupt):
            finetune(made)
    before = sorted(path.name for path in (tmp_path / "run" / "fold-1").iterdir())
    drawn.clear()
    drawn.stop_at = None
    changed = replace(made, training=replace(made.training, learning_rate=1e-4))
    with caplog.at_level(logging.WARNING):
        results = finetune(changed)
    assert "is of another recipe (training.learning_rate); it was moved to" in caplog.text
    assert len(drawn) == 16 and results == finetune(replace(changed, output_dir=str(tmp_path / "fresh")))
    assert sorted(path.name for path in (tmp_path / "run" / "fold-1.old-1").iterdir()) == before


def test_a_model_that_was_pretrained_anew_is_another_one(recipe, drawn, pretrained, tmp_path, caplog):
    extractor = BridleFeatureExtractor.from_pretrained(pretrained)
    model = tmp_path / "pretrained"
    model.mkdir()
    for path in pretrained.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    made = recipe(model=model)
    finetune(made)
    batches = len(drawn)
    finetune(made)
    assert len(drawn) == batches
    extractor.mean += 1
    extractor.save_pretrained(model)
    with caplog.at_level(logging.WARNING):
        finetune(made)
    assert len(drawn) == 2 * batches and "(model_files)" in caplog.text


def test_another_number_of_processes_is_named(recipe, drawn, tmp_path):
    made = recipe()
    drawn.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        finetune(made)
    (state,) = (tmp_path / "run" / "fold-1").glob("checkpoint-*/trainer_state.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"max_steps": 8}))  # as two processes write it
    with pytest.raises(ValueError, match="of a run of 8 steps and this one takes 16: start it with as many processes"):
        finetune(made)
    assert state.is_file()
