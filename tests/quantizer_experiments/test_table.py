"""The training of a row: it goes on where it was killed, takes every clip once an epoch, and stops at a bad loss."""

import itertools
import json
import os
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bridle_hf import SmoothedQuantizer, VectorQuantizer
from bridle_hf.losses_bridle import LossSum
from bridle_hf.quantizer_experiments.batches import Steps
from bridle_hf.quantizer_experiments.rows import run_methods
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from bridle_hf.recipes import FOLDER
from bridle_hf.training import RecipeError, load_recipe, replay

ROOT = Path(__file__).resolve().parents[2]
RECIPE = FOLDER / "wav2vec2" / "esc10_1x1024.yaml"
MODEL = (
    "{conv_dim: [8, 8, 8, 8, 8, 8, 8], hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 32, num_conv_pos_embeddings: 4, num_conv_pos_embedding_groups: 2, proj_codevector_dim: 8, "
    "num_negatives: 5, mask_time_prob: 0.5, mask_time_length: 2, layerdrop: 0.3}"
)
METHODS = (
    "[{name: gumbel, quantizer: {type: smoothed, codebook_size: 8, gumbel: hard, num_vertices: 4}}, "
    "{name: ema, quantizer: {type: vector, codebook_size: 4, kmeans_samples_per_code: 4}}]"
)


def options(clips, folder, *more):
    return [
        f"data.dataset={clips}", "data.exclude={}", "data.seconds=0.25", "data.train_split=train",
        "data.test_split=train", "batch_size=4", "steps=6", f"model={MODEL}", f"methods={METHODS}",
        "quantizer={codebook_dim: 8}", f"output_dir={folder}", *more,
    ]  # fmt: skip


def recipe(clips, folder, *more):
    return load_recipe(RECIPE, options(clips, folder, *more), Wav2Vec2Recipe)


@pytest.mark.parametrize(("name", "quantizer"), [("gumbel", SmoothedQuantizer), ("ema", VectorQuantizer)])
def test_a_killed_method_goes_on_as_if_it_had_not_been(clips, tmp_path, monkeypatch, name, quantizer):
    """Weights and codebooks are equal bit for bit, also with Gumbel noise, dropped layers and random masks and cuts."""
    run_methods(recipe(clips, tmp_path / "whole"), [name])

    killed = recipe(clips, tmp_path / "killed", "checkpoint_steps=2")
    update, calls = quantizer.update_, iter(range(6))

    def update_until_killed(self, stats):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return update(self, stats)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quantizer, "update_", update_until_killed)
        run_methods(killed, [name])
    assert [path.name for path in (tmp_path / "killed" / name / "checkpoints").iterdir()] == ["phase-00-step-00000004"]
    assert not (tmp_path / "killed" / name / "results.json").exists()
    (result,) = run_methods(killed, [name])

    whole, again = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "killed"))
    assert whole.keys() == again.keys()
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
    measured = json.loads((tmp_path / "whole" / name / "results.json").read_text())
    assert {**result, "minutes": 0} == {**measured, "minutes": 0}
    assert not (tmp_path / "killed" / name / "checkpoints").exists()  # its place is taken by the results


def test_results_of_another_recipe_are_named(clips, tmp_path, caplog):
    run_methods(recipe(clips, tmp_path, "steps=2"), ["ema"])
    assert "another recipe" not in caplog.text
    run_methods(recipe(clips, tmp_path, "steps=2", "checkpoint_steps=7", "data.num_workers=1"), ["ema"])
    assert "another recipe" not in caplog.text
    run_methods(recipe(clips, tmp_path, "steps=3", "learning_rate=0.1"), ["ema"])
    assert "the results of ema are of another recipe: steps, learning_rate" in caplog.text


@pytest.fixture
def bad_third_step(monkeypatch):
    """The contrastive loss of the third step is NaN."""
    forward, steps = Wav2Vec2Recipe.forward, itertools.count(1)

    def turns_bad(self, model, bare, batch):
        output = forward(self, model, bare, batch)
        total, count = output.losses["contrastive"]
        output.losses["contrastive"] = LossSum(total * (float("nan") if next(steps) == 3 else 1), count)
        return output

    monkeypatch.setattr(Wav2Vec2Recipe, "forward", turns_bad)


def test_a_bad_loss_ends_the_method_and_keeps_the_checkpoint_before_it(clips, tmp_path, bad_third_step):
    broken = recipe(clips, tmp_path, "checkpoint_steps=1")
    with pytest.raises(FloatingPointError, match="step 3 of gumbel: the loss is nan and the gradient norm"):
        run_methods(broken, ["gumbel"])
    (checkpoint,) = (tmp_path / "gumbel" / "checkpoints").iterdir()
    assert checkpoint.name == "phase-00-step-00000002"
    assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())
    (failure,) = (tmp_path / "gumbel" / "failure").iterdir()
    losses, gradients = replay(failure, recipe_class=Wav2Vec2Recipe)
    assert isfinite(losses["contrastive"]) and losses["loss"] > 0  # the NaN is of this test, not of the batch
    assert "quantizer.quantizer.codebooks.0.embed" in gradients


def test_a_bad_step_is_skipped_where_the_recipe_says_so(clips, tmp_path, bad_third_step, caplog):
    (result,) = run_methods(recipe(clips, tmp_path, "skip_bad_steps=1", "logging_steps=2"), ["gumbel"])
    assert isfinite(result["contrastive_loss"]) and "skipped step 3 of gumbel" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "gumbel" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 6] and lines[-1]["steps_skipped"] == 1
    assert set(lines[0]["losses"]) == {"contrastive", "quantizer"} and lines[0]["codebooks"]["cur"]


def take(steps, count):
    return [item for item, _ in zip(steps, range(count), strict=False)]


def test_every_process_takes_clips_of_its_own_and_each_clip_once_an_epoch():
    by_rank = [take(Steps(14, 3, 5, rank, 2, 0), 6) for rank in range(2)]  # 2 steps of 6 clips an epoch, 2 clips left
    for epoch in range(3):
        taken = [number for rank in by_rank for step in rank[2 * epoch : 2 * epoch + 2] for number, _ in step]
        assert len(taken) == len(set(taken)) == 12 and set(taken) <= set(range(14))
    orders = [[n for step in by_rank[0][2 * e : 2 * e + 2] for n, _ in step] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]
    seeds = [{seed for _, seed in step} for rank in by_rank for step in rank]
    assert all(len(seed) == 1 for seed in seeds) and len(set.union(*seeds)) == 12
    assert take(Steps(14, 3, 5, 1, 2, 3), 3) == by_rank[1][3:]  # from any step on
    assert take(Steps(14, 3, 6, 0, 2, 0), 1) != by_rank[0][:1]
    with pytest.raises(ValueError, match="has 5 samples; a step takes batch_size=3 on each of 2 processes"):
        Steps(5, 3, 0, 0, 2, 0)


def test_the_learning_rate_is_torch_s_warmup_and_cosine(clips, tmp_path):
    given = ["final_share=0.3", "steps=9", "learning_rate=2.0", "warmup_steps=3"]
    row = recipe(clips, tmp_path, *given).build_tasks()[0]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 3)
    for step in range(3):
        assert row.learning_rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6, eta_min=0.6)
    for step in range(3, 9):
        assert row.learning_rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_a_row_has_settings_of_its_own(clips, tmp_path):
    own = "{name: own, quantizer: {type: vector, codebook_size: 4}, epochs: 3, batch_size: 2, warmup_steps: 1, "
    own += "learning_rate: 0.5, weight_decay: 0.25}"
    plain = "{name: plain, quantizer: {type: vector, codebook_size: 4}}"
    table = recipe(clips, tmp_path, f"methods=[{own}, {plain}]", "weight_decay=0.125")
    first, second = table.build_tasks(num_processes=2)
    assert (first.steps, second.steps) == (3 * (10 // (2 * 2)), 6)  # of 10 clips
    settings = [(row.recipe.settings.batch_size, row.recipe.settings.weight_decay) for row in (first, second)]
    assert settings == [(2, 0.25), (4, 0.125)]
    assert (first.learning_rate_at(0), first.learning_rate_at(1)) == (0, 0.5) and second.learning_rate_at(0) == 1e-3
    with pytest.raises(ValueError, match="`methods`, own: `batch_size` is 0"):
        recipe(clips, tmp_path, f"methods=[{own.replace('batch_size: 2', 'batch_size: 0')}, {plain}]")


def test_data_that_make_no_run_are_refused_before_it(clips, tmp_path):
    """Calls, too: a test split that is not there would otherwise be found after the training."""
    for given, said in (
        ("data.test_split=nowhere", "data.test_split is 'nowhere'"),
        ("data.train_split=nowhere", "data.train_split is 'nowhere'"),
        ("batch_size=11", "the training split has 10 samples; a step takes batch_size=11 on each of 1 processes"),
    ):
        with pytest.raises(RecipeError, match=said):
            run_methods(recipe(clips, tmp_path, given), ["ema"])
    assert not list(tmp_path.iterdir())


def test_more_neighbors_than_a_step_has_vectors_are_refused(clips, tmp_path):
    """0.25 s are 12 frames: (4000 - 400) / 320 + 1, rounded down."""
    row = "{{name: a, quantizer: {{type: smoothed, codebook_size: 8, num_neighbors: {}}}, batch_size: 2}}"
    assert recipe(clips, tmp_path, f"methods=[{row.format(24)}]")
    with pytest.raises(RecipeError, match="`methods`, a: `num_neighbors` is 25; a step has at most 24 vectors per pro"):
        recipe(clips, tmp_path, f"methods=[{row.format(25)}]")


def test_numbers_that_make_no_run_are_refused(clips, tmp_path):
    for key in ("steps", "batch_size", "checkpoint_steps"):
        with pytest.raises(ValueError, match=f"`{key}` is 0; it takes whole numbers from 1 on"):
            recipe(clips, tmp_path, f"{key}=0")
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp16' .* it takes one of 'no', 'bf16'"):
        recipe(clips, tmp_path, "mixed_precision=fp16")


def test_two_processes_run_a_table(clips, tmp_path):
    """Layers are dropped at random, each process its own: none waits for the gradient of the other's."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        str(ROOT / "examples" / "wav2vec2_pretraining.py"), "--recipe", str(RECIPE),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = options(clips, tmp_path, "checkpoint_steps=2", "mixed_precision=bf16")
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| method |") == 1 and "| gumbel |" in done.stdout and "| ema |" in done.stdout
    assert (tmp_path / "results.md").read_text() in done.stdout
    assert all(json.loads(path.read_text())["processes"] == 2 for path in tmp_path.glob("*/results.json"))
