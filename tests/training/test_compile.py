"""A recipe with `training.compile`: torch.compile in every phase, and checkpoints that know nothing of it."""

import shutil

import pytest
import torch
from runs import records, weights
from torch._dynamo.utils import counters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile takes a C++ compiler"),
]


def test_a_compiled_run_takes_the_same_steps(train, tmp_path):
    short = "phases=[{kind: encoder, steps: 2}, {kind: tokenizer, steps: 2}]"
    train(tmp_path / "plain", short)
    counters.clear()
    train(tmp_path / "compiled", short, "training.compile=true")
    assert counters["frames"]["ok"] > 0  # something was compiled
    for plain, compiled in zip(records(tmp_path / "plain"), records(tmp_path / "compiled"), strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    plain, compiled = (weights(tmp_path / name / "final") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
