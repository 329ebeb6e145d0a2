import logging

import numpy as np
import pytest

from bridle_hf.data import LabelError
from bridle_hf.data.labels import Labels
from bridle_hf.evaluation.cross_validation import check_folds, choose_folds, outer_folds


def labels_of(*labels, folds=None):
    return Labels(np.array(labels), ["a", "b", "c"], None if folds is None else np.array(folds))


@pytest.mark.parametrize(
    ("folds", "wanted", "chosen"),
    [
        (["1", "2"], None, ["1", "2"]),
        (["1", "2"], [2, 1], ["2", "1"]),
        ([1, 2], ["2"], [2]),
        (["1", "1.0"], [1.0], ["1.0"]),
        (["1", "1.0"], [1], ["1"]),
        ([True, False], [False], [False]),
    ],
)
def test_folds_are_chosen_by_their_text(folds, wanted, chosen):
    assert choose_folds(wanted, np.array(folds)) == chosen


def test_folds_of_a_test_split_are_those_alone():
    assert choose_folds(None, np.array(["train", "test"]), ["test"]) == ["test"]
    with pytest.raises(LabelError, match=r"`folds` names 3; the data has \['test', 'train'\]"):
        choose_folds([3], np.array(["train", "test"]), ["test"])


def test_folds_that_cannot_be_drawn_are_refused():
    with pytest.raises(LabelError, match="the largest class has 4 clips, too few to draw 5 folds; .*data.fold_column"):
        outer_folds(np.array([0, 1] * 4))
    with pytest.raises(LabelError, match="at least two folds"):
        check_folds(labels_of(0, 1, folds=[3, 3]))


def test_a_rare_class_is_drawn_all_the_same(recwarn):
    folds = outer_folds(np.array([0, 1] * 5 + [2]))
    assert sorted(np.bincount(folds)[1:]) == [2, 2, 2, 2, 3] and not recwarn.list


def test_one_class_is_refused():
    with pytest.raises(LabelError, match="all clips are of one class, 'b'; it takes at least two"):
        check_folds(labels_of(1, 1, 1, 1, 1, 1))


def test_classes_that_a_part_of_a_fold_lacks_are_named(caplog):
    found = labels_of(0, 1, 2, 0, 1, 1, folds=[1, 1, 1, 2, 2, 2])
    check_folds(found)
    assert "the training of some folds has no clip of a class. fold 1: c" in caplog.text
    assert "the test of some folds has no clip of a class. fold 2: c" in caplog.text
    caplog.clear()
    check_folds(found, wanted=["2"])
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "fold 1" not in caplog.text
    caplog.clear()
    check_folds(Labels(np.eye(3, dtype=np.int8)[[0, 1, 2] * 2], ["a", "b", "c"], np.array([1] * 3 + [2] * 3)))
    assert not caplog.records
