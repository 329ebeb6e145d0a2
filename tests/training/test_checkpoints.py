"""Checkpoints: whole or absent, damage is seen, nothing is pickled code."""

import json
import os
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from bridle_hf.training.checkpoints import (
    drop_later_,
    find_checkpoint,
    folder_written_beside,
    list_checkpoints,
    open_checkpoint,
    place_of,
    random_state,
    save_checkpoint,
    set_random_state_,
)


@pytest.fixture
def trained():
    """A model after one step of AdamW, as the accelerator prepares it."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    accelerator.backward(model(torch.ones(4, 3)).sum())
    optimizer.step()
    return accelerator, model, optimizer


@pytest.fixture
def save(trained, tmp_path):
    def write(phase, step, keep=9):
        return save_checkpoint(
            tmp_path,
            *trained,
            task=phase,
            step=step,
            state={"note": "x"},
            data={"at": [1, 2]},
            recipe="a: 1\n",
            keep=keep,
        )

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(trained, save):
    _, model, optimizer = trained
    checkpoint = open_checkpoint(save(1, 20))
    assert (checkpoint.task, checkpoint.step, checkpoint.state["note"]) == (1, 20, "x")
    assert checkpoint.rank_state(0)["data"] == {"at": [1, 2]}
    for name, value in checkpoint.weights().items():
        assert torch.equal(value, model.state_dict()[name])
    fresh = torch.nn.Linear(3, 2)
    moments = torch.optim.AdamW(fresh.parameters(), lr=0.5)
    checkpoint.load_optimizer_(fresh, moments)
    old, new = optimizer.state_dict()["state"], moments.state_dict()["state"]
    assert all(torch.equal(old[i][key], new[i][key]) for i in old for key in ("step", "exp_avg", "exp_avg_sq"))


def test_files_hold_no_code(save):
    path = save(0, 1)
    names = {"model.safetensors", "optimizer.safetensors", "rank-0.json", "state.json", "recipe.yaml", "manifest.json"}
    assert {file.name for file in path.iterdir()} == names
    for file in path.iterdir():
        assert not zipfile.is_zipfile(file)  # as a pickle of torch is
    for name in ("rank-0.json", "manifest.json"):
        json.loads((path / name).read_text())
    assert json.loads((path / "state.json").read_text())["num_processes"] == 1
    assert load_file(path / "optimizer.safetensors").keys() == {
        f"{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }


MANIFESTS = {
    "manifest": '{"model',
    "empty manifest": "{}",
    "manifest of a number": "5",
    "manifest of nothing": "null",
    "manifest of numbers": '{"model.safetensors": 1, "optimizer.safetensors": 1, "state.json": null, "recipe.yaml": 1}',
}


@pytest.mark.parametrize("damage", ["cut", "flip", "lose", "long name", *MANIFESTS])
def test_a_damaged_checkpoint_is_passed_over(save, tmp_path, caplog, damage):
    good, bad = save(0, 9), save(0, 10)
    victim = bad / "model.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "cut":
        victim.write_bytes(content[:-1])
    elif damage == "flip":
        content[-1] ^= 1
        victim.write_bytes(content)
    elif damage == "lose":
        victim.unlink()
    elif damage == "long name":
        manifest = json.loads((bad / "manifest.json").read_text())
        (bad / "manifest.json").write_text(json.dumps(manifest | {"a" * 5000: {"size": 1}}))
    else:
        (bad / "manifest.json").write_text(MANIFESTS[damage])
    assert find_checkpoint(tmp_path).path == good
    assert str(bad) in caplog.text
    with pytest.raises(ValueError, match="manifest"):
        open_checkpoint(bad)


def test_the_newest_is_found_by_phase_then_step(save, tmp_path):
    assert find_checkpoint(tmp_path / "nothing") is None
    for phase, step in ((0, 500), (1, 9), (1, 10)):
        save(phase, step)
    found = find_checkpoint(tmp_path)
    assert (found.task, found.step) == (1, 10)
    drop_later_(tmp_path, open_checkpoint(list_checkpoints(tmp_path)[0]))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["phase-00-step-00000500"]


def test_only_the_newest_are_kept(save, tmp_path):
    for step in (1, 2, 3):
        save(0, step, keep=2)
    assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["2", "3"]


def test_a_checkpoint_outlives_its_own_pruning(save, tmp_path):
    """What is there already is damaged, though it says that it is later."""
    (save(2, 400) / "model.safetensors").write_bytes(b"damaged")
    assert find_checkpoint(tmp_path) is None
    for step in (2, 4):
        assert open_checkpoint(save(0, step, keep=1))
    drop_later_(tmp_path, open_checkpoint(tmp_path / "phase-00-step-00000004"))
    assert names(tmp_path) == ["phase-00-step-00000004"]
    drop_later_(tmp_path, None)
    assert names(tmp_path) == []


@pytest.mark.parametrize("file", ["model.safetensors", "rank-0.json", "manifest.json"])
def test_damaged_checkpoints_are_not_among_those_that_are_kept(save, tmp_path, file):
    save(0, 1)
    (save(0, 2) / file).write_text("short")
    save(0, 3, keep=2)
    assert names(tmp_path) == ["phase-00-step-00000001", "phase-00-step-00000003"]


def test_names_that_only_look_like_checkpoints_are_left_alone(save, tmp_path):
    made = save(0, 4)
    others = [f"{made.name}.backup", "phase-0-step-4", "phase-00-step-٠٠٠٠٠٠٠٩", ".phase-of-mine", "phase-x-step-y"]
    for name in others:
        shutil.copytree(made, tmp_path / name)
    (tmp_path / "phase-00-step-00000099").write_text("a file")
    assert list_checkpoints(tmp_path) == [made] and find_checkpoint(tmp_path).path == made
    (tmp_path / ".phase-00-step-00000006.partial").mkdir()
    drop_later_(tmp_path, find_checkpoint(tmp_path))
    save(1, 1, keep=1)
    assert names(tmp_path) == sorted([*others, "phase-00-step-00000099", "phase-01-step-00000001"])


def test_a_copy_under_the_name_of_a_later_one_is_passed_over(save, tmp_path, caplog):
    made = save(0, 4)
    shutil.copytree(made, tmp_path / "phase-00-step-00000009")
    assert find_checkpoint(tmp_path).path == made
    assert "phase-00-step-00000009 was phase-00-step-00000004 when it was written" in caplog.text


def test_numbers_are_sorted_as_numbers(save, tmp_path):
    for phase, step in ((100, 1), (99, 1), (2, 100_000_000), (2, 99_999_999)):
        save(phase, step)
    assert [place_of(path) for path in list_checkpoints(tmp_path)] == [
        (2, 99_999_999),
        (2, 100_000_000),
        (99, 1),
        (100, 1),
    ]
    assert find_checkpoint(tmp_path).task == 100
    drop_later_(tmp_path, open_checkpoint(tmp_path / "phase-99-step-00000001"))
    assert save(101, 1, keep=2).exists()
    assert [place_of(path) for path in list_checkpoints(tmp_path)] == [(99, 1), (101, 1)]


def test_a_checkpoint_on_another_disk_loses_its_link_alone(save, tmp_path):
    """It was moved there and linked to."""
    moved = tmp_path / "disk"
    made = save(0, 2)
    made.rename(moved)
    made.symlink_to(moved)
    assert find_checkpoint(tmp_path).path == made
    save(0, 4, keep=1)
    assert names(tmp_path) == ["disk", "phase-00-step-00000004"] and open_checkpoint(moved)


def test_a_folder_appears_whole_or_not_at_all(trained, tmp_path):
    accelerator, target = trained[0], tmp_path / "final"
    with pytest.raises(KeyboardInterrupt), folder_written_beside(target, accelerator) as beside:
        (beside / "half").write_text("x")
        raise KeyboardInterrupt
    assert not target.exists()
    for content in ("first", "second"):
        with folder_written_beside(target, accelerator) as beside:
            (beside / "file").write_text(content)
    assert (target / "file").read_text() == "second"
    assert os.listdir(tmp_path) == ["final"]  # neither the half nor the old one is left


def test_random_generators_go_on_where_they_were(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(random_state()))
    drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
    set_random_state_(json.loads((tmp_path / "state.json").read_text()))
    assert [random.random(), np.random.rand(), torch.rand(()).item()] == drawn
