"""A run pushes its newest checkpoint to the Hub while it goes on, and goes on from there elsewhere."""

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from unittest.mock import MagicMock

import pytest
from hub_server import serve
from huggingface_hub.errors import HTTPError
from runs import differing, weights

from bridle_hf.files import WriteError
from bridle_hf.training import hub_copy, load_recipe, pretrain


def command(recipe, folder, environment):
    words = ["pretrain", str(recipe), f"output_dir={folder}", "training.hub_repo_id=me/owls"]
    program = [sys.executable, "-m", "bridle_hf.cli", *words]
    return subprocess.run(program, env=os.environ | environment, capture_output=True, text=True)


def test_the_newest_checkpoint_is_there_and_is_gone_on_from(tiny_recipe, tmp_path):
    with serve() as hub:
        done = command(tiny_recipe, tmp_path / "run", hub.environment)
        assert done.returncode == 0, done.stderr
        copy = hub.repositories["me/owls"]
    assert copy.private and not (tmp_path / "run" / ".hub").exists()
    for name in ("metrics.jsonl", "recipe.yaml", "final/model.safetensors", "encoder-iter1/config.json"):
        assert copy.files("main")[name] == (tmp_path / "run" / name).read_bytes(), name
    (*_, newest) = sorted((tmp_path / "run" / "checkpoints").iterdir())
    there = {name for name in copy.files("main") if name.startswith("checkpoint/")}
    assert there == {f"checkpoint/{path.name}" for path in newest.iterdir()}

    first = next(files for files in copy.commits.values() if "checkpoint/state.json" in files)
    assert json.loads(first["checkpoint/state.json"])["step"] == 2
    saved = tmp_path / "saved"
    saved.mkdir()
    for name, content in first.items():
        if name.startswith("checkpoint/"):
            (saved / name.removeprefix("checkpoint/")).write_bytes(content)
    pretrain(load_recipe(tiny_recipe, [f"output_dir={tmp_path / 'elsewhere'}", f"resume={saved}"]))
    assert not differing(weights(tmp_path / "run" / "final"), weights(tmp_path / "elsewhere" / "final"))


def test_what_cannot_be_pushed_to_is_said_before_the_run(tiny_recipe, tmp_path):
    overrides = [f"output_dir={tmp_path / 'run'}", "training.hub_repo_id='no name'"]
    with pytest.raises(ValueError, match="training.hub_repo_id is 'no name'; it takes ORG/NAME"):
        pretrain(load_recipe(tiny_recipe, overrides))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_hub_that_cannot_be_reached_is_said_before_the_run(tiny_recipe, tmp_path, monkeypatch):
    class Unreachable:
        def create_repo(self, *_, **__):
            raise HTTPError("Connection refused")

    monkeypatch.setattr(hub_copy, "HfApi", Unreachable)
    with pytest.raises(WriteError, match="which cannot be pushed to: Connection refused"):
        pretrain(load_recipe(tiny_recipe, [f"output_dir={tmp_path / 'run'}", "training.hub_repo_id=me/owls"]))


def test_a_push_that_fails_is_a_warning(tiny_recipe, tmp_path, monkeypatch, caplog):
    class Failing:
        def create_repo(self, *_, **__):
            pass

        def upload_folder(self, **_):
            failed = Future()
            failed.set_exception(OSError("500 Server Error\nRequest ID: 1"))
            return failed

    monkeypatch.setattr(hub_copy, "HfApi", Failing)
    assert pretrain(load_recipe(tiny_recipe, [f"output_dir={tmp_path / 'run'}", "training.hub_repo_id=me/owls"]))
    said = {each.getMessage() for each in caplog.records if "me/owls" in each.getMessage()}
    assert said == {"me/owls was not pushed to: 500 Server Error Request ID: 1"}


def test_a_copy_that_cannot_be_staged_is_a_warning(tiny_recipe, tmp_path, monkeypatch, caplog):
    class Quiet:
        def create_repo(self, *_, **__):
            pass

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(hub_copy, "HfApi", Quiet)
    monkeypatch.setattr(hub_copy.HubCopy, "_stage", fail)
    assert pretrain(load_recipe(tiny_recipe, [f"output_dir={tmp_path / 'run'}", "training.hub_repo_id=me/owls"]))
    said = {each.getMessage() for each in caplog.records if "me/owls" in each.getMessage()}
    assert said == {"me/owls was not pushed to: no space left"}


def test_what_a_killed_process_left_half_written_is_not_pushed(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_copy, "HfApi", MagicMock())
    for name in ("run/best", "run/.best.partial", "run/checkpoints/phase-00-step-00000002"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    hub_copy.HubCopy("me/owls", True, tmp_path / "run").push(tmp_path / "run/checkpoints/phase-00-step-00000002")
    assert sorted(path.name for path in (tmp_path / "run" / ".hub").iterdir()) == ["best", "checkpoint"]
