"""LoRA by peft: what trains, what is saved, and that it loads with peft and without."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from bridle_hf import BridleConfig, BridleFeatureExtractor, BridleForAudioClassification
from bridle_hf.cli.main import main as bridle
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.finetuning import lora
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune
from bridle_hf.finetuning.trainer import TrainingBatches

HIDING = {"drop_path_rate": 0.3, "classifier_mask_ratio": [0.3, 0.3]}  # what draws random numbers in the model


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed: nothing of LoRA is tested")


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    def make(folder="run", **training):
        training = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "lora_rank": 4, "layer_decay": None} | training
        return FinetuneRecipe(
            model=str(pretrained),
            output_dir=str(tmp_path / folder),
            data=DataArguments(dataset=str(tones), label_column="sound", fold_column="fold"),
            folds=[1],
            training=FinetuneTraining(**training),
        )

    return make


def weights(recipe, name="model.safetensors"):
    return load_file(Path(recipe.output_dir, "fold-1", name))


def test_what_is_saved_loads_with_the_pipeline_and_with_peft(recipe, peft, pretrained, tone):
    """Only the matrices that were aimed at differ from the pretrained ones, by a product of rank 4."""
    made = recipe(epochs=12, learning_rate=2e-2)
    results = finetune(made)
    assert results["accuracy"] >= 0.9
    before, after = load_file(pretrained / "model.safetensors"), weights(made)
    changed = {name for name in after.keys() & before.keys() if not torch.equal(before[name], after[name])}
    layers = BridleConfig.from_pretrained(pretrained).num_hidden_layers
    assert changed == {f"bridle.layers.{i}.{target}.weight" for i in range(layers) for target in lora.TARGETS}
    for name in changed:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) <= 4
    assert after["classifier.bias"].abs().sum() > 0  # drawn as zeros

    folder = Path(made.output_dir, "fold-1")
    classify = pipeline("audio-classification", model=str(folder))
    assert classify(tone(0, 100).astype(np.float32))[0]["label"] == "low"
    merged = BridleForAudioClassification.from_pretrained(folder).eval()
    base = BridleForAudioClassification.from_pretrained(pretrained, config=BridleConfig.from_pretrained(folder))
    adapted = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    examples = load_examples(made.data, BridleFeatureExtractor.from_pretrained(folder))
    batch = {name: torch.as_tensor(value) for name, value in examples.batch(list(range(8))).items()}
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, merged(**batch).logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(np.load(folder / "logits.npy"), merged(**batch).logits.detach(), atol=1e-5)


def test_a_killed_fold_goes_on_and_ends_the_same(recipe, peft, monkeypatch):
    rows, draw = [], TrainingBatches.__call__
    training = {"epochs": 4, "lora_dropout": 0.1, "validation_share": 0.25, "keep": "best", "layer_decay": 0.75}
    whole, killed = (replace(recipe(folder, **training), config=HIDING) for folder in ("whole", "killed"))
    expected = finetune(whole)

    def call(self, some):
        rows.append(some)
        if len(rows) == 8:
            raise KeyboardInterrupt
        return draw(self, some)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBatches, "__call__", call)
        with pytest.raises(KeyboardInterrupt):
            finetune(killed)
    assert finetune(killed) == expected
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = weights(whole, name), weights(killed, name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_some_matrices_alone(recipe, peft, pretrained):
    made = recipe(lora_target_modules=["attention.qkv"], lora_alpha=1.0)
    finetune(made)
    before, after = load_file(pretrained / "model.safetensors"), weights(made)
    changed = {name for name in after.keys() & before.keys() if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("attention.qkv.weight") for name in changed)


def test_without_peft_one_line_says_what_to_install(recipe, tones, pretrained, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install bridle-hf\[lora\]"):
        finetune(recipe())
    words = [f"model={pretrained}", f"data.dataset={tones}", f"output_dir={tmp_path / 'x'}", "training.lora_rank=4"]
    with pytest.raises(SystemExit, match="2"):
        bridle(["finetune", "audio/esc50_finetune", *words])
    assert 'pip install "bridle-hf[lora]"' in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lora_rank": 0}, "`lora_rank` is 0; it takes a whole number of at least 1"),
        ({"lora_rank": None, "lora_alpha": 8.0}, "`lora_alpha` is 8.0; it takes a `lora_rank`"),
        ({"lora_target_modules": ["query"]}, r"`lora_target_modules` has \['query'\]; it takes some of attention.qkv"),
        ({"lora_dropout": 2.0}, "`lora_dropout` is 2.0; it takes a share"),
    ],
)
def test_settings_that_do_not_go_are_named(recipe, training, message):
    with pytest.raises(ValueError, match=message):
        recipe(**training)
    with pytest.raises(ValueError, match="`from_scratch` is true; with `training.lora_rank` it takes false"):
        replace(recipe(), from_scratch=True)
