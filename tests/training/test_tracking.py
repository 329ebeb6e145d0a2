"""What Accelerate's trackers are told. Weights & Biases and MLflow are themselves asked where they are installed."""

import json
from math import inf, nan

import pytest
from accelerate import Accelerator

from bridle_hf.training.tracking import check_tracker, scalars, start_tracker


@pytest.fixture
def track(tmp_path):
    """Starts the tracker of a run in a folder, logs a record and ends; returns the tracker's own run."""

    def run(tracker, step=1):
        accelerator = Accelerator(cpu=True, log_with=tracker, project_dir=str(tmp_path))
        start_tracker(accelerator, tmp_path, "owls", {"seed": 3, "training": {"betas": (0.9, 0.95), "tracker": None}})
        own = accelerator.get_tracker(tracker, unwrap=True)
        accelerator.log({"encoder-iter1/loss": 0.5}, step=step)
        for each in accelerator.trackers:
            each.finish()
        return own

    return run


def test_scalars_stand_under_their_phase():
    place = {"phase": "encoder-iter1", "phase_index": 0, "step": 3, "total_step": 3}
    record = place | {
        "loss": 1.0,
        "lr": nan,
        "grad_norm": inf,
        "codebooks": {"cur": [0.5, 0.25]},
        "skipped": {"a": "b"},
    }
    assert scalars(record) == {
        "encoder-iter1/loss": 1.0,
        "encoder-iter1/codebooks/cur/1": 0.5,
        "encoder-iter1/codebooks/cur/2": 0.25,
    }
    assert scalars(place | {"evaluate": {"knn": 0.5}}) == {"evaluate/knn": 0.5}


def test_tensorboard_writes_into_the_run(tmp_path, track):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    track("tensorboard")
    (file,) = (tmp_path / "tensorboard").iterdir()  # no second run beside it for the settings
    log = events.EventAccumulator(str(file))
    log.Reload()
    assert [(each.step, each.value) for each in log.Scalars("encoder-iter1/loss")] == [(1, 0.5)]
    assert list(tmp_path.iterdir()) == [file.parent]


def test_wandb_goes_on_in_its_run(tmp_path, track, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, second = track("wandb"), track("wandb", 2)
    assert first.project == "owls" and first.name == str(tmp_path) and first.id == second.id
    assert json.loads((tmp_path / "tracker.json").read_text()) == {"wandb": first.id}
    assert dict(first.config) == {
        "seed": 3,
        "training/betas/1": 0.9,
        "training/betas/2": 0.95,
        "training/tracker": None,
    }


def test_mlflow_goes_on_in_its_run(tmp_path, track, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    first, second = track("mlflow"), track("mlflow", 2)
    assert first.info.run_id == second.info.run_id and first.info.run_name == str(tmp_path)
    run = mlflow.get_run(first.info.run_id)
    assert mlflow.get_experiment(run.info.experiment_id).name == "owls" and run.data.params["seed"] == "3"
    history = mlflow.MlflowClient().get_metric_history(first.info.run_id, "encoder-iter1/loss")
    assert [each.step for each in history] == [1, 2]


def test_the_name_of_no_tracker_is_refused():
    check_tracker(None)
    for name in ("tensorbord", "all"):
        with pytest.raises(ValueError, match=f"`tracker` is '{name}'; it takes null or one of .*tensorboard"):
            check_tracker(name)
