"""Tables of what a classifier does with each class and each clip: of a fold in its folder, of all in `output_dir`.

per_class.csv     precision, recall and so on of each class, see `class_rows`
predictions.csv   one row per clip, see `prediction_rows`
confusion.csv     rows are the true class, columns the predicted one (one label per clip)
confusion.png     the same as a picture, of all folds, of up to 60 classes, with matplotlib
results.md        scores of the folds, and the worst classes
"""

import json
import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from yaml import YAMLError

from ..evaluation.classes import (
    class_rows,
    confusion_matrix,
    confusion_rows,
    csv_text,
    prediction_rows,
    with_header,
    worst_classes,
    write_text,
)
from ..evaluation.tables import markdown
from ..files import set_aside, whole_file
from ..recipe_reader import changed_keys, read_yaml

logger = logging.getLogger(__name__)

LOGITS = "logits.npy"  # of the test clips of a fold, in the dataset's order
DRAWN = 60  # classes of the picture at most
OF_ALL_FOLDS = ("results.json", "results.md", "per_class.csv", "predictions.csv", "confusion.csv", "confusion.png")


def write_fold_tables(folder, logits, examples, rows):
    """Writes the tables of a fold.

    Args:
        logits: (n, classes) of the test clips; where they are NaN or inf, a clip counts in no class.
        rows: (n,) of these clips in `examples`.
    """
    with whole_file(Path(folder) / LOGITS) as partial, partial.open("wb") as file:
        np.save(file, logits.astype(np.float32), allow_pickle=False)
    _write(folder, logits, examples, rows, predictions_of(logits, examples, rows))


def read_logits(folder, shape):
    """The logits of a fold that was done before; None where there are none of that shape."""
    try:
        logits = np.load(Path(folder) / LOGITS, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return logits if logits.shape == shape else None


def write_tables(output_dir, folders, examples, results):
    """Writes the tables of all folds, results.md and the picture.

    Args:
        folders: fold -> its folder and its rows in `examples`, of the folds that were tested.
        results: what `finetune` returns.
    """
    output_dir, found, predictions = Path(output_dir), [], []
    for fold, (folder, rows) in folders.items():
        logits = read_logits(folder, (len(rows), len(examples.label_names)))
        if logits is None:
            logger.warning("%s has no %s: the tables over all folds are without it", folder, LOGITS)
            continue
        found.append((logits, rows))
        predictions += [row | {"fold": fold} for row in predictions_of(logits, examples, rows)]
    tables = scores_table(results)
    if found:
        logits, rows = (np.concatenate(each) for each in zip(*found, strict=True))
        by_class, counts = _write(output_dir, logits, examples, rows, predictions)
        tables += "\n## Worst classes\n\n" + markdown(worst_classes(by_class, counts))
        if counts is not None:
            draw(output_dir / "confusion.png", counts, examples.label_names)
    write_text(output_dir / "results.md", tables)


def keep_results(output_dir, recipe):
    """Decide what becomes of the results of earlier folds when a run tests no fold. Results of the same recipe stay;
    those of another one are moved to NAME.old-1, -2, ...

    Args:
        recipe: as YAML.

    Returns:
        whether there are results that stay.
    """
    try:
        before = read_yaml((output_dir / "finetune.yaml").read_text())
        if not json.loads((output_dir / "results.json").read_text())["folds"]:
            return False
    except (OSError, ValueError, KeyError, TypeError, YAMLError):  # none, or damaged
        return False
    if changed := sorted({*changed_keys(before, read_yaml(recipe))} - {"folds", "final", "output_dir"}):
        moved = {name: set_aside(output_dir / name).name for name in OF_ALL_FOLDS if (output_dir / name).is_file()}
        logger.warning("%s has results of another recipe (%s): moved to %s", output_dir, changed, list(moved.values()))
    return not changed


def scores_table(results):
    """Markdown of the scores of each fold, and of their means."""
    main, *others = (name for name in results if f"per_fold_{name}" in results or name == next(iter(results)))
    lists = {main: results["per_fold"]} | {name: results[f"per_fold_{name}"] for name in others}
    rows = [
        {"fold": fold, **{name.replace("_", " "): _figure(values[row]) for name, values in lists.items()}}
        for row, fold in enumerate(results["folds"])
    ]
    mean = {name.replace("_", " "): _figure(results[name]) for name in lists}
    return "# Results\n\n" + markdown([*rows, {"fold": "mean", **mean}])


def draw(path, counts, label_names):
    """The picture of a confusion matrix, where there are few enough classes and matplotlib is installed."""
    if len(label_names) > DRAWN:
        return
    if not find_spec("matplotlib"):
        logger.info('%s is not drawn: pip install "bridle-hf[report]"', path)
        return
    from ..evaluation.plots import confusion_picture

    with whole_file(path) as partial:
        confusion_picture(counts, label_names).savefig(partial, format="png", dpi=150, facecolor="white")


def predictions_of(logits, examples, rows):
    """`prediction_rows` of some clips."""
    names = [examples.clip_names[row] for row in rows]
    return prediction_rows(names, logits, examples.labels[rows], examples.label_names)


def _write(folder, logits, examples, rows, predictions):
    """Writes the csv files; returns the rows of the classes, and the confusion matrix of clips with one label."""
    sound = np.isfinite(logits).all(axis=1)
    logits, labels = logits[sound], examples.labels[rows][sound]
    by_class = class_rows(logits, labels, examples.label_names)
    tables, counts = {"per_class": with_header(by_class), "predictions": with_header(predictions)}, None
    if labels.ndim == 1:
        counts = confusion_matrix(logits, labels)
        tables["confusion"] = confusion_rows(counts, examples.label_names)
    for name, table in tables.items():
        write_text(Path(folder) / f"{name}.csv", csv_text(table))
    return by_class, counts


def _figure(value):
    return "" if value is None else f"{value:.4f}"
