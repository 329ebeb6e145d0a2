"""Folds of labelled clips for probes and fine-tuning: drawn or given, chosen by name, checked before training."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold

from ..data.labels import LabelError, Labels
from ..data.listing import name_some

logger = logging.getLogger(__name__)

DRAWN = 5  # folds, where the data has none


def strata(labels):
    """Groups (n,) that folds are drawn evenly from: the classes; of several labels the rarest that a clip has, and one
    group more for clips without any."""
    if labels.ndim == 1:
        return labels
    here, counts = labels > 0, labels.sum(axis=0, dtype=np.int64)
    return np.where(here.any(axis=1), np.where(here, counts, len(labels) + 1).argmin(axis=1), labels.shape[1])


def learnable(labels) -> bool:
    """Whether labels (n,), or multi-hot (n, classes), tell two clips apart."""
    return bool((labels[1:] != labels[:1]).any())


def outer_folds(labels, folds=None, seed=0, num_folds=DRAWN):
    """The folds as given, or ones numbered from 1 where the data has none, drawn evenly of `strata` by `seed`: (n,).

    Raises:
        LabelError: there is one fold alone, or no class has a clip for each that is to be drawn.
        ValueError: not every example has a fold.
    """
    if folds is not None:
        folds = np.asarray(folds)
        if folds.shape != (len(labels),):
            raise ValueError(f"folds: got shape {folds.shape}; it takes one of each example, ({len(labels)},)")
        if len(np.unique(folds)) < 2:
            raise LabelError(f"folds: got only {np.unique(folds).tolist()}; at least two folds are needed")
        return folds
    labels = strata(np.asarray(labels))
    most = np.unique(labels, return_counts=True)[1].max()
    if most < num_folds:
        raise LabelError(
            f"folds: the largest class has {most} clips, too few to draw {num_folds} folds; add clips, or say by "
            "data.fold_column or data.test_split which are to be tested"
        )
    folds = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer clips, which `check_folds` names
        splits = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)
        for number, (_, test) in enumerate(splits, start=1):
            folds[test] = number
    return folds


def choose_folds(wanted: Sequence | None, folds: np.ndarray, otherwise: Sequence | None = None) -> list:
    """The values of the folds to test on: those that are wanted, `otherwise` those, or all.

    Values compare as text too: a recipe may say 1 for a column of strings.

    Raises:
        LabelError: a fold that is not there.
    """
    there = np.unique(folds).tolist()
    chosen = []
    for fold in wanted or otherwise or there:
        same = [each for each in there if each == fold] or [each for each in there if str(each) == str(fold)]
        if not same:
            raise LabelError(f"`folds` names {fold!r}; the data has {there}.")
        chosen.append(same[0])
    return chosen


def check_classes(found: Labels) -> None:
    """Raise a `LabelError` if all clips are of one class."""
    labels = found.labels
    if labels.ndim == 1 and len(np.unique(labels)) < 2:
        raise LabelError(
            f"data.label_column: all clips are of one class, {found.label_names[labels[0]]!r}; it takes at least two, "
            "and clips without a label (None, also NA or nan in a csv file) do not count."
        )


def check_folds(found: Labels, seed: int = 0, wanted: Sequence | None = None) -> None:
    """Look at what each tested fold is trained on and tested with; warn of classes that one of both lacks.

    Args:
        found: labels and folds.
        seed: of folds that are drawn.
        wanted: test folds; None for all.

    Raises:
        LabelError: it is one of `check_classes`, `outer_folds` and `choose_folds`.
    """
    labels, names = found.labels, found.label_names
    check_classes(found)
    folds = outer_folds(labels, found.folds, seed)
    lacks = {"the training": {}, "the test": {}}
    for fold in choose_folds(wanted, folds, found.test_folds):
        for what, rows in (("the training", folds != fold), ("the test", folds == fold)):
            here = labels[rows]
            there = here.any(axis=0) if labels.ndim > 1 else np.bincount(here, minlength=len(names)) > 0
            if not there.all():
                lacks[what][fold] = [names[label] for label in np.flatnonzero(~there)]
    for what, classes in lacks.items():
        if classes:
            each = [f"fold {fold}: {name_some(missing)}" for fold, missing in classes.items()]
            logger.warning("%s of some folds has no clip of a class. %s", what, name_some(each, between="; "))


def check_training(labels: np.ndarray, folds: np.ndarray, tested: Sequence) -> None:
    """Raise a `LabelError` for a fold that is tested while the others hold one class alone, or clips that all have the
    same labels: no probe can take them."""
    for fold in tested:
        rest = labels[folds != fold]
        if not learnable(rest):
            what = "have the same labels" if labels.ndim > 1 else f"are of one class, {rest.tolist()[0]!r}"
            raise LabelError(
                f"folds: all clips outside of fold {fold!r} {what}, and nothing can be learned; test other folds."
            )


def check_probe(found: Labels, seed: int = 0, wanted: Sequence | None = None, several: bool = False) -> None:
    """`check_folds`, for probes, which take at least two classes to learn from.

    Args:
        found, seed, wanted: as for `check_folds`.
        several: whether clips may have several labels.

    Raises:
        LabelError: a probe cannot take these labels or folds.
    """
    multi_hot = found.labels.ndim > 1
    if multi_hot and not several:
        raise LabelError(
            "data.label_column: clips have several labels; this probe takes one class a clip, `bridle probe` several."
        )
    check_folds(found, seed, wanted)
    folds = outer_folds(found.labels, found.folds, seed)
    labels = found.labels if multi_hot else np.array(found.label_names)[found.labels]
    tested = choose_folds(wanted, folds, found.test_folds)
    check_training(labels, folds, tested)
    if multi_hot and not any(found.labels[folds == fold].any() for fold in tested):
        raise LabelError(f"folds: no clip of {name_some([str(fold) for fold in tested])} has a label; test others.")
