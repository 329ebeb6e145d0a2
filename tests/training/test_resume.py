"""Runs that are killed, stopped, or run out of disk lose nothing: what they end with is what they would have."""

import errno
import logging
import os
import pkgutil
import random
import resource
import shutil
import signal
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from runs import differing, fork, join, records, stop_after, weights
from safetensors.torch import load_file

from bridle_hf.cli.main import main
from bridle_hf.cli.process import stop_signals
from bridle_hf.files import FolderError
from bridle_hf.training import engine, load_recipe, pretrain, pretraining
from bridle_hf.training.checkpoints import CheckpointError, list_checkpoints, open_checkpoint
from bridle_hf.training.run import Run

# Functions that a run calls, and how often: it is killed before or after one of their calls.
MOMENTS = {
    "bridle_hf.training.engine.forward_backward": 12,
    "bridle_hf.files._flush": 50,
    "bridle_hf.training.checkpoints._fingerprint": 30,
    "bridle_hf.training.checkpoints.save_file": 12,
    "bridle_hf.training.run.Run.save": 6,
    "bridle_hf.training.run.Run.export": 3,
    "bridle_hf.training.run.Run.build_model": 5,
    "bridle_hf.training.metrics.MetricsFile.append": 12,
    "bridle_hf.codebook_bridle.kmeans": 4,
    "bridle_hf.codebook_bridle.Codebook.set_": 4,
    "os.replace": 9,
    "shutil.rmtree": 12,
}


def train(recipe, *overrides, stop=None):
    pretrain(load_recipe(recipe, overrides), stop=stop or stop_signals())


def train_and_die(recipe, overrides, target: str, call: int, after: bool):
    """Dies of SIGKILL before or after the `call`-th call of `target`; a run with fewer calls ends."""
    original, calls = pkgutil.resolve_name(target), [0]

    def counted(*arguments, **keywords):
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **keywords)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with mock.patch(target, counted):
        train(recipe, *overrides)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory, tiny_recipe):
    """ranks -> folder of a run that nothing happened to."""
    folders = {}

    def get(ranks):
        if ranks not in folders:
            folder = tmp_path_factory.mktemp("alone")
            overrides = (f"output_dir={folder / 'run'}", "data.num_workers=1")
            join(fork(train, tiny_recipe, *overrides, errors=folder / "errors", ranks=ranks), folder / "errors")
            folders[ranks] = folder / "run"
        return folders[ranks]

    return get


def assert_equal(folder, other):
    assert not differing(weights(folder / "final"), weights(other / "final"))
    assert records(folder) == records(other)
    newest, theirs = (list_checkpoints(each / "checkpoints")[-1] for each in (folder, other))
    assert newest.name == theirs.name and open_checkpoint(newest)
    moments = (load_file(each / "optimizer.safetensors") for each in (newest, theirs))
    assert not differing(*moments)
    assert len(list_checkpoints(folder / "checkpoints")) == 2
    assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]


def draw_moments(count: int, seed: int) -> list[tuple[str, int, bool]]:
    rng = random.Random(seed)
    names = rng.sample(sorted(MOMENTS), len(MOMENTS)) + rng.choices(sorted(MOMENTS), k=count)
    return [(name, rng.randint(1, MOMENTS[name]), rng.random() < 0.5) for name in names[:count]]


def kill_and_resume(recipe, folder, ranks, moment, other):
    """Whether the run died. It is killed at the moment, started again until it ends, and must equal the other."""
    errors = folder / "errors"
    overrides = (f"output_dir={folder / 'run'}", "data.num_workers=1", "training.deadline=30")
    processes = fork(train_and_die, recipe, overrides, *moment, errors=errors, ranks=ranks)
    join(processes, errors, exitcode=None)
    died = [process.exitcode for process in processes].count(-signal.SIGKILL)
    join(fork(train, recipe, *overrides, errors=errors, ranks=ranks), errors)
    assert_equal(folder / "run", other)
    return died > 0


@pytest.mark.parametrize("moment", draw_moments(3, seed=1), ids=str)
def test_a_killed_run_ends_like_one_left_alone(left_alone, tmp_path, tiny_recipe, moment):
    kill_and_resume(tiny_recipe, tmp_path, 1, moment, left_alone(1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_killed_runs_end_like_one_left_alone(left_alone, tmp_path, tiny_recipe, ranks):
    died = 0
    for number, moment in enumerate(draw_moments(20, seed=ranks)):
        folder = tmp_path / str(number)
        folder.mkdir()
        died += kill_and_resume(tiny_recipe, folder, ranks, moment, left_alone(ranks))
    assert died >= 15


def train_until_the_disk_is_full(recipe, overrides, target, call):
    """The command. From this call of a method on no file may grow beyond 32 KB: to write more fails as on a full disk.
    A record, which is smaller, finds the disk full itself."""
    original, calls = pkgutil.resolve_name(target), []

    def in_little_room(*arguments):
        calls.append(arguments)
        if len(calls) < call:
            return original(*arguments)
        if target.endswith(".append"):
            raise OSError(errno.ENOSPC, "No space left on device")
        resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768))
        return original(*arguments)

    with mock.patch(target, in_little_room):
        main(["pretrain", str(recipe), *overrides])


@pytest.mark.parametrize(
    ("target", "call", "what", "last"),
    [
        ("bridle_hf.training.run.Run.save", 3, "the checkpoint of step 5 of encoder-iter1", [(0, 2), (0, 4)]),
        ("bridle_hf.training.run.Run.export", 1, "what encoder-iter1 trained", [(0, 4), (0, 5)]),
        ("bridle_hf.training.metrics.MetricsFile.append", 5, "a record of metrics.jsonl", [(0, 2), (0, 4)]),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(left_alone, tmp_path, tiny_recipe, target, call, what, last):
    errors, folder = tmp_path / "errors", tmp_path / "run"
    overrides = (f"output_dir={folder}", "data.num_workers=1")
    join(fork(train_until_the_disk_is_full, tiny_recipe, overrides, target, call, errors=errors), errors, exitcode=1)
    left = sorted((folder / "checkpoints").iterdir())  # nothing half-written beside them
    assert [(open_checkpoint(path).task, open_checkpoint(path).step) for path in left] == last
    *before, error = errors.read_text().splitlines()
    assert error.startswith(f"bridle pretrain: error: {what} could not be written")
    assert f"The last checkpoint is {left[-1]}; make room and start again." in error
    assert not [line for line in before if "Traceback" in line]
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    join(fork(train, tiny_recipe, *overrides, errors=errors), errors)
    assert_equal(folder, left_alone(1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_together_and_go_on(left_alone, tmp_path, tiny_recipe, number):
    """The signal reaches one of them; both save and end without an error."""
    errors, folder = tmp_path / "errors", tmp_path / "run"
    overrides = (f"output_dir={folder}", "data.num_workers=1")
    processes = fork(train, tiny_recipe, *overrides, errors=errors, ranks=2)
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").is_file() or len(records(folder)) < 2:
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes), errors.read_text()
        time.sleep(0.01)
    os.kill(processes[1].pid, number)
    join(processes, errors)
    assert not (folder / "final").exists() and len(records(folder)) < 12
    join(fork(train, tiny_recipe, *overrides, errors=errors, ranks=2), errors)
    assert_equal(folder, left_alone(2))


@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_sums_of_three_addends_keep_their_order(tmp_path, tiny_recipe, ranks):
    """Stopped in both phases and resumed: gradients of so many processes are added up in the same order as before."""
    errors = tmp_path / "errors"
    phases = "phases=[{kind: encoder, steps: 8}, {kind: tokenizer, steps: 8}]"
    alone, stopped = ((phases, f"output_dir={tmp_path / name}") for name in ("alone", "stopped"))
    join(fork(train, tiny_recipe, *alone, errors=errors, ranks=ranks), errors)
    for steps in (3, 11):
        join(fork(train_some, tiny_recipe, stopped, steps, errors=errors, ranks=ranks), errors)
        assert len(records(tmp_path / "stopped")) < 16
    join(fork(train, tiny_recipe, *stopped, errors=errors, ranks=ranks), errors)
    assert_equal(tmp_path / "stopped", tmp_path / "alone")


def test_another_number_of_processes_goes_on(tmp_path, tiny_recipe):
    errors, folder = tmp_path / "errors", tmp_path / "run"
    overrides = (f"output_dir={folder}", "phases=[{kind: encoder, steps: 4}]")
    join(fork(train_some, tiny_recipe, overrides, 2, errors=errors, ranks=2), errors)
    join(fork(train, tiny_recipe, *overrides, errors=errors), errors)
    assert "was written with 2 processes, now 1: the data is shuffled anew" in errors.read_text()
    assert [record["step"] for record in records(folder)] == [1, 2, 3, 4]
    assert open_checkpoint(list_checkpoints(folder / "checkpoints")[-1]).state["num_processes"] == 1


def test_epochs_are_no_shorter_on_more_processes(tmp_path, tiny_recipe):
    """2 epochs of 24 clips are 12 steps of one process, and 6 of two: step 8 is not the end of the phase."""
    errors, folder = tmp_path / "errors", tmp_path / "run"
    overrides = ("phases=[{kind: encoder, epochs: 2}]", "training.examples_per_epoch=24", f"output_dir={folder}")
    join(fork(train_some, tiny_recipe, overrides, 8, errors=errors), errors)
    join(fork(train, tiny_recipe, *overrides, errors=errors, ranks=2), errors, exitcode=1)
    said = errors.read_text()
    assert "Cannot resume encoder-iter1: it has 6 steps with 2 processes" in said and "one of 12 steps with 1" in said
    join(fork(train, tiny_recipe, *overrides, "training.batch_size=2", errors=errors, ranks=2), errors)
    assert [record["step"] for record in records(folder)] == [*range(1, 13)]


def train_some(recipe, overrides, steps):
    """The run, stopped after one step more than `steps`."""
    (folder,) = (Path(each.removeprefix("output_dir=")) for each in overrides if each.startswith("output_dir="))
    train(recipe, *overrides, stop=stop_after(folder, steps + 1))


@pytest.mark.parametrize("change", ["data.num_workers=1", "training.batch_size=2", "data.shuffle_buffer=5"])
def test_another_layout_of_the_data_goes_on(tmp_path, tiny_recipe, change, caplog):
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 5}]")
    train_some(tiny_recipe, overrides, 3)
    train(tiny_recipe, *overrides, change)
    key, now = change.split(".")[1].split("=")
    assert f", now {now}: the data is shuffled anew" in caplog.text and f"was written with {key}=" in caplog.text
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_optimizer_stays_within_a_phase(tmp_path, tiny_recipe, before, now):
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 5}]")
    train_some(tiny_recipe, (*overrides, f"training.optimizer={before}"), 3)
    with pytest.raises(CheckpointError, match="is of another optimizer than the run's.*training.optimizer stays"):
        train(tiny_recipe, *overrides, f"training.optimizer={now}")


def test_a_finished_model_that_is_damaged_is_written_anew(tmp_path, tiny_recipe, caplog):
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 3}]")
    train(tiny_recipe, *overrides)
    final = tmp_path / "run" / "final"
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        whole = (final / name).read_bytes()
        other = (tmp_path / "run" / "encoder-iter1" / name).read_bytes()
        for damage in (whole[:1], b"[1]", None, *((other,) if name == "model.safetensors" else ())):
            (final / name).unlink() if damage is None else (final / name).write_bytes(damage)
            caplog.clear()
            train(tiny_recipe, *overrides)
            assert (final / name).read_bytes() == whole and f"{final} is damaged" in caplog.text


def test_a_checkpoint_that_is_named_again_takes_nothing_back(tmp_path, tiny_recipe, caplog):
    """The command of a requeued job stays the same: it goes on from what it wrote since."""
    caplog.set_level(logging.INFO, "bridle_hf")
    folder, phases = tmp_path / "run", "phases=[{kind: encoder, steps: 9}]"
    train_some(tiny_recipe, (f"output_dir={folder}", phases), 5)
    named = list_checkpoints(folder / "checkpoints")[0]
    train_some(tiny_recipe, (f"output_dir={folder}", phases, f"resume={named}"), 6)
    assert f"going on from {named}" in caplog.text
    newest = list_checkpoints(folder / "checkpoints")[-1]
    assert newest != named
    train(tiny_recipe, f"output_dir={folder}", phases, f"resume={named}")
    assert f"going on from {newest}" in caplog.text
    assert [record["step"] for record in records(folder)] == [*range(1, 10)]


def test_a_run_whose_checkpoints_are_all_damaged_starts_over(tmp_path, tiny_recipe, caplog):
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 8}]")
    train_some(tiny_recipe, overrides, 5)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"damaged")
    train_some(tiny_recipe, overrides, 3)
    assert f"no checkpoint is whole: the earlier run was moved to {tmp_path / 'run.old-1'}" in caplog.text
    assert (tmp_path / "run.old-1" / "metrics.jsonl").read_text() == before
    train(tiny_recipe, *overrides)
    assert [record["step"] for record in records(tmp_path / "run")] == [*range(1, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old-1"]


def test_a_finished_model_without_its_checkpoints_is_not_overwritten(tmp_path, tiny_recipe, caplog):
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 2}]")
    train(tiny_recipe, *overrides)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    train(tiny_recipe, *overrides, "seed=5")
    assert f"there is a finished model and no checkpoint: the earlier run was moved to {tmp_path / 'run.old-1'}" in (
        caplog.text
    )
    assert (tmp_path / "run.old-1" / "final" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() != before


def test_folders_that_are_called_like_those_of_a_run_stay(tmp_path, tiny_recipe):
    for name in ("final", "encoder-iter1"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "mine.txt").write_text(name)
    train(tiny_recipe, f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 2}]")
    for name in ("final", "encoder-iter1"):
        assert (tmp_path / "run" / f"{name}.old-1" / "mine.txt").read_text() == name
        assert (tmp_path / "run" / name / "config.json").is_file()


def test_a_run_that_starts_over_stays_behind_its_link(tmp_path, tiny_recipe):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    overrides = (f"output_dir={tmp_path / 'link'}", "phases=[{kind: encoder, steps: 2}]")
    train(tiny_recipe, *overrides)
    train(tiny_recipe, *overrides, "resume=never")
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["run", "run.old-1"]
    assert (tmp_path / "link").is_symlink() and len(records(tmp_path / "disk" / "run")) == 2


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_one_run_alone_writes_to_a_folder(tmp_path, tiny_recipe, resume):
    """A launcher that was killed leaves its trainers; the same command, given again, says so and touches nothing."""
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 3000}]", "data.num_workers=1")
    first = fork(train, tiny_recipe, *overrides, errors=tmp_path / "first")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or len(records(tmp_path / "run")) < 4:
        assert time.monotonic() < deadline and first[0].is_alive(), (tmp_path / "first").read_text()
        time.sleep(0.01)
    again = fork(train, tiny_recipe, *overrides, f"resume={resume}", errors=tmp_path / "again", ranks=2)
    join(again, tmp_path / "again", exitcode=1)
    said = f"FolderError: {tmp_path / 'run'} is in use: process {first[0].pid} on {socket.gethostname()} writes there"
    assert (tmp_path / "again").read_text().count(said) == 2
    os.kill(first[0].pid, signal.SIGTERM)
    join(first, tmp_path / "first")
    steps = [record["step"] for record in records(tmp_path / "run")]
    assert steps == [*range(1, len(steps) + 1)] and list_checkpoints(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run" / ".lock").exists() and not (tmp_path / "run.old-1").exists()


def test_a_folder_that_cannot_be_written_to_is_named_before_data_is_opened(tmp_path, tiny_recipe, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Run, "open_data", lambda run: pytest.fail("data was opened"))
    with pytest.raises(FolderError, match=f"{tmp_path / 'file' / 'run'} cannot be written to: Not a directory"):
        train(tiny_recipe, f"output_dir={tmp_path / 'file' / 'run'}")


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        ("seed", "seed=5"),
        ("phases.0.steps", "phases=[{kind: encoder, steps: 2}]"),
        ("phases", "phases=[{kind: encoder, steps: 1}, {kind: tokenizer, steps: 1}]"),
    ],
)
def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(tmp_path, tiny_recipe, changed, other):
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 1}]")
    train(tiny_recipe, *overrides)
    train(tiny_recipe, *overrides)  # finished: nothing to do
    with pytest.raises(ValueError, match=rf"holds the finished run of another recipe \(changed: {changed}: .* -> .*\)"):
        train(tiny_recipe, *overrides, other)


def test_a_signal_before_the_first_step_ends_the_process(tmp_path, tiny_recipe, monkeypatch):
    """Data is opened there, and perhaps a cache written, which can take hours."""
    monkeypatch.setattr(Run, "open_data", lambda run: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs tests in background
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe, f"output_dir={tmp_path / 'run'}")
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_loss_scaler_of_fp16_goes_on_in_the_next_phase(tmp_path, tiny_recipe, monkeypatch):
    """Runs started in another precision can be resumed in fp16. Accelerate has the scaler on GPUs only."""
    scales, build, take = [], pretraining.build_accelerator, engine.forward_backward

    def with_scaler(*given):
        accelerator = build(*given)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        return accelerator

    def note(run, *given):
        scales.append(run.accelerator.scaler.get_scale())
        return take(run, *given)

    phases = "phases=[{kind: encoder, steps: 4}, {kind: tokenizer, steps: 3}]"
    train(tiny_recipe, f"output_dir={tmp_path / 'run'}", phases, stop=nullcontext(lambda: True))  # after one step
    monkeypatch.setattr(pretraining, "build_accelerator", with_scaler)
    monkeypatch.setattr(engine, "forward_backward", note)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Run, "export", mock.Mock(side_effect=KeyboardInterrupt))
        train(tiny_recipe, f"output_dir={tmp_path / 'run'}", phases)
    train(tiny_recipe, f"output_dir={tmp_path / 'run'}", phases)
    assert scales == [16, 16, 16, 32, 32, 32]
