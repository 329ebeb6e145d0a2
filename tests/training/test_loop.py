"""Whole runs: what they leave behind, what trains, and that stopping and killing them changes nothing."""

import itertools
import json
import logging
import os
import re
import runpy
import signal
import sys
import time
from math import isfinite
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from runs import differing, records, stop_after, weights

from bridle_hf import BridleFeatureExtractor, BridleForPreTraining, BridleModel
from bridle_hf.training import engine, load_recipe, pretrain, replay
from bridle_hf.training.arguments import OptimizationArguments
from bridle_hf.training.checkpoints import list_checkpoints
from bridle_hf.training.run import Run, build_accelerator, check_processes
from bridle_hf.training.seeds import seed_from

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "pretrain.py"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are forked here, so that sums are taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_recipe, one_thread):
    """The tiny run, never interrupted, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    keep = ["training.checkpoint_steps=1", "training.keep_checkpoints=99"]
    assert pretrain(load_recipe(tiny_recipe, [f"output_dir={folder}", *keep])) is not None
    return folder


def at(folder, phase, step):
    return weights(folder / "checkpoints" / f"phase-{phase:02d}-step-{step:08d}")


def test_what_a_run_leaves_behind(whole):
    encoder = BridleModel.from_pretrained(whole / "encoder-iter2")
    model = BridleForPreTraining.from_pretrained(whole / "final")
    assert BridleFeatureExtractor.from_pretrained(whole / "final").max_length == 64
    assert model.tokenizer.cold_start is None
    assert not differing(encoder.state_dict(), model.bridle.state_dict())
    first = BridleModel.from_pretrained(whole / "encoder-iter1")
    assert not differing(first.state_dict(), {n[7:]: v for n, v in at(whole, 0, 5).items() if n.startswith("bridle.")})
    assert {p.name for p in whole.iterdir()} == {
        "checkpoints", "encoder-iter1", "encoder-iter2", "final", "metrics.jsonl", "recipe.yaml",
    }  # fmt: skip


def test_what_is_logged(whole):
    lines = records(whole)
    steps = [(line["phase"], line["step"]) for line in lines]
    schedule = (("encoder-iter1", 5), ("tokenizer-iter2", 3), ("encoder-iter2", 4))
    assert steps == [(name, step) for name, length in schedule for step in range(1, length + 1)]
    assert [line["total_step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert set(line["codebooks"]) == {"cur", "ecu", "perplexity", "residual"}
        assert len(line["codebooks"]["cur"]) == 2 and line["lr"] > 0 and line["grad_norm"] > 0
        minimised = ("codebook", "cosine") if "tokenizer" in line["phase"] else ("encoder",)
        assert line["loss"] == pytest.approx(sum(line["losses"][name] for name in minimised))
    assert {"codebook", "codebook_1", "codebook_2", "cosine"} == set(lines[5]["losses"])
    assert "accuracy" in lines[0] and "accuracy" not in lines[5]


def test_only_what_should_train_trains(whole):
    encoder = differing(at(whole, 0, 1), at(whole, 0, 5))
    assert encoder and not [name for name in encoder if name.startswith("tokenizer.")]
    assert {"bridle.layers.1.mlp.fc1.weight", "decoder.head.weight"} <= encoder
    tokenizer = differing(at(whole, 1, 1), at(whole, 1, 3))
    assert tokenizer and all(name.startswith("tokenizer.") for name in tokenizer)
    assert "tokenizer.quantizer.codebooks.1.embed" in tokenizer and "tokenizer.estimator.head.weight" in tokenizer
    assert not [name for name in tokenizer if "cold_start" in name]
    kept = differing(at(whole, 1, 3), at(whole, 2, 1))
    assert not [name for name in kept if name.startswith("tokenizer.")]


def test_a_run_heeds_its_own_settings_after_another_in_the_session(tmp_path):
    """A second run in a process uses its own precision, and updates weights even after an interrupted Trainer."""
    first = build_accelerator(OptimizationArguments(tracker=None), tmp_path)
    first.sync_gradients = False
    second = build_accelerator(OptimizationArguments(mixed_precision="bf16", compile=True, tracker=None), tmp_path)
    assert second.mixed_precision == "bf16" and second.state.dynamo_plugin.backend == "INDUCTOR"
    assert second.sync_gradients


def script(arguments, errors, environment):
    """examples/pretrain.py in a process that was forked: it needs no second import of everything."""
    torch.set_num_threads(1)  # OpenMP does not survive a fork
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.stderr = open(errors, "a", buffering=1)  # closed with the process
    logging.getLogger().handlers.clear()
    sys.argv = [str(SCRIPT), *map(str, arguments)]
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def start(tmp_path):
    """Start the script with arguments; what it says on standard error is added to `errors`."""

    def fork(*arguments, **environment):
        process = mp.get_context("fork").Process(target=script, args=(arguments, tmp_path / "errors", environment))
        process.start()
        return process

    return fork


def wait_for_lines(folder, count, process):
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert process.is_alive() and time.monotonic() < deadline, "the run ended before it was meant to"
        time.sleep(0.01)


def test_a_run_stopped_then_killed_then_resumed_equals_one_left_alone(whole, tmp_path, tiny_recipe, start):
    folder = tmp_path / "run"
    command = ("--recipe", tiny_recipe, f"output_dir={folder}")

    process = start(*command)
    wait_for_lines(folder, 2, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    messages = (tmp_path / "errors").read_text()
    assert process.exitcode == 0 and "stopped after step" in messages, messages
    stopped = len(records(folder))
    assert 2 <= stopped < 12 and list_checkpoints(folder / "checkpoints")

    process = start(*command)
    wait_for_lines(folder, min(stopped + 3, 11), process)  # after its first checkpoint or before
    process.kill()
    process.join()
    assert not (folder / "final").exists()

    for message in ("going on from", "this run is finished"):
        process = start(*command)
        process.join(120)
        assert process.exitcode == 0 and message in (tmp_path / "errors").read_text()
        assert not differing(weights(folder / "final"), weights(whole / "final"))
        assert records(folder) == records(whole)


def test_a_damaged_checkpoint_costs_a_few_steps_and_nothing_else(whole, tmp_path, train):
    folder = tmp_path / "run"

    assert train(folder, stop=stop_after(folder, 8)) is None
    newest = list_checkpoints(folder / "checkpoints")[-1]
    assert newest.name == "phase-01-step-00000003"
    (newest / "model.safetensors").write_bytes(b"")
    assert train(folder) == folder / "final"
    assert not differing(weights(folder / "final"), weights(whole / "final"))
    assert records(folder) == records(whole)


def test_starting_over_moves_the_old_run_aside(tmp_path, train):
    folder, short = tmp_path / "run", ("phases=[{kind: encoder, steps: 1}]", "resume=never")
    assert train(folder, *short) and train(folder, *short)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.old-1"}
    assert len(records(folder)) == 1 and not differing(
        weights(folder / "final"), weights(tmp_path / "run.old-1" / "final")
    )


def test_a_checkpoint_can_be_named(whole, tmp_path, train, caplog):
    name = whole / "checkpoints" / "phase-02-step-00000002"
    assert train(tmp_path / "run", f"resume={name}")
    (line,) = (line for line in caplog.messages if f"the recipe has changed since {name}, and goes on as it is" in line)
    assert re.search(r": training.checkpoint_steps: \d+ -> \d+, training.keep_checkpoints: \w+ -> \w+$", line)
    assert not differing(weights(tmp_path / "run" / "final"), weights(whole / "final"))
    caplog.clear()
    train(tmp_path / "longer", f"resume={name}", "phases.2.steps=9", "tokenizer.learning_rate=1e-4")
    (line,) = (line for line in caplog.messages if "the recipe has changed since" in line)
    assert "phases.2.steps: " in line and " -> 9" in line and "tokenizer.learning_rate: " in line
    assert "phases.1." not in line  # it is laid over the section
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        train(tmp_path / "other", f"resume={tmp_path}")
    with pytest.raises(ValueError, match="does not fit the recipe's model: .*size mismatch.*The sizes .{,200}$"):
        train(tmp_path / "other", f"resume={name}", "model.hidden_size=32")
    with pytest.raises(ValueError, match="is of phase 2 .*phases are encoder-iter1"):
        train(tmp_path / "other", f"resume={name}", "phases=[{kind: encoder, steps: 1}]")


class FixedClips:
    """Stands for the loader: the same 16 clips for ever, in batches of any size."""

    skipped = {}

    def __init__(self, batch_size):
        clips = torch.randn(16, 64, 16, generator=torch.manual_seed(0))
        self.batches = itertools.cycle(clips.split(batch_size))

    def __next__(self):
        return {"input_values": next(self.batches)}

    def state_dict(self):
        return {}


def test_micro_batches_make_the_same_step_as_one_batch(tmp_path, train, monkeypatch):
    """One step of a tokenizer phase: gradients, losses and code statistics of 2 x 2 clips are those of 4."""
    monkeypatch.setattr(Run, "open_data", lambda run: FixedClips(run.settings.batch_size))
    overrides = ("phases=[{kind: tokenizer, steps: 1}]", "training.max_grad_norm=null", "model.drop_path_rate=0.0")
    train(tmp_path / "one", *overrides, "training.batch_size=4")
    train(tmp_path / "two", *overrides, "training.batch_size=2", "training.gradient_accumulation_steps=2")
    one, two = records(tmp_path / "one")[0], records(tmp_path / "two")[0]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    one, two = weights(tmp_path / "one" / "final"), weights(tmp_path / "two" / "final")
    for name in ("tokenizer.quantizer.codebooks.0.embed", "tokenizer.quantizer.codebooks.1.cluster_size"):
        torch.testing.assert_close(one[name], two[name])


def test_the_next_step_is_drawn_before_the_host_waits(tmp_path, train, monkeypatch):
    """So that an accelerator has work meanwhile; but nothing is drawn while a checkpoint is due."""
    events = []
    for name in ("draw_step", "forward_backward", "check_step"):
        work = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *a, name=name, work=work: events.append(name[0]) or work(*a))
    train(tmp_path / "run", "phases=[{kind: encoder, steps: 5}]", "training.checkpoint_steps=3")
    assert "".join(events) == "dfdcfdcfc" + "dfdcfc"


def test_masks_without_padding_are_left_out(tiny_recipe):
    phase = load_recipe(tiny_recipe, ["output_dir=x"]).build_tasks()[0]
    model = phase.build(None, begins=True)
    full, padded = torch.ones(2, 64, dtype=torch.long), (torch.arange(64) < torch.tensor([[64], [40]])).long()
    batches = iter([{"input_values": torch.randn(2, 64, 16), "attention_mask": mask} for mask in (full, padded)])
    one, two = (phase.draw(model, batches, (0, 0, 0, 0, micro)) for micro in range(2))
    assert one.keys() == {"input_values", "patch_mask"} and two.keys() == {"input_values", "patch_mask", "valid"}
    assert one["patch_mask"].masked_valid is None and not two["patch_mask"].masked_valid.all()
    assert not two["input_values"][1, 40:].any()  # padding is zero from here on
    with torch.no_grad():
        outputs = [model.eval()(**batch) for batch in (one, two)]
    for batch, output in zip((one, two), outputs, strict=True):
        assert phase.counts(model, batch)["encoder"] == output.losses["encoder"].count


def test_joint_training_updates_the_tokenizer_every_k_th_step(tmp_path, train):
    joint = "phases=[{kind: joint, steps: 4, tokenizer_update_every: 3}]"
    keep = ("training.checkpoint_steps=1", "training.keep_checkpoints=9")
    assert train(tmp_path, joint, *keep, "training.masks_per_sample=2", "training.mixed_precision=bf16")
    changed = [differing(at(tmp_path, 0, step), at(tmp_path, 0, step + 1)) for step in (1, 2, 3)]
    for names, updates in zip(changed, (False, False, True), strict=True):
        assert "bridle.layernorm.weight" in names
        assert ("tokenizer.quantizer.codebooks.0.embed" in names) is updates
        assert ("tokenizer.quantize_layer.0.weight" in names) is updates
    assert (tmp_path / "encoder-iter1").is_dir() and (tmp_path / "final").is_dir()
    assert [set(line["losses"]) >= {"encoder", "cosine"} for line in records(tmp_path)] == [True, False, False, True]


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_evidence(tmp_path, train):
    with pytest.raises(FloatingPointError, match="of encoder-iter1.*bridle replay .*failure"):
        train(tmp_path, "encoder.learning_rate=1e30", "training.checkpoint_steps=1")
    (folder,) = (tmp_path / "failure").iterdir()
    about = json.loads((folder / "rank-0.json").read_text())
    assert about["phase"] == "encoder-iter1" and 1 <= about["step"] < 5
    assert not isfinite(replay(folder)[0]["loss"])
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]  # the step itself left no checkpoint
    assert newest.name == folder.name == f"phase-00-step-{about['step']:08d}"


def test_two_processes_hold_the_same_model_and_codebooks(tmp_path, tiny_recipe, start, train, unused_port, monkeypatch):
    save = Run.save

    def save_and_show(run, phase, step, model, *others):
        state = run.accelerator.unwrap_model(model).state_dict()
        torch.save(state, tmp_path / f"{run.accelerator.process_index}-{phase.name}.pt")
        return save(run, phase, step, model, *others)

    monkeypatch.setattr(Run, "save", save_and_show)
    entries = (
        "{kind: encoder, steps: 2}, {kind: tokenizer, steps: 2}, {kind: joint, steps: 3, tokenizer_update_every: 2}"
    )
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port)}
    processes = [
        start("--recipe", tiny_recipe, f"output_dir={tmp_path / 'run'}", f"phases=[{entries}]", **common, **ranks)
        for ranks in ({"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"})
    ]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0, (tmp_path / "errors").read_text()
    for name in ("encoder-iter1", "tokenizer-iter2", "joint-iter2"):
        one, other = (torch.load(tmp_path / f"{rank}-{name}.pt", weights_only=True) for rank in (0, 1))
        assert not differing(one, other)
    assert len(records(tmp_path / "run")) == 7


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched and Accelerate knows of 1"):
        check_processes(SimpleNamespace(num_processes=1))


def test_the_script_names_a_wrong_key(tiny_recipe, start, tmp_path):
    process = start("--recipe", tiny_recipe, "output_dir=x", "training.batchsize=3")
    process.join(60)
    assert process.exitcode == 2
    messages = (tmp_path / "errors").read_text()
    assert "unknown key `training.batchsize`" in messages and "did you mean training.batch_size" in messages


def test_seeds_of_neighbouring_places_are_unrelated():
    seeds = [seed_from(0, 0, step, 0, rank) for step in range(50) for rank in range(2)]
    assert len({seed >> 31 for seed in seeds}) == 100 and all(0 <= seed < 2**63 for seed in seeds)
