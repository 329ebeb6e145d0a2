"""Accelerate's trackers: the project and the run that they write to, and the names of scalars."""

import json
import uuid
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import LoggerType

from ..files import write_whole

RUN = "tracker.json"  # tracker -> id of this folder's run there


def check_tracker(tracker: str | None) -> None:
    """Raise a `ValueError` for the name of a tracker that Accelerate does not have."""
    known = [name for name in LoggerType.list() if name != str(LoggerType.ALL)]
    if tracker is not None and tracker not in known:
        raise ValueError(f"`tracker` is {tracker!r}; it takes null or one of {', '.join(known)}.")


def finish_trackers(accelerator: Accelerator) -> None:
    """Finish the accelerator's trackers. `end_training` would also destroy the process group, which later runs need."""
    for tracker in accelerator.trackers:
        tracker.finish()


def start_tracker(accelerator: Accelerator, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
    """Start the accelerator's tracker. Every process calls it.

    A run of Weights & Biases or MLflow keeps its id in the folder, so that a resumed one goes on in it.

    Args:
        folder: of the run; its path is the run's name.
        project: where the tracker has projects. TensorBoard has none: it writes to `tensorboard/` in the folder.
        settings: of the run, shown beside its curves; TensorBoard does not get them.
    """
    ids = json.loads((folder / RUN).read_text()) if (folder / RUN).is_file() else {}
    tracker = next(map(str, accelerator.log_with), None)
    more, name = {}, str(folder)
    if tracker == "wandb":
        more = {"name": name, "id": ids.get(tracker, uuid.uuid4().hex), "resume": "allow", "dir": name}
    elif tracker == "mlflow":
        more = {"run_id": ids[tracker]} if tracker in ids else {"run_name": name}
    elif tracker == "trackio":
        more = {"name": name, "resume": "allow"}
    accelerator.init_trackers("tensorboard" if tracker == "tensorboard" else project, init_kwargs={tracker: more})
    if tracker in ("tensorboard", None) or tracker in ids:
        return
    for each in accelerator.trackers:
        each.store_init_configuration(flat(settings))
    if accelerator.is_main_process:
        if tracker == "mlflow":
            more = {"id": accelerator.get_tracker(tracker, unwrap=True).info.run_id}
        if "id" in more:
            write_whole(folder / RUN, json.dumps(ids | {tracker: more["id"]}))


def scalars(record: dict) -> dict[str, float]:
    """The finite numbers of a training record, by the names that trackers get.

    Names begin with the phase, `encoder-iter1/loss`, because losses of different phases cannot be compared. Measures of
    features can, and keep one name in all phases, `evaluate/knn`.
    """
    place = {"phase", "phase_index", "step", "total_step"}
    numbers = {name: value for name, value in flat(record).items() if isinstance(value, int | float)}
    return {
        name if name.startswith("evaluate/") else f"{record['phase']}/{name}": value
        for name, value in numbers.items()
        if name not in place and isfinite(value)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists under one-level names, lists counted from 1: `codebooks/cur/1`."""
    found = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value, start=1))
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = value
    return found
