import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Value
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments, pipeline

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification
from bridle_hf.cli.finetune import say_what_is_there
from bridle_hf.cli.main import main as bridle
from bridle_hf.data import DataArguments, LabelError, audio, load_examples
from bridle_hf.finetuning import finetune as finetuning
from bridle_hf.finetuning.finetune import (
    FinetuneRecipe,
    FinetuneTraining,
    TrainingBatches,
    build_classifier,
    finetune,
    score,
)
from bridle_hf.finetuning.trainer import FoldTrainer
from bridle_hf.training import RecipeError, load_recipe


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    def make(**changes):
        training = {"epochs": 12, "batch_size": 4, "warmup_epochs": 1, "learning_rate": 5e-3, "layer_decay": 1.0}
        data = {"dataset": str(tones), "label_column": "sound", "fold_column": "fold"}
        return FinetuneRecipe(
            model=changes.pop("model", str(pretrained)),
            output_dir=str(tmp_path / "run"),
            data=DataArguments(**data | changes.pop("data", {})),
            training=FinetuneTraining(**training | changes.pop("training", {})),
            **changes,
        )

    return make


def test_folds_are_learned_reported_and_saved_for_the_pipeline(recipe, tone, tmp_path):
    made = recipe(folds=[1, 3], config={"drop_path_rate": 0.1, "classifier_mask_ratio": [0.2, 0.2]})
    results = finetune(made)
    assert load_recipe(tmp_path / "run" / "finetune.yaml", cls=FinetuneRecipe) == made
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert results["folds"] == [1, 3] and results["accuracy"] == np.mean(results["per_fold"])
    assert results["accuracy"] >= 0.9 and results["mean_average_precision"] >= 0.9
    classify = pipeline("audio-classification", model=str(tmp_path / "run" / "fold-3"))
    assert classify.model.config.classifier_mask_ratio == [0.2, 0.2]
    for label, name in enumerate(("low", "high")):
        best = classify({"array": tone(label, 100).astype(np.float32), "sampling_rate": 16000})[0]
        assert best["label"] == name and best["score"] > 0.6
    weights = tmp_path / "run" / "fold-1" / "model.safetensors"
    assert weights.stat().st_mode & 0o044 == weights.parent.stat().st_mode & 0o044  # whoever may read the folder


def test_test_clips_are_seen_whole(recipe, tmp_path, monkeypatch):
    """No patch hidden, no path dropped: what is scored is what the saved model says."""
    scored = []
    monkeypatch.setattr(finetuning, "score", lambda logits, labels: scored.append(logits) or score(logits, labels))
    made = recipe(
        folds=[1], training={"epochs": 1}, config={"drop_path_rate": 0.5, "classifier_mask_ratio": [0.5, 0.5]}
    )
    finetune(made)
    folder = tmp_path / "run" / "fold-1"
    model = BridleForAudioClassification.from_pretrained(folder).eval()
    examples = load_examples(made.data, BridleFeatureExtractor.from_pretrained(folder))
    batch = examples.batch(np.flatnonzero(examples.folds == 1).tolist())
    with torch.no_grad():
        logits = model(**{name: torch.as_tensor(value) for name, value in batch.items()}).logits
    np.testing.assert_allclose(scored[0], logits.numpy(), atol=1e-5)


def test_binary_loss_in_bf16(recipe):
    results = finetune(recipe(folds=[2], training={"loss": "binary_cross_entropy", "mixed_precision": "bf16"}))
    assert results["accuracy"] >= 0.9


def test_layer_decay_of_zero_trains_the_head_alone(recipe, pretrained, tmp_path, monkeypatch):
    check, learning = FoldTrainer.check_step, set()

    def note_gradients(self):
        learning.update(name for name, parameter in self.model.named_parameters() if parameter.grad is not None)
        check(self)

    monkeypatch.setattr(FoldTrainer, "check_step", note_gradients)
    finetune(recipe(folds=[1], training={"epochs": 1, "layer_decay": 0.0}))
    assert learning == {"layernorm.weight", "layernorm.bias", "classifier.weight", "classifier.bias"}
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "run" / "fold-1"))
    same = [name for name in after if name in before]
    assert len(same) > 20 and all(torch.equal(before[name], after[name]) for name in same)
    assert not torch.equal(after["classifier.bias"], torch.zeros(2))


def test_accumulated_batches_equal_one_large_batch(recipe, tmp_path):
    weights = []
    for size, accumulation in ((8, 1), (4, 2)):
        training = {"epochs": 2, "batch_size": size, "gradient_accumulation_steps": accumulation, "mixup": 0.0}
        finetune(recipe(folds=[1], training=training, data={"roll": False, "gain": False}))
        weights.append(load_file(tmp_path / "run" / "fold-1" / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=2e-4, rtol=1e-3)


def test_of_several_gpus_without_a_launcher_one_is_used(recipe, monkeypatch, caplog):
    begin, draw, drawn = TrainingArguments.__post_init__, TrainingBatches.__call__, []

    def with_gpus(self):
        begin(self)
        assert self.n_gpu == 0  # this sets up the devices
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_gpus)
    monkeypatch.setattr(TrainingBatches, "__call__", lambda self, rows: drawn.append(len(rows)) or draw(self, rows))
    finetune(recipe(folds=[1], training={"epochs": 1}))
    assert drawn == [4, 4, 4, 4]
    assert caplog.text.count("one of 2 GPUs is used; started by `accelerate launch` all are") == 1


def test_from_scratch_is_the_architecture_without_the_weights(recipe, pretrained):
    warm = build_classifier(recipe(), pretrained, ["low", "high"])
    torch.manual_seed(1)
    cold = build_classifier(recipe(from_scratch=True), pretrained, ["low", "high"])
    stored = load_file(pretrained / "model.safetensors")["bridle.layers.0.mlp.fc1.weight"]
    names = {name: parameter for name, parameter in warm.named_parameters() if parameter.shape == stored.shape}
    assert any(torch.equal(parameter, stored) for parameter in names.values())
    assert not any(torch.equal(parameter, stored) for parameter in cold.parameters() if parameter.shape == stored.shape)
    assert [p.shape for p in warm.parameters()] == [p.shape for p in cold.parameters()]
    assert warm.config.id2label == cold.config.id2label == {0: "low", 1: "high"}


def test_mixed_clips_carry_mixed_targets_and_the_longer_mask(padded_examples):
    # Each clip is constant, at the number of its class, so that a mixed clip shows its own target.
    labels = np.arange(8) % 4
    features = np.repeat(labels, 48 * 64).reshape(8, 48, 64).astype(np.float32)
    mask = np.ones((8, 48), dtype=np.int64)
    settings = FinetuneTraining(mixup=1.0)
    batch = TrainingBatches(padded_examples(features, mask, labels), settings)(list(range(8)))
    expected = batch["labels"] @ torch.arange(4.0)  # (8,)
    torch.testing.assert_close(batch["input_values"], expected[:, None, None].expand(8, 48, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(8))
    assert ((batch["labels"] > 0.05) & (batch["labels"] < 0.95)).any()

    mask[::2, 16:] = 0
    batch = TrainingBatches(padded_examples(features, mask, labels), settings)(list(range(8)))
    lengths = batch["attention_mask"].sum(dim=1)
    assert set(lengths.tolist()) <= {16, 48}
    assert (batch["input_values"][lengths == 16][:, 16:] == 0).all()
    longer = batch["input_values"].abs().sum(dim=2) > 0  # a frame that is not zero is not masked
    assert not (longer & (batch["attention_mask"] == 0)).any()


def test_one_model_a_fold(recipe, pretrained, tmp_path):
    for fold in (1, 2):
        (tmp_path / f"pretrained-{fold}").symlink_to(pretrained)
    made = recipe(model=str(tmp_path / "pretrained-{fold}"), folds=[1, 2], training={"epochs": 1})
    assert finetune(made)["folds"] == [1, 2]
    with pytest.raises(ValueError, match="`folds` is missing"):
        recipe(model="pretrained-{fold}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"cutmix": 0.5}}, "`training.cutmix` is 0.5"),
        ({"data": {"test_views": (3, 1)}}, r"`data.test_views` is \(3, 1\); audio takes"),
    ],
)
def test_options_of_other_modalities_are_named(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        finetune(recipe(**changes))


def test_unknown_fold_is_named(recipe):
    with pytest.raises(ValueError, match=r"`folds` names 7; the data has \[1, 2, 3\]"):
        finetune(recipe(folds=[7]))


def test_folds_and_labels_are_checked_before_a_clip_is_decoded(recipe, tones, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "decode_audio", lambda *_: pytest.fail("a clip was decoded"))
    rows = Dataset.from_parquet(str(tones / "train.parquet"))

    def refused(message, rows=rows, **changes):
        data = {"dataset": str(tmp_path / "set")} | changes.pop("data", {})
        (tmp_path / "set").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "set" / "train.parquet")
        with pytest.raises(LabelError, match=message):
            finetune(recipe(data=data, **changes))

    def labelled(make):
        return rows.map(lambda row, number: {"sound": make(row["sound"], number)}, with_indices=True)

    drawn = {"fold_column": None}
    refused("`folds` names 7", folds=[7])
    refused("all clips are of one class, 'low'", labelled(lambda *_: "low"))
    refused("the largest class has 3 clips, too few to draw 5 folds", labelled(lambda _, n: f"{n // 3}"), data=drawn)
    refused("'cross_entropy'; clips with several labels take binary", rows.map(lambda row: {"sound": [row["sound"]]}))
    both = labelled(lambda sound, number: "high,low" if number == 5 else sound)
    for name, why in {
        "high,low": "several labels are a list",
        "high; low": "several labels are a list",
        "['high', 'low']": "a list as text; a csv file holds none",
    }.items():
        joined = both.map(lambda row, name=name: {"sound": name if "," in row["sound"] else row["sound"]})
        refused(why, joined, training={"loss": "binary_cross_entropy"})


def test_commas_in_the_names_of_single_classes_are_no_separators():
    assert finetuning.joined_label(["Accelerating, revving", "Dog, bark", "Dog, howl", "rain"]) is None
    assert finetuning.joined_label(["a,b", "b,c", "c,a"]) == "a,b"


def test_fewer_epochs_than_those_of_the_warm_up_are_said(caplog):
    FinetuneTraining(epochs=3, warmup_epochs=2)
    assert not caplog.messages
    FinetuneTraining(epochs=3, warmup_epochs=20)
    assert "training.warmup_epochs is 20 and training.epochs 3" in caplog.text


def test_a_fold_column_of_text_takes_numbers(recipe, tones, tmp_path):
    rows = Dataset.from_parquet(str(tones / "train.parquet"))
    (tmp_path / "set").mkdir()
    rows.cast_column("fold", Value("string")).to_parquet(tmp_path / "set" / "train.parquet")
    results = finetune(recipe(data={"dataset": str(tmp_path / "set")}, folds=[3], training={"epochs": 1}))
    assert results["folds"] == ["3"]


def test_a_classifier_goes_on_with_its_head_for_the_same_classes_alone(recipe, tmp_path, caplog):
    finetune(recipe(folds=[1], training={"epochs": 1}))
    fold = str(tmp_path / "run" / "fold-1")
    head = BridleForAudioClassification.from_pretrained(fold).classifier
    config = json.loads(Path(fold, "config.json").read_text())
    for names in (config["id2label"], dict(sorted(config["id2label"].items(), reverse=True))):  # in any order
        Path(fold, "config.json").write_text(json.dumps(config | {"id2label": names}))
        same = build_classifier(recipe(model=fold), fold, ["high", "low"])
        assert torch.equal(same.classifier.weight, head.weight) and "drawn anew" not in caplog.text
    with pytest.raises(
        StrictDataclassError, match="`id2label` is {0: 'a', 1: 'a'}; it takes a name of its own for each number"
    ):
        BridleForAudioClassification.from_pretrained(fold, id2label={0: "a", 1: "a"})
    for names in (["low", "high"], ["cat", "dog"], ["cat", "dog", "high", "low"]):
        caplog.clear()
        other = build_classifier(recipe(model=fold), fold, names)
        assert "is a classifier of other classes (high, low); the head for these is drawn anew" in caplog.text
        assert other.classifier.weight.shape[0] == len(names) == other.config.num_labels == other.num_labels
        assert other.config.id2label == dict(enumerate(names))
        assert not any((row == old).all() for row in other.classifier.weight for old in head.weight)
        assert torch.equal(other.bridle.embeddings.patch_embeddings.projection.weight,
                           same.bridle.embeddings.patch_embeddings.projection.weight)  # fmt: skip


def test_a_fine_tuned_model_is_fine_tuned_further(recipe, tones, tone, tmp_path, caplog):
    """To the same classes it goes on with its head; to others with one drawn anew, which is learned."""
    caplog.set_level("INFO")
    finetune(recipe(folds=[1], training={"epochs": 2}))
    fold, first = tmp_path / "run" / "fold-1", tmp_path / "first"
    fold.rename(first)
    before = load_file(first / "model.safetensors")
    standing = {"epochs": 1, "learning_rate": 1e-9, "layer_decay": None}
    finetune(recipe(folds=[1], model=str(first), training=standing))
    after = load_file(fold / "model.safetensors")
    assert before.keys() == after.keys() and "is a classifier of these classes; its head is kept" in caplog.text
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)

    rows = Dataset.from_parquet(str(tones / "train.parquet"))
    names = {"low": ["bear", "cow"], "high": ["bird", "bat"]}
    (tmp_path / "animals").mkdir()
    others = rows.map(lambda row, number: {"sound": names[row["sound"]][number // 2 % 2]}, with_indices=True)
    others.to_parquet(tmp_path / "animals" / "train.parquet")
    data = {"dataset": str(tmp_path / "animals")}
    caplog.clear()
    finetune(recipe(folds=[1], model=str(first), data=data))
    lines = [record.message for record in caplog.records if "the head for these is drawn anew" in record.message]
    assert len(lines) == 1 and "is a classifier of other classes (high, low)" in lines[0]
    classify = pipeline("audio-classification", model=str(fold))
    scores = {found["label"]: found["score"] for found in classify(tone(0, 100).astype(np.float32), top_k=None)}
    assert set(scores) == {"bat", "bear", "bird", "cow"} and scores["bear"] + scores["cow"] > 0.6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "training.learning_rat.*learning_rate"),
        ("config.drop_path=0.1", "config.drop_path.*drop_path_rate"),
        ("training.loss=hinge", "cross_entropy"),
        ("training.mixup=2", "share between 0 and 1"),
        ("data.label_column=null", "label_column"),
        ("folds=[]", r"`folds` is \[\]; it takes at least one fold, null"),
        ("training.learning_rate=-1", "`learning_rate` is -1.0; it takes a number of at least 0"),
        ("training.weight_decay=inf", "`weight_decay` is inf; it takes"),
        ("training.mixup_alpha=0", "`mixup_alpha` is 0.0; it takes a number above 0"),
        ("training.layer_decay=2", "`layer_decay` is 2.0; it takes a factor between 0 and 1"),
    ],
)
def test_the_shipped_recipe_reads_and_bad_overrides_are_named(override, message):
    path = "audio/esc50_finetune"
    made = load_recipe(path, ["model=runs/x", "training.epochs=3"], FinetuneRecipe)
    assert made.training.epochs == 3 and made.training.layer_decay == 0.75
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, [override], FinetuneRecipe)


@pytest.mark.parametrize("command", ["finetune", "probe"])
def test_commands_say_it_in_one_line(command, recipe, tones, pretrained, tmp_path, capsys):
    given = {
        "finetune": ["audio/own_finetune", f"model={pretrained}", f"data.dataset={tones}", f"output_dir={tmp_path}"]
        + ["data.label_column=sound", "data.fold_column=fold", "folds=[7]"],
        "probe": [
            "--model",
            str(pretrained),
            "--dataset",
            str(tones),
            "--label-column",
            "sound",
            "--fold-column",
            "fold",
        ]
        + ["--folds", "7"],
    }[command]
    with pytest.raises(SystemExit, match="2"):
        bridle([command, *given])
    fold = {"finetune": "7", "probe": "'7'"}[command]
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: `folds` names {fold}; the data has [1, 2, 3].")


def test_folds_keep_the_precision_that_they_were_begun_with(recipe, tmp_path, monkeypatch):
    made = recipe(folds=[1], training={"epochs": 1, "mixed_precision": "auto", "attention": "auto"})
    monkeypatch.setattr("bridle_hf.training.auto.has_bf16_units", lambda: True)
    before = finetune(made)
    monkeypatch.setattr("bridle_hf.training.auto.has_bf16_units", lambda: False)
    assert finetune(made) == before  # and nothing is trained again: the fold's recipe is the same
    written = load_recipe(tmp_path / "run" / "finetune.yaml", cls=FinetuneRecipe).training
    assert (written.mixed_precision, written.attention) == ("bf16", "eager")
    assert not (tmp_path / "run" / "fold-1.old-1").exists()


def test_a_pretrained_model_of_nan_is_named(recipe, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "spoilt")
    weights = load_file(tmp_path / "spoilt" / "model.safetensors")
    weights["bridle.layers.0.norm1.weight"][0] = float("nan")
    save_file(weights, tmp_path / "spoilt" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="model is .*spoilt', whose weights hold NaN or inf: bridle.layers.0"):
        finetune(recipe(model=str(tmp_path / "spoilt")))
    assert not (tmp_path / "run" / "fold-1" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("final", "there", "named"),
    [
        (True, ["final/config.json"], "final --dataset ..."),
        (False, ["fold-1/config.json", "fold-2/config.json"], "fold-1 --dataset ...`; final=true trains one"),
        (False, ["fold-1/adapter_config.json"], "has the tables; final=true trains one"),  # LoRA matrices alone
    ],
)
def test_the_last_line_names_the_tables_and_what_classifies(final, there, named, tmp_path, caplog):
    caplog.set_level("INFO", "bridle_hf")
    for name in there:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    say_what_is_there(SimpleNamespace(output_dir=str(tmp_path), final=final, folds=None))
    (said,) = caplog.messages
    assert str(tmp_path / "results.md") in said and named in said
    say_what_is_there(SimpleNamespace(output_dir=str(tmp_path), final=True, folds=[]))
    assert caplog.messages[-1].startswith(f"finished: {tmp_path}") and "results.md" not in caplog.messages[-1]
