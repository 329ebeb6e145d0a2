"""What `auto` of mixed_precision and attention becomes, and that it stays so."""

import pytest
import torch
import yaml
from runs import records, stop_after

from bridle_hf.training import precision
from bridle_hf.training.arguments import OptimizationArguments
from bridle_hf.training.precision import settle


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine has: matrix units for bfloat16, an accelerator."""

    def has(units, accelerator=False):
        monkeypatch.setattr(precision, "has_bf16_units", lambda: units)
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
    for flags, expected in (({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({"architecture": "arm"}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert precision.has_bf16_units() is expected


def test_a_run_keeps_what_it_began_with(machine, train, tmp_path):
    auto = ("training.mixed_precision=auto", "training.attention=auto")
    machine(units=True)
    train(tmp_path / "run", *auto, stop=stop_after(tmp_path / "run", 3))
    machine(units=False)
    train(tmp_path / "run", *auto)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["training"]
    assert (written["mixed_precision"], written["attention"]) == ("bf16", "eager")
    assert len(records(tmp_path / "run")) == 12
    train(tmp_path / "other", *auto)
    written = yaml.safe_load((tmp_path / "other" / "recipe.yaml").read_text())["training"]
    assert (written["mixed_precision"], written["attention"]) == ("no", "sdpa")
