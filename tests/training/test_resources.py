"""The memory of a step, estimated from what a small forward pass keeps, and the time that a task takes."""

import gc
import logging
import weakref
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from bridle_hf import pretrain
from bridle_hf.training import engine, load_recipe, resources
from bridle_hf.training.arguments import OptimizationArguments


class Layers(torch.nn.Module):
    """Two linear layers and a ReLU between: kept are their inputs, weights apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(10, 30), torch.nn.Linear(30, 1)

    def forward(self, x):
        return self.second(self.first(x).relu())


TASK = SimpleNamespace(
    name="a-task",
    forward=lambda model, bare, batch, step: model(**batch),
    few=lambda model, batch, clips: {"x": batch["x"][:clips].clone()},
)


def test_what_a_pass_keeps_by_hand():
    # the input, which the first layer's weights learn from; what the ReLU gives, for itself and the second layer
    assert resources.kept_bytes(TASK, Layers(), {"x": torch.zeros(4, 10)}) == 4 * 4 * (10 + 30)
    frozen = Layers()
    frozen.first.requires_grad_(False)
    assert resources.kept_bytes(TASK, frozen, {"x": torch.zeros(4, 10)}) == 4 * 4 * 30
    assert resources.kept_bytes(TASK, Layers().requires_grad_(False), {"x": torch.zeros(4, 10)}) == 0


def test_what_a_pass_kept_is_freed():
    model = Layers()
    resources.kept_bytes(TASK, model, {"x": torch.zeros(4, 10)})
    weight = weakref.ref(model.first.weight)
    del model
    gc.collect()
    assert weight() is None


def parameters_in_memory() -> int:
    gc.collect()
    return sum(isinstance(each, torch.nn.Parameter) for each in gc.get_objects())


def test_a_run_leaves_no_weights_in_memory(tiny_recipe, tmp_path):
    clips = [np.random.default_rng(seed).normal(size=8000) / 10 for seed in range(12)]
    options = ["data.dataset=''", "training.max_steps_per_phase=1", f"output_dir={tmp_path}"]
    before = parameters_in_memory()
    pretrain(load_recipe(tiny_recipe, options), clips)
    assert parameters_in_memory() == before


def said(monkeypatch, caplog, free: int, **settings) -> list[str]:
    monkeypatch.setattr(resources, "free_bytes", lambda device: free)
    accelerator = Accelerator(cpu=True)
    given = OptimizationArguments(**{"batch_size": 100} | settings)
    with caplog.at_level(logging.INFO, "bridle_hf"):
        resources.say_what_it_takes(accelerator, TASK, Layers(), {"x": torch.zeros(100, 10)}, given)
    return caplog.messages


def test_where_it_fits_one_line_says_so(monkeypatch, caplog):
    (line,) = said(monkeypatch, caplog, 2**31)
    assert line == (
        "a-task: 0.0 million weights, 0.0 million of them learn; a step takes about 0.0 GB, 2.0 GB are free"
    )


def test_where_it_does_not_a_warning_says_what_does(monkeypatch, caplog):
    weights, clip = (10 * 30 + 30 + 30 + 1) * 12, 1.3 * 4 * 40
    free = int((weights + 50 * clip) / 0.8)  # of which a part stays free
    _, line = said(monkeypatch, caplog, free)
    assert "take training.batch_size=50, with more training.gradient_accumulation_steps or a smaller model" in line
    caplog.clear()
    _, line = said(monkeypatch, caplog, weights)
    assert "may be killed: a smaller model" in line


def test_compiled_passes_are_not_tried(monkeypatch, caplog):
    (line,) = said(monkeypatch, caplog, 0, compile=True)
    assert line == "a-task: 0.0 million weights, 0.0 million of them learn"


@pytest.mark.parametrize(("first", "left"), [(0, "3.0 hours"), (4600, "27 minutes")])  # 2 s times 5400 - first steps
def test_the_end_of_a_task_is_said_once(caplog, first, left):
    tasks = [SimpleNamespace(name=name, steps=5420, index=index) for index, name in enumerate(("one", "two"))]
    forecast = resources.Forecast(tasks, tasks[0], first)
    with caplog.at_level(logging.INFO, "bridle_hf"):
        for steps in range(1, 100):
            forecast.note(first + steps, 98.0 + 2.0 * steps)  # the first one is slow
    (line,) = caplog.messages
    end = datetime.now() + timedelta(seconds=(5400 - first) * 2)
    assert line.startswith(f"one ends in about {left}, {end:%Y-%m-%d}") and line.endswith("; then two (5420 steps)")


def test_a_task_of_few_steps_says_nothing_of_its_end(caplog):
    task = SimpleNamespace(name="one", steps=resources.SETTLED, index=0)
    forecast = resources.Forecast([task], task, 0)
    with caplog.at_level(logging.INFO, "bridle_hf"):
        for done in range(1, task.steps + 1):
            forecast.note(done, float(done))
    assert not caplog.messages


def test_time_that_belongs_to_no_step_is_in_no_speed(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now.seconds)
    loader = SimpleNamespace(waited=1.0)
    clock = engine.Clock(loader, 5, minutes=2.0)
    now.seconds, loader.waited = 130.0, 6.0  # 5 s of waiting, and an evaluation of 10 s
    clock.leave_out(10.0)
    assert clock.seconds_of_steps == 20.0
    assert clock.read(8, 15) == {"clips_per_second": 8 * 10 / 20, "data_wait": 5 / 20}
    now.seconds = 134.0
    assert clock.read(8, 17) == {"clips_per_second": 4.0, "data_wait": 0.0}
    assert clock.minutes == pytest.approx(2 + 34 / 60)


@pytest.mark.parametrize("masks", [1, 2])
def test_a_run_is_the_same_with_it(tiny_recipe, tmp_path, monkeypatch, caplog, masks):
    clips = [np.random.default_rng(seed).normal(size=8000) / 10 for seed in range(12)]
    options = ["data.dataset=''", "training.max_steps_per_phase=2", f"training.masks_per_sample={masks}"]
    with caplog.at_level(logging.INFO, "bridle_hf"):
        pretrain(load_recipe(tiny_recipe, [*options, f"output_dir={tmp_path}/with"]), clips)
    lines = [line for line in caplog.messages if "million weights" in line]
    assert len(lines) == len(load_recipe(tiny_recipe, ["output_dir=x"]).phases) and all(
        "a step takes" in x for x in lines
    )
    monkeypatch.setattr(engine, "say_what_it_takes", lambda *_: None)
    pretrain(load_recipe(tiny_recipe, [*options, f"output_dir={tmp_path}/without"]), clips)
    first, second = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("with", "without"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
