"""A validation share inside the training folds: what is held out, measured, kept and stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification
from bridle_hf.data import DataArguments, LabelError, load_examples
from bridle_hf.finetuning import finetune as finetuning
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune
from bridle_hf.finetuning.validation import best_record, hold_out

HIDING = {"drop_path_rate": 0.3, "classifier_mask_ratio": [0.3, 0.3]}  # what draws random numbers in the model


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    def make(folder="run", **training):
        training = {"epochs": 4, "batch_size": 4, "warmup_epochs": 1, "validation_share": 0.25} | training
        return FinetuneRecipe(
            model=str(pretrained),
            output_dir=str(tmp_path / folder),
            data=DataArguments(dataset=str(tones), label_column="sound", fold_column="fold"),
            folds=[1],
            config=HIDING,
            training=FinetuneTraining(**training),
        )

    return make


@pytest.fixture
def measured(monkeypatch):
    """`measured.extend(...)`: the validation accuracy of each epoch instead of the real one."""
    values, score_sound = [], finetuning.score_sound

    def call(what, *given):
        scores = score_sound(what, *given)
        return scores | {"accuracy": values.pop(0)} if "validation" in what and values else scores

    monkeypatch.setattr(finetuning, "score_sound", call)
    return values


def weights(recipe):
    return load_file(f"{recipe.output_dir}/fold-1/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def curves(recipe):
    return [json.loads(line) for line in Path(recipe.output_dir, "fold-1", "metrics.jsonl").read_text().splitlines()]


def test_each_class_gives_its_share():
    labels = np.repeat([0, 1, 2, 3], [41, 20, 8, 1])
    rows = np.flatnonzero(np.arange(70) != 3)  # one of class 0 is in the test fold
    train, held = hold_out(labels, rows, 0.25, seed=0)
    assert sorted(train + held) == rows.tolist() and train == sorted(train) and held == sorted(held)
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 5, 2, 0]
    assert hold_out(labels, rows, 0.25, seed=0) == (train, held) != hold_out(labels, rows, 0.25, seed=1)
    for seed in range(20):
        train, held = hold_out(labels, rows, 0.9, seed)
        assert set(labels[train]) == {0, 1, 2, 3} and len(held) >= 60


def test_of_several_labels_the_rarest_counts():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 5)) < [0.9, 0.5, 0.1, 0.05, 0]).astype(np.int8)
    labels[7, 4] = 1
    train, held = hold_out(labels, range(400), 0.2, seed=0)
    assert len(held) in (79, 80) and not set(train) & set(held)
    assert 7 in train
    np.testing.assert_allclose(labels[held].sum(axis=0)[:4], 0.2 * labels.sum(axis=0)[:4], rtol=0.25, atol=1)


def test_the_better_record_is_that_of_the_higher_measure_then_of_the_lower_loss():
    values = [(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.7, 0.8), (float("nan"), 0.1), (0.7, float("nan"))]
    history = [{"step": s, "eval_accuracy": a, "eval_loss": x} for s, (a, x) in enumerate(values)]
    assert best_record([{"loss": 1.0, "step": 0}, *history])["step"] == 2
    assert best_record([{"loss": 1.0, "step": 0}]) is None
    # accuracy decides although the precision is better elsewhere
    assert best_record([history[1] | {"eval_mean_average_precision": 0.1}, history[0]])["step"] == 1


def test_what_is_held_out_is_measured_and_never_trained_on(recipe, drawn):
    """The record of the best epoch is what the saved model gives, computed by torch alone."""
    made = recipe(keep="best", epochs=6)
    results = finetune(made)
    folder = Path(made.output_dir, "fold-1")
    model = BridleForAudioClassification.from_pretrained(folder).eval()
    examples = load_examples(made.data, BridleFeatureExtractor.from_pretrained(folder))
    training = {row for rows in drawn for row in rows}
    held = sorted(set(np.flatnonzero(examples.folds != 1).tolist()) - training)
    assert len(held) == 4 and np.bincount(examples.labels[held]).tolist() == [2, 2]
    assert not training & set(np.flatnonzero(examples.folds == 1))
    with torch.no_grad():
        logits = model(**{name: torch.as_tensor(value) for name, value in examples.batch(held).items()}).logits
    labels = torch.as_tensor(examples.labels[held])
    records = curves(made)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy"} <= set(each) for each in records)
    (kept,) = results["epochs"]
    best = max(records, key=lambda record: (record["eval_accuracy"], -record["eval_loss"]))
    assert best["epoch"] == kept == json.loads((folder / "fold.json").read_text())["epoch"]
    assert best["eval_loss"] == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-5)
    assert best["eval_accuracy"] == (logits.argmax(1) == labels).float().mean().item()
    assert not list(folder.glob("checkpoint-*"))
    peak = max(record["learning_rate"] for record in records)
    assert peak <= made.training.learning_rate and peak > 0.9 * made.training.learning_rate  # of the head


def test_measuring_leaves_the_training_as_it_is(recipe):
    often, once = recipe("often"), recipe("once", eval_epochs=3)
    finetune(often)
    finetune(once)
    assert same(weights(often), weights(once))
    assert [record["epoch"] for record in curves(once) if "eval_loss" in record] == [3, 4]


def test_patience_ends_a_fold_and_the_best_epoch_is_kept(recipe, drawn, measured):
    measured.extend([0.5, 0.9, 0.8, 0.8])
    stopped = recipe("stopped", epochs=10, patience=2, keep="best")
    assert finetune(stopped)["epochs"] == [2] and len(drawn) == 4 * 3
    measured.clear()
    measured.extend([0.5, 0.9, 0.8, 0.8])
    last = recipe("last", epochs=10, patience=2)
    assert finetune(last)["epochs"] == [4]
    measured.clear()
    measured.extend([0.5, 0.9] + [0.8] * 8)
    whole = recipe("whole", epochs=10, keep="best")
    assert finetune(whole)["epochs"] == [2]
    assert same(weights(whole), weights(stopped)) and not same(weights(stopped), weights(last))
    assert curves(whole)[:4] == curves(stopped) == curves(last)


@pytest.mark.parametrize("stop_at", [5, 8, 11])  # 3 steps an epoch
def test_a_killed_fold_stops_and_keeps_as_one_left_alone(recipe, drawn, monkeypatch, stop_at):
    """The measures follow from the weights here, so that both runs see the same ones."""
    score_sound = finetuning.score_sound

    def falling(what, *given):
        scores = score_sound(what, *given)
        return scores | {"accuracy": round(scores["loss"], 2)} if "validation" in what else scores

    monkeypatch.setattr(finetuning, "score_sound", falling)
    whole, killed = (recipe(folder, epochs=8, patience=3, keep="best") for folder in ("whole", "killed"))
    expected = finetune(whole)
    drawn.clear()
    drawn.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        finetune(killed)
    drawn.stop_at = None
    assert finetune(killed) == expected
    assert same(weights(killed), weights(whole)) and curves(killed) == curves(whole)
    assert not list(Path(killed.output_dir).glob("*/checkpoint-*"))


def test_the_best_checkpoint_stays_and_its_loss_costs_epochs_alone(recipe, drawn, measured, tmp_path):
    made = recipe("killed", epochs=6, keep="best")
    measured.extend([0.9, 0.8, 0.8, 0.8])
    drawn.stop_at = 14
    with pytest.raises(KeyboardInterrupt):
        finetune(made)
    names = sorted(path.name for path in Path(made.output_dir, "fold-1").glob("checkpoint-*"))
    assert names == ["checkpoint-12", "checkpoint-3", "checkpoint-9"]
    drawn.stop_at = None
    damaged = recipe("damaged", epochs=6, keep="best")
    shutil.copytree(made.output_dir, damaged.output_dir)
    Path(damaged.output_dir, "fold-1", "checkpoint-3", "model.safetensors").write_bytes(b"")
    results = []
    for each, values, steps in ((made, [0.8, 0.8], 6), (damaged, [0.9] + 5 * [0.8], 18)):
        measured.clear()
        measured.extend(values)
        drawn.clear()
        results.append(finetune(each))
        assert len(drawn) == steps
    assert results[0] == results[1] and results[0]["epochs"] == [1] and same(weights(made), weights(damaged))


def test_curves_go_to_the_tracker(recipe):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = recipe(epochs=2, tracker="tensorboard")
    finetune(made)
    (file,) = Path(made.output_dir, "fold-1", "tensorboard").iterdir()
    log = events.EventAccumulator(str(file.parent))
    log.Reload()
    for name in ("loss", "learning_rate", "eval_loss", "eval_accuracy"):
        assert [event.value for event in log.Scalars(name)] == pytest.approx([each[name] for each in curves(made)])
    # another tracker is no other recipe
    before = Path(made.output_dir, "fold-1", "model.safetensors").stat().st_mtime_ns
    finetune(recipe(epochs=2))
    assert Path(made.output_dir, "fold-1", "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"validation_share": 1.0}, "`validation_share` is 1.0; it takes a share of at least 0, below 1"),
        ({"validation_share": 0.0, "patience": 3}, "`patience` is 3; it takes a `validation_share` above 0"),
        ({"validation_share": 0.0, "keep": "best"}, "`keep` is 'best'; it takes a `validation_share` above 0"),
        ({"patience": 0}, "`patience` is 0; it takes a whole number of at least 1, or null"),
        ({"eval_epochs": 0}, "`eval_epochs` is 0"),
        ({"tracker": "tensorbord"}, "`tracker` is 'tensorbord'; it takes null or one of .*tensorboard"),
    ],
)
def test_what_does_not_go_together_is_named(recipe, training, message):
    with pytest.raises(ValueError, match=message):
        recipe(**training)


def test_a_share_without_a_clip_is_named(recipe):
    with pytest.raises(LabelError, match="`training.validation_share` is 0.01: none of the 16 training clips of fold"):
        finetune(recipe(validation_share=0.01))
