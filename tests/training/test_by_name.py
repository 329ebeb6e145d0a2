"""`bridle_hf.pretrain`: a recipe by its name, what is to change, and a dataset in hand or by name."""

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import bridle_hf
from bridle_hf.training import RecipeError, load_recipe, pretrain


@pytest.fixture(scope="module")
def waveforms():
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(16000)).astype(np.float32) for _ in range(8)]


def test_it_is_one_function():
    assert bridle_hf.pretrain is pretrain


def test_a_dataset_in_hand_stands_for_that_of_the_recipe(tiny_recipe, waveforms, tmp_path):
    options = {"training": {"batch_size": 2}, "training.max_steps_per_phase": 1}
    final = bridle_hf.pretrain(tiny_recipe, waveforms, output_dir=tmp_path / "run", **options)
    assert final == tmp_path / "run" / "final" and (final / "model.safetensors").is_file()
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["training"]["batch_size"] == 2 and written["training"]["logging_steps"] == 1
    assert written["data"]["dataset"] == "" and bridle_hf.load(tmp_path / "run").embed(
        waveforms[0], sampling_rate=16000
    ).shape == (1, 16)


def test_a_folder_stands_for_that_of_the_recipe(tiny_recipe, sounds, tmp_path):
    options = {"training": {"max_steps_per_phase": 1}, "output_dir": str(tmp_path / "run")}
    assert bridle_hf.pretrain(tiny_recipe, sounds, **options)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["data"]["dataset"] == str(sounds)


def test_runs_of_one_process_have_each_its_own_precision(tiny_recipe, waveforms, tmp_path):
    def weights(name, precision):
        training = {"max_steps_per_phase": 1, "mixed_precision": precision}
        folder = pretrain(tiny_recipe, waveforms, output_dir=tmp_path / name, training=training)
        return load_file(folder / "model.safetensors")

    first, half, again = weights("first", "no"), weights("half", "bf16"), weights("again", "no")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], half[name]) for name in first)


def test_what_it_does_not_take_is_named(tiny_recipe, waveforms, tmp_path):
    with pytest.raises(RecipeError, match="unknown key `training.batchsize`.*did you mean training.batch_size"):
        pretrain(tiny_recipe, waveforms, output_dir="x", training={"batchsize": 2})
    with pytest.raises(
        RecipeError, match="`training.batch_size` is 'two' .*override 'training.batch_size='two''|override"
    ):
        pretrain(tiny_recipe, waveforms, output_dir="x", **{"training.batch_size": "two"})
    with pytest.raises(RecipeError, match="neither a file nor a recipe of the package.*Did you mean audio/own_small"):
        pretrain("audio/own_smal", waveforms)
    with pytest.raises(RecipeError, match="A folder of data is given beside a recipe: audio/own_small data.dataset=.*"):
        pretrain(str(tmp_path), output_dir="x")
    recipe = load_recipe(tiny_recipe, {"output_dir": "x"})
    with pytest.raises(TypeError, match="pretrain got seed and a recipe that was read"):
        pretrain(recipe, waveforms, seed=1)


def test_overrides_as_a_mapping_are_those_of_the_command_line(tiny_recipe):
    said = load_recipe(tiny_recipe, ["output_dir=x", "phases.0.steps=7", "model.input_size=[64, 16]", "seed=3"])
    given = {"output_dir": "x", "phases.0.steps": 7, "model": {"input_size": (64, 16)}, "seed": 3}
    assert load_recipe(tiny_recipe, given) == said
