"""What a classifier says of whole clips: one row each, as a table or for Python."""

import json
import logging

import numpy as np
import torch

from ..data.modalities import MODALITIES
from ..data.source import MARK
from .classes import csv_text, write_text
from .windows import mean_of_windows, run_windows

logger = logging.getLogger(__name__)

HALF = 0.5


def takes_several_labels(config) -> bool:
    """Whether a classifier with this config predicts any number of labels per clip (multi-label classification).

    Raises:
        ValueError: it is a regression model.
    """
    if config.problem_type == "regression":
        raise ValueError("the model is one of regression, and gives no classes; take its logits.")
    return config.problem_type == "multi_label_classification"


@torch.no_grad()
def classified(model, data, processor, threshold=None, batch_size=32, dataset=None, skipped=None, per_window=False):
    """Classify every clip that `data` names, or each window of it.

    Of a sound that is longer than a window, the logits of all windows are averaged, each weighted by its patches in
    time, as in tests of fine-tuning; with `data.test_windows` "first", its first window counts alone.

    Args:
        model: `BridleForAudioClassification` or that of another modality; it is put in evaluation mode.
        data: `DataArguments`.
        processor: the model's front-end.
        threshold (`float`, *optional*): labels are given that are likelier than this: by default one half where a clip
            can have several labels; otherwise the likeliest one always.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.
        skipped (`dict`): receives the name of each clip that cannot be used, and the reason.
        per_window (`bool`): classify the windows of sounds one by one; each then has its `start` and `end` in seconds.

    Yields:
        dict: `name` of the clip (if an earlier clip has the same name, its position in the dataset is added); its
        `labels`, the likeliest first; `scores`, label -> probability of all labels, the likeliest first. No labels and
        NaN for a clip whose logits are not finite.

    Raises:
        ValueError: `per_window` for a modality without windows of fixed seconds, or a regression model.
    """
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise ValueError(f"threshold is {threshold!r}; it takes a probability, from 0 to 1.")
    config, several = model.eval().config, takes_several_labels(model.config)
    patch = MODALITIES[config.modality].seconds_per_patch(config, processor)
    if per_window and patch is None:
        raise ValueError(f"per_window is true; {config.modality} data has no windows of so many seconds.")
    names = [config.id2label[number] for number in range(config.num_labels)]
    floor = (HALF if several else 0.0) if threshold is None else threshold

    def run(values, mask):
        given = {} if mask is None else {"attention_mask": mask}
        return model(**{model.main_input_name: values}, **given).logits.float().cpu().numpy()

    def said(logits):
        logits = torch.from_numpy(logits).double()
        scores = (logits.sigmoid() if several else logits.softmax(dim=-1)).numpy()
        order = np.argsort(-scores, kind="stable")
        chosen = [label for label in (order if several else order[:1]) if scores[label] > floor]
        return {
            "labels": [names[label] for label in chosen],
            "scores": {names[label]: float(scores[label]) for label in order},
        }

    unit, device = config.patch_size[0], model.device
    how = {"batch_size": batch_size, "device": device, "dataset": dataset, "skipped": skipped, "marked": True}
    seen = set()
    for example, windows in run_windows(data, processor, unit, run, **how):
        name = example[MARK] if example["clip_name"] in seen else example["clip_name"]
        seen.add(name)
        for place, found in _places(windows, patch if per_window else None):
            yield {"name": name, **place, **said(found)}


def _places(windows, patch):
    """(place, logits) of a clip, or with `patch`, the seconds of one, of each of its windows."""
    if patch is None:
        return [({}, mean_of_windows(windows))]
    return [({"start": start * patch, "end": (start + length) * patch}, found) for start, length, found in windows]


def write_predictions(path, model, data, processor, threshold=None, batch_size=32, dataset=None, per_window=False):
    """Write a csv table of `classified`, as a whole or not at all.

    A row holds `name`, with `per_window` `start` and `end` in seconds, `prediction`, its `score`, one column
    `score_LABEL` per label in their order, and `problem`: why a clip could not be used. Where a clip can have several
    labels, prediction and score are lists in JSON.

    Returns:
        the number of clips or windows that were classified, and of those that could not be used.
    """
    config, several, skipped = model.config, takes_several_labels(model.config), {}
    labels = [config.id2label[number] for number in range(config.num_labels)]
    place = ["start", "end"] if per_window else []
    rows, bad = [["name", *place, "prediction", "score", *(f"score_{label}" for label in labels), "problem"]], 0
    for found in classified(model, data, processor, threshold, batch_size, dataset, skipped, per_window):
        scores = {label: round(score, 6) for label, score in found["scores"].items()}
        chosen = [scores[label] for label in found["labels"]]
        problem = None
        if np.isnan(list(scores.values())).any():
            problem, scores, bad = "the logits are not finite", dict.fromkeys(labels), bad + 1
        given = [found["labels"], chosen]
        if several:
            given = [json.dumps(each, ensure_ascii=False) for each in given]
        else:
            given = [each[0] if each else None for each in given]
        where = [round(found[key], 3) for key in place]
        rows.append([found["name"], *where, *given, *(scores[label] for label in labels), problem])
    nothing = [None] * (len(place) + 2 + len(labels))
    rows += [[name, *nothing, reason] for name, reason in skipped.items()]
    write_text(path, csv_text(rows))
    return len(rows) - 1 - len(skipped) - bad, len(skipped) + bad
