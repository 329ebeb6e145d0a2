"""Values of `exclude`, and how they compare with those of a dataset."""

from datetime import date, datetime

import numpy as np
import pytest
from sound_files import clip, flac

from bridle_hf.data import DataArguments, load_examples
from bridle_hf.data.fields import excluded_by, warn_once
from bridle_hf.data.source import open_source


def excluded(example, names=None, **exclude):
    return excluded_by(exclude, example, names or {})


@pytest.mark.parametrize(
    ("held", "value"),
    [(1, 1), (1.0, 1), (1, "1"), (1.0, "1"), ("1", 1), (True, True), (True, "true"), (True, "True"), ("True", True),
     ("1.0", 1.0), (None, None), ("dog", "dog"),
     (np.int64(3), 3), (date(2020, 1, 1), "2020-01-01"), (datetime(2020, 1, 1), date(2020, 1, 1)), (1.5, "1.5"),
     ([1, 2], 2), (["a", "b"], "b"), ([1, 2], [1, 2])],
)  # fmt: skip
def test_values_are_excluded_however_they_are_written(held, value):
    assert excluded({"x": held}, x=[value]) == [("x", str(value))]


@pytest.mark.parametrize(("held", "value"), [(1, 2), (None, "None"), ("1.0", 1), (1.5, 1), ("Dog", "dog"), (False, 0)])
def test_other_values_stay(held, value):
    assert not excluded({"x": held}, x=[value])


def test_classes_are_excluded_by_name_or_number():
    names = {"label": ["bird", "cat", "2"]}
    assert excluded({"label": 1}, names, label=["cat"]) and excluded({"label": 1}, names, label=[1])
    assert not excluded({"label": 1}, names, label=["bird", 0])
    # where a number is the name of another class, the name counts
    assert excluded({"label": 2}, names, label=[2]) and not excluded({"label": 1}, names, label=[2])


@pytest.mark.parametrize("cached", [False, True])
def test_class_folders_are_excluded_by_name_and_what_excludes_nothing_is_said(cached, tmp_path, extractor, caplog):
    for name in ("bird", "cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "set" / name / f"{number}.flac").write_bytes(flac(clip(number)))
    warn_once.cache_clear()
    folder, cache = str(tmp_path / "set"), {"cache": cached, "cache_dir": str(tmp_path / "cache")}
    data = DataArguments(folder, label_column="label", exclude={"label": ["dog", "cow"]}, **cache)
    found = load_examples(data, extractor)
    assert {found.label_names[label] for label in found.labels} == {"bird", "cat"} and len(found) == 4
    assert [line for line in caplog.messages if "holds" in line] == [
        "data.exclude.label: no clip of set (train) holds 'cow'"
    ]
    unlabelled = open_source(DataArguments(folder, exclude={"label": ["bird"]}), extractor)
    assert len([*unlabelled.decode_all(0, 0)]) == 4


def test_columns_that_are_called_like_numbers_are_excluded(tmp_path, extractor):
    for number in range(2):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
    (tmp_path / "metadata.csv").write_text("file_name,2024\n0.flac,a\n1.flac,b\n")
    assert len(load_examples(DataArguments(str(tmp_path), exclude={2024: ["a"]}), extractor)) == 1


def test_nan_is_excluded_as_none():
    assert excluded({"x": float("nan")}, x=[None]) and excluded({"x": float("nan")}, x=[float("nan")])
    assert not excluded({"x": 0.0}, x=[None])


def test_paths_are_excluded_as_the_table_has_them(tmp_path, extractor):
    for number in range(4):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
    (tmp_path / "t.csv").write_text("file,label\n0.flac,x\n./1.flac,y\n2.flac,x\n3.flac,y\n")
    for names, left in ((["2.flac"], 3), (["2.flac", "./1.flac"], 2), ([f"{tmp_path}/3.flac"], 3)):
        data = DataArguments(str(tmp_path / "t.csv"), label_column="label", exclude={"file": names})
        assert len(load_examples(data, extractor)) == left


@pytest.mark.parametrize(("name", "empty"), [("t.csv", None), ("t.jsonl", "")])
def test_beside_paths_there_may_be_empty_ones(name, empty, tmp_path, extractor):
    (tmp_path / "0.flac").write_bytes(flac(clip(0)))
    lines = ["file,label", "0.flac,x", ",y", "0.flac,y"] if name == "t.csv" else [
        '{"file": "0.flac", "label": "x"}', '{"file": "", "label": "y"}', '{"file": "0.flac", "label": "y"}'
    ]  # fmt: skip
    (tmp_path / name).write_text("\n".join(lines))
    for excluded_one, left in ((empty, 2), ("0.flac", 1)):
        source = open_source(DataArguments(str(tmp_path / name), exclude={"file": [excluded_one]}), extractor)
        assert sum(map(source.keeps, source.read(0))) == left
