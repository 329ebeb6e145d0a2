"""Clips with several labels: reading, balanced drawing, fine-tuning, its measures and the pipeline."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from runs import fork, join
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.utils.data import WeightedRandomSampler
from transformers import pipeline

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification, BridleForPreTraining
from bridle_hf.data import DataArguments, Examples, load_examples
from bridle_hf.data.examples import balanced_weights
from bridle_hf.evaluation.cross_validation import check_probe
from bridle_hf.evaluation.quality import tokenizer_quality
from bridle_hf.finetuning.finetune import (
    FinetuneRecipe,
    FinetuneTraining,
    FoldTrainer,
    TrainingBatches,
    finetune,
    score,
)
from bridle_hf.training import RecipeError, load_recipe

LABELS = ([], ["low"], ["high"], ["high", "low"])


@pytest.fixture(scope="module")
def chords(tmp_path_factory, tone, to_wav):
    """36 clips with a low tone, a high one, both or none; columns audio, sounds (a list), fold (1, 2, 3)."""
    folder, rows = tmp_path_factory.mktemp("chords"), []
    for number in range(36):
        labels = LABELS[number % 4]
        noise = np.random.default_rng(number).normal(size=5600) / 100
        samples = noise + sum(tone(("low", "high").index(name), number) for name in labels)
        rows.append({"audio": to_wav(samples), "sounds": labels, "fold": number // 12 + 1})
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def extractor(pretrained):
    return BridleFeatureExtractor.from_pretrained(pretrained)


@pytest.fixture(scope="module")
def data(chords):
    return DataArguments(dataset=str(chords), label_column="sounds", fold_column="fold")


def recipe(pretrained, data, folder, **training):
    training = {"epochs": 16, "batch_size": 4, "warmup_epochs": 1, "learning_rate": 5e-3, "layer_decay": 1.0} | training
    settings = FinetuneTraining(**{"loss": "binary_cross_entropy"} | training)
    return FinetuneRecipe(model=str(pretrained), output_dir=str(folder), data=data, folds=[3], training=settings)


@pytest.mark.parametrize("in_memory", [True, False])
def test_lists_become_multi_hot_rows(data, extractor, in_memory, tmp_path):
    examples = load_examples(replace(data, in_memory=in_memory, cache_dir=str(tmp_path)), extractor)
    assert examples.label_names == ["high", "low"] and examples.labels.dtype == np.int8
    assert examples.labels.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] * 9
    assert [examples.labels_of(row) for row in range(4)] == [[], ["low"], ["high"], ["high", "low"]]


def test_numbers_take_the_dataset_s_names(tmp_path, tone, to_wav, extractor):
    sound = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": sound, "labels": List(ClassLabel(names=["a", "b", "c"]))})
    rows = [{"audio": to_wav(tone(0, 0)), "labels": labels} for labels in ([2], [0, 2])]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    examples = load_examples(DataArguments(dataset=str(tmp_path), label_column="labels"), extractor)
    assert examples.label_names == ["a", "b", "c"] and examples.labels.tolist() == [[0, 0, 1], [1, 0, 1]]


def test_labels_that_are_neither_are_named(tmp_path, tone, to_wav, extractor):
    rows = [{"audio": to_wav(tone(0, 0)), "labels": [0.5]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"'labels' must hold a list of integers or strings per sample, got \[0.5\]"):
        load_examples(DataArguments(dataset=str(tmp_path), label_column="labels"), extractor)


def test_balanced_weights_by_hand():
    # label 0 is on four clips, label 1 on two, label 2 on none
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert balanced_weights(labels).tolist() == [0.25, 0.25, 0.75, 0.75, 0.0]
    assert balanced_weights(np.array([0, 0, 0, 1])).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_a_balanced_epoch_hears_rare_labels_as_often(pretrained, chords, extractor, tmp_path, monkeypatch):
    data = DataArguments(dataset=str(chords), label_column="sounds", fold_column="fold")
    drawn = []
    original = TrainingBatches.__call__

    def count(self, rows):
        drawn.extend(self.examples.labels[rows].tolist())
        return original(self, rows)

    read = load_examples(data, extractor)
    read.labels[np.flatnonzero(read.labels[:, 0])[1:-4], 0] = 0  # "high" is rare now
    monkeypatch.setattr("bridle_hf.finetuning.finetune.load_examples", lambda *_: read)
    monkeypatch.setattr(TrainingBatches, "__call__", count)
    made = recipe(pretrained, data, tmp_path, epochs=2, balanced=True, clips_per_epoch=400, batch_size=50)
    finetune(made)
    high, low = np.array(drawn).mean(axis=0)
    assert len(drawn) == 800 and read.labels[read.folds != 3].sum(axis=0).tolist() == [1, 12]
    assert high == pytest.approx(0.5, abs=0.07) and low == pytest.approx(0.5, abs=0.07)


def draw_and_show(made, folder):
    """Fine-tuning in one of several processes; the clips of each of its steps, its warm-up and the clips of each batch
    of its test go to RANK.json."""
    steps, warm_up, tested = [], [], []
    draw, train, batch = TrainingBatches.__call__, FoldTrainer.train, Examples.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBatches, "__call__", lambda self, rows: steps.append(rows) or draw(self, rows))
        patch.setattr(
            FoldTrainer, "train", lambda self, **o: warm_up.append(self.args.warmup_steps) or train(self, **o)
        )
        patch.setattr(Examples, "batch", lambda self, rows, **o: tested.append(rows) or batch(self, rows, **o))
        finetune(made)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps([steps, warm_up, tested]))


def test_two_processes_share_out_a_balanced_epoch_and_the_test(pretrained, data, extractor, tmp_path):
    made = recipe(pretrained, data, tmp_path / "run", epochs=2, balanced=True, clips_per_epoch=40, batch_size=5)
    made.folds = [3, 2]

    def start():
        join(fork(draw_and_show, made, tmp_path, errors=tmp_path / "errors", ranks=2), tmp_path / "errors")
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    shown = start()
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 6)  # of the 24 clips outside fold 3
    generator = torch.Generator().manual_seed(made.seed)
    alone = WeightedRandomSampler(balanced_weights(labels), 40, generator=generator)
    drawn = np.array([*alone, *alone]).reshape(8, 2, 5).tolist()  # step, process, clip
    assert [steps[:8] for steps, _, _ in shown] == [[step[rank] for step in drawn] for rank in range(2)]
    assert drawn[:4] != drawn[4:]
    assert [warm_up for _, warm_up, _ in shown] == [[4, 4], [4, 4]]  # one epoch

    assert [len(tested) for _, _, tested in shown] == [2, 2]  # a batch a fold
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    examples = load_examples(data, extractor)
    for fold, precision in zip((3, 2), results["per_fold"], strict=True):
        rows = np.flatnonzero(examples.folds == fold).tolist()
        model = BridleForAudioClassification.from_pretrained(tmp_path / "run" / f"fold-{fold}").eval()
        batch = {name: torch.as_tensor(value) for name, value in examples.batch(rows).items()}
        with torch.no_grad():
            logits = model(**batch).logits.numpy()
        assert precision == pytest.approx(score(logits, examples.labels[rows])["mean_average_precision"], abs=1e-6)
    assert start() == [[[], [], []]] * 2  # nothing is done twice
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_targets_are_the_labels_of_the_clips(data, extractor):
    batch = TrainingBatches(load_examples(data, extractor), FinetuneTraining(mixup=0.0))([3, 0, 1])
    assert batch["labels"].tolist() == [[1, 1], [0, 0], [0, 1]]


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 4)) < 0.4).astype(np.int64)
    logits = labels + rng.normal(size=(50, 4))
    measured = score(logits, labels)
    assert list(measured) == ["mean_average_precision", "auc", "d_prime"]
    assert measured["mean_average_precision"] == pytest.approx(average_precision_score(labels, logits), abs=1e-6)
    assert measured["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)


def test_several_labels_are_learned_and_the_pipeline_scores_each(pretrained, data, tone, tmp_path):
    results = finetune(recipe(pretrained, data, tmp_path / "run", epochs=30, mixup=0.2))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert results["mean_average_precision"] >= 0.9 and results["per_fold"] == [results["mean_average_precision"]]
    assert results["auc"] >= 0.9 and "accuracy" not in results
    classify = pipeline("audio-classification", model=str(tmp_path / "run" / "fold-3"))
    both = (tone(0, 100) + tone(1, 100)).astype(np.float32)
    scores = {found["label"]: found["score"] for found in classify(both, top_k=None)}
    assert set(scores) == {"low", "high"} and min(scores.values()) > 0.5  # they need not sum to 1
    scores = {found["label"]: found["score"] for found in classify(tone(0, 100).astype(np.float32), top_k=None)}
    assert scores["low"] > 0.5 > scores["high"]


def test_what_takes_one_label_says_so(pretrained, data, extractor, tmp_path):
    with pytest.raises(ValueError, match="'cross_entropy'; clips with several labels take binary_cross_entropy"):
        finetune(recipe(pretrained, data, tmp_path, loss="cross_entropy"))
    with pytest.raises(ValueError, match="test_split` is missing"):
        finetune(recipe(pretrained, replace(data, fold_column=None), tmp_path))
    examples = load_examples(data, extractor)
    with pytest.raises(ValueError, match="clips have several labels; this probe takes one class a clip"):
        check_probe(examples)
    tokenizer = BridleForPreTraining.from_pretrained(pretrained).tokenizer
    assert tokenizer_quality(tokenizer, examples)["bag_of_codes"] is None


@pytest.mark.parametrize("make", [list, lambda row: [float(flag) for flag in row]])
def test_flags_are_one_class_each(pretrained, chords, tmp_path, make):
    rows = Dataset.from_parquet(str(chords / "train.parquet"))
    flags = {"": [0, 0], "low": [0, 1], "high": [1, 0], "high low": [1, 1]}
    flagged = rows.map(lambda row: {"sounds": make(flags[" ".join(row["sounds"])])})
    data = DataArguments(label_column="sounds", fold_column="fold")
    results = finetune(recipe(pretrained, data, tmp_path / "run", epochs=1), flagged)
    assert results == finetune(recipe(pretrained, data, tmp_path / "names", epochs=1), rows)
    config = json.loads((tmp_path / "run" / "fold-3" / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"}


def test_a_fold_that_cannot_be_scored_costs_its_score(pretrained, chords, tmp_path, caplog):
    """Each fold is trained, the mean is over those that have a score, and all of it is read again."""
    rows = Dataset.from_parquet(str(chords / "train.parquet"))
    calls = rows.map(lambda row, n: {"sounds": ["call"] if n < 24 and n % 2 else []}, with_indices=True)
    made = replace(
        recipe(pretrained, DataArguments(label_column="sounds", fold_column="fold"), tmp_path / "run"), folds=None
    )
    made.training.epochs = 1
    results = finetune(made, calls)
    assert results["folds"] == [1, 2, 3] and results["per_fold"][2] is results["per_fold_auc"][2] is None
    for name in ("mean_average_precision", "auc"):
        per_fold = results["per_fold" if name == "mean_average_precision" else f"per_fold_{name}"]
        assert results[name] == pytest.approx(np.mean(per_fold[:2]))
    assert "the test of some folds has no clip of a class. fold 3: call" in caplog.text
    assert "fold 3 has no mean_average_precision, auc, d_prime" in caplog.text
    assert finetune(made, calls) == results


@pytest.mark.parametrize("name", ["as20k_finetune", "as2m_finetune"])
def test_the_recipes_are_those_of_table_5(name):
    path = f"audio/{name}"
    made = load_recipe(path, cls=FinetuneRecipe)
    rate, epochs = {"as20k_finetune": (4e-4, 150), "as2m_finetune": (5e-4, 120)}[name]
    settings = made.training
    assert (settings.learning_rate, settings.epochs, settings.batch_size) == (rate, epochs, 8)
    assert settings.loss == "binary_cross_entropy" and made.config["classifier_mask_ratio"] == [0.2, 0.2]
    with pytest.raises(RecipeError, match="clips_per_epoch.*with balanced=true"):
        load_recipe(path, ["training.balanced=false", "training.clips_per_epoch=5"], cls=FinetuneRecipe)
