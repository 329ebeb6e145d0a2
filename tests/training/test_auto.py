"""What `auto` becomes, and that it stays so."""

import os

import numpy as np
import pytest
import torch
import yaml
from runs import records, stop_after

from bridle_hf import BridleFeatureExtractor
from bridle_hf.data import DataArguments
from bridle_hf.data.audio import audio_sizes
from bridle_hf.training import RecipeError, auto, load_recipe, pretrain
from bridle_hf.training.arguments import OptimizationArguments
from bridle_hf.training.auto import settle


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine has: matrix units for bfloat16, an accelerator."""

    def has(units, accelerator=False):
        monkeypatch.setattr(auto, "has_bf16_units", lambda: units)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)

    return has


@pytest.mark.parametrize(
    ("units", "accelerator", "expected"),
    [(True, False, ("bf16", "eager")), (False, False, ("no", "sdpa")), (True, True, ("bf16", "sdpa"))],
)
def test_the_faster_choice(machine, units, accelerator, expected, caplog):
    machine(units, accelerator)
    caplog.set_level("INFO", "bridle_hf")
    settings = settle(OptimizationArguments(mixed_precision="auto", attention="auto"), {})
    assert (settings.mixed_precision, settings.attention) == expected
    assert f"auto: mixed_precision={expected[0]}, attention={expected[1]}" in caplog.text


def test_attention_follows_a_precision_that_is_given(machine):
    machine(units=False)
    assert settle(OptimizationArguments(mixed_precision="bf16", attention="auto"), {}).attention == "eager"
    machine(units=True)
    assert settle(OptimizationArguments(mixed_precision="no", attention="auto"), {}).attention == "sdpa"


def test_what_is_said_stays_and_nothing_is_logged(machine, caplog):
    machine(units=True)
    caplog.set_level("INFO", "bridle_hf")
    settings = OptimizationArguments(mixed_precision="fp16", attention=None)
    assert settle(settings, {"mixed_precision": "bf16", "attention": "eager"}) == settings and not caplog.text


def test_cpus_without_matrix_units_are_told_by_their_flags(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    neither = {"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}
    has_units = [neither | {name: True} for name in ("amx_bf16", "avx512_bf16")]
    for flags, expected in [(neither, False), ({"architecture": "arm"}, False)] + [(each, True) for each in has_units]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert auto.has_bf16_units() is expected


def test_a_run_keeps_what_it_began_with(machine, train, tmp_path):
    options = ("training.mixed_precision=auto", "training.attention=auto")
    machine(units=True)
    train(tmp_path / "run", *options, stop=stop_after(tmp_path / "run", 3))
    machine(units=False)
    train(tmp_path / "run", *options)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["training"]
    assert (written["mixed_precision"], written["attention"]) == ("bf16", "eager")
    assert len(records(tmp_path / "run")) == 12
    train(tmp_path / "other", *options)
    written = yaml.safe_load((tmp_path / "other" / "recipe.yaml").read_text())["training"]
    assert (written["mixed_precision"], written["attention"]) == ("no", "sdpa")


STATISTICS = ["processor={mean: auto, std: auto}"]


def of_waveforms(clips, recipe):
    """Mean and deviation over all log-mel values of clips, in float64."""
    extractor = BridleFeatureExtractor(**audio_sizes(recipe.config()), do_normalize=False)
    values = np.concatenate([extractor(clip, sampling_rate=16_000).input_values[0] for clip in clips]).astype(float)
    return values.mean(), values.std()


def test_mean_and_deviation_are_measured_and_kept(train, tiny_recipe, tmp_path):
    """Clips as long as the window, so that every draw of a clip is the same; as many of each as of the others."""
    rng = np.random.default_rng(0)
    recipe = load_recipe(tiny_recipe, ["output_dir=x", *STATISTICS])
    frames = recipe.config().input_size[0]
    clips = [rng.normal(size=400 + 160 * (frames - 1)) * scale for scale in (0.01, 0.1, 0.2, 0.3)]
    expected = of_waveforms(clips, recipe)
    options = [*STATISTICS, "data.dataset=''", "training.max_steps_per_phase=1", f"output_dir={tmp_path}/run"]
    pretrain(load_recipe(tiny_recipe, options), clips)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["processor"]
    assert (written["mean"], written["std"]) == pytest.approx(expected, abs=1e-4)
    saved = BridleFeatureExtractor.from_pretrained(tmp_path / "run" / "final")
    assert (saved.mean, saved.std) == (written["mean"], written["std"])
    # given again, with other clips: the run keeps what it began with, and is finished
    assert pretrain(load_recipe(tiny_recipe, options), [clip / 2 for clip in clips])
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["processor"] == written


def test_auto_is_for_both_of_them(tiny_recipe):
    with pytest.raises(RecipeError, match="`processor` has auto for mean; it takes it for mean and std, both at once"):
        load_recipe(tiny_recipe, ["output_dir=x", "processor={mean: auto, std: 3.0}"])


def test_workers_are_cores_but_one(monkeypatch):
    for cores, processes, expected in ((1, 1, 0), (4, 1, 3), (64, 1, 8), (8, 4, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert DataArguments(num_workers="auto").workers == expected
    assert DataArguments(num_workers=5).workers == 5
