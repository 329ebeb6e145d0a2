"""Fine-tuning that is stopped, fails or is started again: what is kept, and what it goes on to."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.optim import AdamW
from transformers import TrainerState

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification
from bridle_hf.data import DataArguments, Examples
from bridle_hf.finetuning import finetune as finetuning
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune
from bridle_hf.finetuning.folds import folder_names
from bridle_hf.hub.card import read_finetuning

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
    fold = tmp_path / "killed" / "fold-1"
    assert sorted(path.name for path in fold.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"] or training
    (fold / "checkpoint-999").mkdir()  # one that was being written
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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_fold_whose_model_is_damaged_is_trained_anew(recipe, drawn, caplog, name):
    run = replace(recipe(epochs=1, warmup_epochs=0), final=True)
    expected = finetune(run)
    for folder, damage in (("fold-1", b"{"), ("final", None)):
        file = Path(run.output_dir) / folder / name
        whole = file.read_bytes()
        file.unlink() if damage is None else file.write_bytes(damage)
        caplog.clear()
        assert finetune(run) == expected and f"{folder} is damaged" in caplog.text
        assert file.read_bytes() == whole


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
    manifest = state.with_name("manifest.json")
    sums = json.loads(manifest.read_text()) | {state.name: hashlib.sha256(state.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(sums))
    with pytest.raises(ValueError, match="of a run of 8 steps and this one takes 16: start it with as many processes"):
        finetune(made)
    assert state.is_file()


@pytest.fixture
def killed(recipe, drawn):
    """A recipe whose run ended in its third epoch, with checkpoints after the first and the second."""
    made = recipe("killed")
    drawn.stop_at = 11
    with pytest.raises(KeyboardInterrupt):
        finetune(made)
    drawn.clear()
    drawn.stop_at = None
    return made


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


DAMAGE = [
    ("model.safetensors", flip),
    ("optimizer.pt", cut),
    ("scheduler.pt", flip),
    ("rng_state.pth", cut),
    ("trainer_state.json", lambda path: path.write_bytes(b"")),  # as a full disk leaves it
    ("trainer_state.json", Path.unlink),
    ("manifest.json", Path.unlink),
    ("manifest.json", cut),
]


def test_a_damaged_checkpoint_costs_the_epochs_since_the_one_before(recipe, drawn, killed, tmp_path, caplog):
    whole = recipe("whole")
    expected = finetune(whole)
    for number, (name, damage) in enumerate(DAMAGE):
        made = replace(killed, output_dir=str(tmp_path / f"damaged-{number}"))
        shutil.copytree(killed.output_dir, made.output_dir)
        damage(Path(made.output_dir, "fold-1", "checkpoint-8", name))
        drawn.clear()
        assert finetune(made) == expected and len(drawn) == 12
        assert f"passing over {made.output_dir}/fold-1/checkpoint-8, which is damaged" in caplog.text
        assert same(weights(made), weights(whole))


def test_damage_to_all_checkpoints_costs_the_fold(recipe, drawn, killed):
    for path in Path(killed.output_dir).glob("fold-1/checkpoint-*/model.safetensors"):
        flip(path)
    finetune(killed)
    assert len(drawn) == 16


def test_a_full_disk_costs_the_epochs_since_the_last_checkpoint(recipe, drawn, monkeypatch):
    """The file that is being written stays behind, empty."""
    made, save = recipe(), TrainerState.save_to_json

    def fail(self, path):
        if self.global_step < 8:
            return save(self, path)
        Path(path).write_bytes(b"")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", fail)
        with pytest.raises(OSError, match="No space left"):
            finetune(made)
    drawn.clear()
    results = finetune(made)
    assert len(drawn) == 12 and results == finetune(recipe("whole"))


def test_other_folders_are_no_checkpoints(killed, drawn):
    own = Path(killed.output_dir, "fold-1", "checkpoint-8.backup")
    shutil.copytree(own.with_name("checkpoint-8"), own)
    finetune(killed)
    assert own.is_dir() and len(drawn) == 8


def test_a_fold_of_other_clips_is_not_done(recipe, drawn, tones, tmp_path, caplog):
    rows = Dataset.from_parquet(str(tones / "train.parquet"))
    folder = tmp_path / "set"
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    made = recipe(data={"dataset": str(folder)})
    finetune(made)
    changes = [rows.select(range(20)), rows.map(lambda row: {"sound": row["sound"] + "er"})]
    changes.append(rows.map(lambda row, index: {"fold": (index + 1) // 8 % 3 + 1}, with_indices=True))
    for changed in changes:
        drawn.clear()
        caplog.clear()
        changed.to_parquet(folder / "train.parquet")
        finetune(made)
        assert drawn and "is of another recipe (data_read." in caplog.text
    assert len(list((tmp_path / "run").glob("fold-1.old-*"))) == 3


@pytest.mark.parametrize(("loss_alone", "accumulation"), [(False, 1), (True, 1), (False, 2)])
def test_a_step_that_is_not_finite_changes_nothing(recipe, drawn, monkeypatch, loss_alone, accumulation):
    """The run stops at the step and names the clip; the checkpoints are those of the epochs before."""
    training = {"batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation, "mixup": 0.0}
    made, whole, named = (
        recipe(**training),
        recipe("whole", **training),
        r"NaN or inf came with these clips: tone.wav \(row 20\)\.",
    )
    batch, saved = Examples.training_batch, []

    def spoil(self, rows, rng):
        values = batch(self, rows, rng)
        if 20 in rows and len(drawn) > 8 * accumulation:
            values["input_values"][rows.index(20)] = np.nan
        return values

    if loss_alone:
        monkeypatch.setitem(
            finetuning.LOSSES, "cross_entropy", once_infinite(finetuning.LOSSES["cross_entropy"], drawn)
        )
        named = "The clips of the step: tone.wav"
    else:
        monkeypatch.setattr(Examples, "training_batch", spoil)
    monkeypatch.setattr(AdamW, "step", counted(AdamW.step, saved))
    with pytest.raises(FloatingPointError, match=f"loss .*; it changed no weight.*{named}"):
        finetune(made)
    assert 8 <= len(saved) < 12  # steps of the third epoch up to the bad one
    fold = Path(made.output_dir, "fold-1")
    assert not (fold / "model.safetensors").exists()
    monkeypatch.undo()
    finetune(made)
    finetune(whole)
    assert same(weights(made), weights(whole))


def once_infinite(loss, drawn):
    """A loss that is inf from the ninth batch on, while its gradient stays what it was."""
    return lambda *given, **named: loss(*given, **named) + (np.inf if len(drawn) > 8 else 0.0)


def counted(step, calls):
    def call(self, *given, **named):
        calls.append(1)
        return step(self, *given, **named)

    return call


def test_clips_that_give_nan_are_left_out_of_a_score(recipe, monkeypatch, caplog):
    predict = finetuning.predict

    def spoil(*given):
        logits = predict(*given)
        logits[3] = np.nan
        return logits

    monkeypatch.setattr(finetuning, "predict", spoil)
    results = finetune(recipe())
    assert results["accuracy"] * 7 == pytest.approx(round(results["accuracy"] * 7))
    assert "fold 1 is scored without 1 clips that give NaN or inf: tone.wav (row 3)" in caplog.text


FOLDS = ["1", "train", "A", "a", "a/b", "a_b", "../../home", "", "x" * 300, "1.0", "..", "1.old-1", "é", "a\\b", "a\0b"]


def test_folders_of_folds_lie_side_by_side():
    names = folder_names(FOLDS)
    assert [names[fold] for fold in ("1", "train", "a_b", "1.0", "é")] == [
        "fold-1", "fold-train", "fold-a_b", "fold-1.0", "fold-é",
    ]  # fmt: skip
    assert len({name.casefold() for name in names.values()}) == len(FOLDS)
    assert all(Path(name).name == name and len(name.encode()) < 255 and "\0" not in name for name in names.values())
    assert not names["1.old-1"].endswith(".old-1")  # what `set_aside` calls a folder
    assert folder_names([2, 2.5, True]) == {2: "fold-2", 2.5: "fold-2.5", True: "fold-True"}


def test_a_fold_s_value_leads_nowhere(recipe, tones, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("precious")
    folds = ["1", "1/../../../home", "a/b", "y" * 300]
    rows = Dataset.from_parquet(str(tones / "train.parquet"))
    rows = rows.remove_columns("fold").add_column("fold", [folds[row // 2 % 4] for row in range(24)])
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    made = recipe("runs/mine", folds=folds, data={"dataset": str(tmp_path / "set")}, epochs=1)
    results = finetune(made)
    assert results["folds"] == folds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "runs", "set"]
    assert [path.name for path in home.iterdir()] == ["thesis.txt"] and len(list((tmp_path / "runs").iterdir())) == 1
    models = sorted(path.parent for path in (tmp_path / "runs" / "mine").rglob("model.safetensors"))
    assert len(models) == 4 and all(model.parent == tmp_path / "runs" / "mine" for model in models)
    assert {json.loads((model / "fold.json").read_text())["fold"] for model in models} == set(folds)
    assert {read_finetuning(model)["tested"] for model in models} == set(folds)
