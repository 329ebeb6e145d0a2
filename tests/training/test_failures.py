"""Steps with NaN or inf: skipped where the recipe says so, else saved so that they can be taken again."""

import json
from dataclasses import replace
from math import inf, nan

import pytest
import torch
from runs import differing, records, weights

from bridle_hf import BridleForPreTraining
from bridle_hf.cli.main import main as bridle
from bridle_hf.codebook_training_bridle import reset_dead_codes_
from bridle_hf.training import engine, load_recipe, replay
from bridle_hf.training.run import Run

ONE_PHASE = ("phases=[{kind: encoder, steps: 5}]", "training.checkpoint_steps=1", "training.keep_checkpoints=9")


class Clips:
    """Stands for the loader: clips that are poisoned in some of the calls (the first feeds k-means)."""

    skipped = {}

    def __init__(self, poison: dict):
        self.poison, self.calls = poison, 0

    def __next__(self):
        values = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(self.calls))
        values[1, 2, 3] = self.poison.get(self.calls, 0.0)
        self.calls += 1
        return {"input_values": values}

    def state_dict(self):
        return {}


@pytest.fixture
def train_on(train, monkeypatch):
    def run(folder, poison, *overrides):
        monkeypatch.setattr(Run, "open_data", lambda _: Clips(poison))
        return train(folder, *ONE_PHASE, *overrides)

    return run


def test_a_bad_step_changes_nothing_and_is_counted(train_on, tmp_path, caplog):
    assert train_on(tmp_path / "run", {3: nan}, "training.skip_bad_steps=1")
    at = [tmp_path / "run" / "checkpoints" / f"phase-00-step-{step:08d}" for step in (2, 3, 4)]
    assert not differing(weights(at[0]), weights(at[1]))  # the third step took call 3
    assert differing(weights(at[1]), weights(at[2]))
    assert [(line["step"], line["steps_skipped"]) for line in records(tmp_path / "run")] == [
        (1, 0), (2, 0), (4, 1), (5, 1)
    ]  # fmt: skip
    assert "skipped step 3 of encoder-iter1: a batch holds NaN or inf" in caplog.text
    assert "skipped: 0 clips () and 1 steps" in caplog.text
    assert [path.name for path in (tmp_path / "run" / "failure").iterdir()] == ["phase-00-step-00000002"]


def test_one_bad_step_more_than_allowed_stops_the_run(train_on, tmp_path):
    with pytest.raises(FloatingPointError, match="step 4 of encoder-iter1: a batch.*skip_bad_steps=2 leaves"):
        train_on(tmp_path / "run", {2: inf, 4: nan}, "training.skip_bad_steps=1")
    assert len(list((tmp_path / "run" / "failure").iterdir())) == 2


def test_the_last_failures_are_kept(train_on, tmp_path):
    assert train_on(tmp_path / "run", dict.fromkeys(range(1, 6), nan), "training.skip_bad_steps=5")
    kept = sorted(path.name for path in (tmp_path / "run" / "failure").iterdir())
    assert len(kept) == 3 and kept[-1] == "phase-00-step-00000004"


def test_a_step_is_taken_again(train_on, tmp_path, capsys):
    """The learning rate throws the weights far out; the saved step, none of whose files is a pickle, tells so."""
    with pytest.raises(FloatingPointError, match="bridle replay"):
        train_on(tmp_path / "run", {}, "encoder.learning_rate=1e30")
    (folder,) = (tmp_path / "run" / "failure").iterdir()
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} == {
        "recipe.yaml", "model.safetensors", "rank-0.json", "rank-0.safetensors"
    }  # fmt: skip
    losses, gradients = replay(folder)
    assert not torch.isfinite(torch.tensor([losses["loss"], *gradients.values()])).all()
    bridle(["replay", str(folder)])
    said = capsys.readouterr().out
    about = json.loads((folder / "rank-0.json").read_text())
    assert f"step {about['step'] + 1} of encoder-iter1" in said and "finite" in said


@pytest.mark.parametrize("phase", ["encoder", "tokenizer", "joint"])
def test_a_tokenizer_that_lost_its_numbers_shows_in_the_loss(tiny_recipe, phase):
    """It is no error: the other processes of a run would wait for the one that raises it."""
    config = load_recipe(tiny_recipe, ["output_dir=x"]).config()
    config.cold_start = False
    model, values = BridleForPreTraining(config).train(), torch.randn(2, 64, 16)
    assert model(values, phase=phase).loss.isfinite()
    model.tokenizer.quantize_layer[-1].bias.data[0] = inf
    loss = model(values, phase=phase).loss
    assert not loss.isfinite()
    loss.backward()


def test_resets_take_no_code_from_what_is_not_finite(tiny_recipe):
    """The step that follows finds it; until then the codebooks stay sound."""
    recipe = load_recipe(tiny_recipe, ["output_dir=x", "model.quantizer_config.reset=first_batch"])
    model = BridleForPreTraining(recipe.config())
    model.tokenizer.quantizer.codebooks[0].cluster_size.copy_(torch.tensor([0.0, 9.0, 9.0, 9.0]))
    values = torch.randn(2, 64, 16)
    values[0] = nan
    moved = reset_dead_codes_(model, [{"input_values": values}], 0, 10, torch.Generator().manual_seed(0))
    assert moved == 1 and model.tokenizer.quantizer.codebooks[0].embed.isfinite().all()


def test_a_replay_draws_what_the_run_drew(train_on, tmp_path, monkeypatch):
    """A sound step that is saved gives the loss that the run logged, dropped paths and masks included."""

    def distrust(run, step, result):
        seen.append(check_step(run, step, result))
        return replace(seen[-1], reason="a test says so")

    check_step, seen = engine.check_step, []
    monkeypatch.setattr(engine, "check_step", distrust)
    with pytest.raises(FloatingPointError, match="a test says so"):
        train_on(tmp_path / "run", {}, "training.gradient_accumulation_steps=2", "model.drop_path_rate=0.5")
    (folder,) = (tmp_path / "run" / "failure").iterdir()
    losses, gradients = replay(folder)
    assert losses["loss"] == pytest.approx(seen[0].loss, rel=1e-6)
    norm = torch.tensor(list(gradients.values())).norm()
    assert float(norm) == pytest.approx(seen[0].norm, rel=1e-5)
