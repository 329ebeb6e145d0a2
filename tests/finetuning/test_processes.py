"""Fine-tuning with two processes: NaN in one process, a damaged checkpoint, and resuming with validation or LoRA."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import fork, join
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification
from bridle_hf.data import DataArguments, Examples, load_examples
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune
from bridle_hf.finetuning.validation import hold_out

CLIP = 20  # of the clips outside fold 1; one process of the two draws it, in each epoch once


@pytest.fixture
def recipe(tones, pretrained, tmp_path):
    return FinetuneRecipe(
        model=str(pretrained),
        output_dir=str(tmp_path / "run"),
        data=DataArguments(dataset=str(tones), label_column="sound", fold_column="fold"),
        folds=[1],
        config={"drop_path_rate": 0.3, "classifier_mask_ratio": [0.3, 0.3]},  # what draws random numbers
        training=FinetuneTraining(epochs=4, batch_size=2, warmup_epochs=1, mixup=0.0),
    )


def spoilt(recipe, epoch):
    """Fine-tuning in which a clip holds NaN from an epoch on."""
    batch, seen = Examples.training_batch, []

    def spoil(self, rows, rng):
        values = batch(self, rows, rng)
        seen.extend(rows)
        if CLIP in rows and len(seen) > 8 * (epoch - 1):  # a process has 8 of the 16 clips of an epoch
            values["input_values"][rows.index(CLIP)] = np.nan
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "training_batch", spoil)
        finetune(recipe)


def killed(recipe, steps):
    """Fine-tuning whose processes all end before a step."""
    batch, seen = Examples.training_batch, []

    def end(self, rows, rng):
        seen.append(rows)
        if len(seen) > steps:
            os._exit(9)
        return batch(self, rows, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "training_batch", end)
        finetune(recipe)


def in_two(function, *arguments, errors, exitcode=0):
    """Run a function in two processes, and give what they wrote to standard error."""
    join(fork(function, *arguments, errors=errors, ranks=2), errors, exitcode)
    return errors.read_text()


@pytest.fixture
def whole(recipe, tmp_path):
    """The weights of a run that was left alone."""
    made = replace(recipe, output_dir=str(tmp_path / "whole"))
    in_two(finetune, made, errors=tmp_path / "whole-errors")
    return load_file(tmp_path / "whole" / "fold-1" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_bad_step_of_one_process_stops_both_and_changes_nothing(recipe, whole, tmp_path):
    said = in_two(spoilt, recipe, 3, errors=tmp_path / "errors", exitcode=1)
    ends = [line for line in said.splitlines() if line.startswith("FloatingPointError: step ")]
    assert len(ends) == 2 and len(set(ends)) == 1  # both know of it, whichever drew the clip
    assert f"NaN or inf came with these clips: tone.wav (row {CLIP}). Leave out" in ends[0]
    fold = Path(recipe.output_dir, "fold-1")
    assert not (fold / "model.safetensors").exists()
    assert sorted(path.name for path in fold.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    in_two(finetune, recipe, errors=tmp_path / "more")
    assert same(load_file(fold / "model.safetensors"), whole)


def test_a_damaged_checkpoint_is_passed_over_by_both(recipe, whole, tmp_path):
    in_two(killed, recipe, 11, errors=tmp_path / "errors", exitcode=9)
    fold = Path(recipe.output_dir, "fold-1")
    weights = fold / "checkpoint-8" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x40
    weights.write_bytes(content)
    in_two(finetune, recipe, errors=tmp_path / "more")
    assert same(load_file(fold / "model.safetensors"), whole)


@pytest.mark.parametrize(
    "chosen",
    [
        {"validation_share": 0.25, "keep": "best", "patience": 3},
        {"validation_share": 0.25, "keep": "best", "lora_rank": 2, "lora_dropout": 0.1, "layer_decay": None},
    ],
    ids=["patience", "lora"],
)
def test_a_killed_fold_with_validation_goes_on_as_one_left_alone(recipe, tmp_path, chosen):
    """The resumed run equals an uninterrupted one, and the saved weights reproduce the recorded validation loss."""
    if "lora_rank" in chosen:
        pytest.importorskip("peft", reason="peft is not installed: nothing of LoRA is tested")
    recipe.training = replace(recipe.training, epochs=5, warmup_epochs=0, learning_rate=5e-3, **chosen)
    whole, cut = (replace(recipe, output_dir=str(tmp_path / name)) for name in ("left-alone", "killed"))
    in_two(finetune, whole, errors=tmp_path / "errors-whole")
    in_two(killed, cut, 7, errors=tmp_path / "errors-killed", exitcode=9)
    in_two(finetune, cut, errors=tmp_path / "errors-more")
    one, other = (Path(each.output_dir, "fold-1") for each in (whole, cut))
    assert same(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()

    examples = load_examples(recipe.data, BridleFeatureExtractor.from_pretrained(one))
    rows = np.flatnonzero(examples.folds != 1)
    _, held = hold_out(examples.labels, rows, 0.25, recipe.seed)
    model = BridleForAudioClassification.from_pretrained(one).eval()
    with torch.no_grad():
        logits = model(**{name: torch.as_tensor(value) for name, value in examples.batch(held).items()}).logits
    epoch = json.loads((one / "fold.json").read_text())["epoch"]
    records = map(json.loads, (one / "metrics.jsonl").read_text().splitlines())
    (kept,) = (record for record in records if record["epoch"] == epoch)
    labels = torch.as_tensor(examples.labels[held])
    assert kept["eval_loss"] == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-4)
