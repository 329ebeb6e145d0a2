"""A share of the training clips that is held out and measured while a fold is trained; curves, early stopping."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from transformers import TrainerCallback

from ..evaluation.cross_validation import strata
from ..files import write_whole
from ..training.tracking import finish_trackers, start_tracker

CURVES = "metrics.jsonl"
MEASURES = ("eval_accuracy", "eval_mean_average_precision")  # the first that a record has tells which is better


def hold_out(labels, rows, share, seed):
    """Splits training clips in two, stratified: of each class its share goes to the validation, rounded up or down.

    Clips with several labels are sorted by the rarest of theirs. The last clip of a class stays in training.

    Args:
        labels: of all clips, (n,) or multi-hot (n, classes).
        rows: of the training clips.
        share: of them that are to be held out.

    Returns:
        Two lists of rows in ascending order: to train on, and to validate with.
    """
    rows = np.asarray(rows)
    here = labels[rows] if labels.ndim > 1 else np.eye(labels.max() + 1, dtype=bool)[labels[rows]]  # (n, classes)
    counts, stratum = here.sum(axis=0), strata(here)  # a clip without a label comes after all classes
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    order = order[np.argsort(stratum[order], kind="stable")]
    # every 1/share-th clip of that order
    marks = np.floor(np.arange(len(rows) + 1) * share + 0.5)
    held = np.zeros(len(rows), dtype=bool)
    held[order] = np.diff(marks) > 0
    for label in np.flatnonzero((counts > 0) & ~here[~held].any(axis=0)):
        if not here[~held, label].any():  # another class may have brought one back
            held[np.flatnonzero(held & (here[:, label] > 0))[0]] = False
    return rows[~held].tolist(), rows[held].tolist()


def best_record(history):
    """The measurement of Trainer's `log_history` with the highest measure, of equals that with the lowest loss, of
    these the first. None where nothing was measured."""
    return max(_measured(history), key=_goodness, default=None)


def _measured(history):
    return [record for record in history if "eval_loss" in record]


def _goodness(record):
    measure = next(record[name] for name in MEASURES if name in record)
    return tuple(-np.inf if np.isnan(value) else value for value in (measure, -record["eval_loss"]))


class Stopping(TrainerCallback):
    """Saves a checkpoint of the best epoch where that is kept, and ends training after `patience` measurements without
    a better one, or after `last_step`.

    All of it follows from the records of the checkpoint, so that a resumed run decides as one left alone.
    """

    def __init__(self, settings, last_step=None):
        self.settings, self.last_step = settings, last_step

    def on_step_end(self, args, state, control, **_):
        if self.last_step is not None and self.last_step <= state.global_step < state.max_steps:
            self.stop(control)

    def on_evaluate(self, args, state, control, **_):
        best = best_record(state.log_history)
        if self.settings.keep == "best" and best["step"] == state.global_step:
            control.should_save = True
        waited = sum(record["step"] > best["step"] for record in _measured(state.log_history))
        if self.settings.patience and waited >= self.settings.patience and state.global_step < state.max_steps:
            self.stop(control)

    def stop(self, control):
        control.should_training_stop = True
        control.should_save = False  # from a checkpoint of this step a resumed run would train on


class Curves(TrainerCallback):
    """What Trainer logs: to metrics.jsonl in a folder, one record per epoch, and to an Accelerate tracker.

    The file is written from the records that Trainer's checkpoints hold, so that it is that of the epochs taken.
    """

    def __init__(self, folder, settings):
        self.folder, self.settings, self.accelerator = Path(folder), settings, None

    def on_train_begin(self, args, state, control, **_):
        settings = self.settings
        if settings.tracker is not None and args.should_save:
            self.accelerator = Accelerator(log_with=settings.tracker, project_dir=str(self.folder))
            start_tracker(self.accelerator, self.folder, settings.tracker_project, asdict(settings))

    def on_log(self, args, state, control, logs, **_):
        records = {}
        for each in state.log_history:
            if "loss" in each or "eval_loss" in each:
                records.setdefault(each["step"], {}).update(each)
        if not args.should_save or not records:
            return
        lines = []
        for step, record in records.items():
            names = sorted(record.keys() - {"step", "epoch"})
            values = {name: record[name] if np.isfinite(record[name]) else None for name in names}
            lines.append(json.dumps({"step": step, "epoch": record["epoch"]} | values) + "\n")
        write_whole(self.folder / CURVES, "".join(lines))
        if self.accelerator is not None:
            self.accelerator.log({k: v for k, v in logs.items() if np.isfinite(v)}, step=state.global_step)

    def on_train_end(self, args, state, control, **_):
        if self.accelerator is not None:
            finish_trackers(self.accelerator)
