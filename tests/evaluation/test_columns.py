"""The dataset's own columns in files of features and codes: all of them, none overwritten."""

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from bridle_hf.data import DataArguments, load_processor
from bridle_hf.evaluation.features import write_features
from bridle_hf.evaluation.row_files import Parts
from bridle_hf.evaluation.tokens import write_codes
from bridle_hf.modeling_bridle import BridleModel, BridleTokenizer

OURS = ["clip_name", "start", "last", "codes", "shape", "features", "dtype", "file"]


@pytest.fixture
def sounds(tmp_path, tone):
    """Three sounds."""
    (tmp_path / "set").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "set" / f"{number}.wav", tone(0, number), 16000)
    return tmp_path / "set"


def written(data, pretrained, tmp_path):
    """The columns of features by frames and of codes, with the rows of each."""
    processor = load_processor(pretrained)
    write_features(tmp_path / "f.parquet", BridleModel.from_pretrained(pretrained), data, processor, pooling="frames")
    write_codes(tmp_path / "c.parquet", BridleTokenizer.from_pretrained(pretrained), data, processor)
    return [pq.read_table(tmp_path / name).to_pylist() for name in ("f.parquet", "c.parquet")]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables_of_text_keep_their_columns(kind, sounds, pretrained, tmp_path):
    between = "," if kind == "csv" else "\t"
    lines = [["audio", "label", "fold", "note"], *([f"{i}.wav", "ab"[i % 2], str(i), ""] for i in range(3))]
    (sounds / f"list.{kind}").write_text("\n".join(map(between.join, lines)) + "\n")
    for rows in written(DataArguments(str(sounds), files=f"*.{kind}"), pretrained, tmp_path):
        assert [(row["label"], row["fold"], row["note"]) for row in rows] == [
            ("a", 0, None),
            ("b", 1, None),
            ("a", 2, None),
        ]
        assert [row["clip_name"] for row in rows] == [str(sounds / f"{i}.wav") for i in range(3)]


def test_columns_called_like_ours_are_written_under_another_name(sounds, pretrained, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    lines = ["file_name," + ",".join(OURS), *(f"{i}.wav," + ",".join(f"{name}{i}" for name in OURS) for i in range(3))]
    (sounds / "metadata.csv").write_text("\n".join(lines) + "\n")
    features, codes = written(DataArguments(str(sounds)), pretrained, tmp_path)
    for row in features:
        number = row["clip_name"][-1]
        renamed = {f"dataset_{name}": f"{name}{number}" for name in ("start", "last")}
        kept = {name: f"{name}{number}" for name in OURS if name not in ("start", "last")}
        assert {name: row[name] for name in renamed | kept} == renamed | kept
        assert isinstance(row["start"], list) and isinstance(row["last"], list)
    assert codes[1]["dataset_codes"] == "codes1" and codes[1]["dataset_shape"] == "shape1"
    assert codes[1]["start"] == "start1" and isinstance(codes[1]["codes"], list)
    assert caplog.text.count("'start' is written as 'dataset_start'") == 1


def test_a_column_that_is_empty_at_first_holds_text(tmp_path, monkeypatch):
    monkeypatch.setattr("bridle_hf.evaluation.row_files.SECONDS_PER_PART", 0.0)
    rows = [{"name": str(i), "note": None if i < 3 else i} for i in range(5)]
    Parts(tmp_path / "rows.parquet", "").write(rows)
    assert pq.read_table(tmp_path / "rows.parquet")["note"].to_pylist() == [None, None, None, "3", "4"]


def test_classes_are_written_by_name(sounds, pretrained, tmp_path):
    for name, clip in (("sea", "0.wav"), ("dog", "1.wav"), ("sea", "2.wav")):
        (sounds / name).mkdir(exist_ok=True)
        (sounds / clip).rename(sounds / name / clip)
    for rows in written(DataArguments(str(sounds)), pretrained, tmp_path):
        assert sorted((row["clip_name"][-5], row["label"]) for row in rows) == [
            ("0", "sea"),
            ("1", "dog"),
            ("2", "sea"),
        ]


def test_lists_of_classes_and_missing_ones_are_written_by_name(sounds, pretrained, tmp_path):
    one = datasets.ClassLabel(names=["dog", "sea"])
    types = datasets.Features(audio=datasets.Value("string"), one=one, several=datasets.List(one))
    found = {"audio": [str(sounds / f"{i}.wav") for i in range(3)], "one": [1, -1, None], "several": [[0, 1], [], [1]]}
    datasets.Dataset.from_dict(found, features=types).to_parquet(tmp_path / "table.parquet")
    for rows in written(
        DataArguments(str(tmp_path), files="table.parquet", input_column="audio"), pretrained, tmp_path
    ):
        assert [row["one"] for row in rows] == ["sea", None, None]
        assert [row["several"] for row in rows] == [["dog", "sea"], [], ["sea"]]


def test_classes_are_written_by_name_where_they_have_one(sounds, pretrained, tmp_path):
    label = datasets.ClassLabel(names=["x", "y"])
    of_files = pa.array([(sounds / f"{i}.wav").read_bytes() for i in range(3)], type=pa.binary())
    types = {"audio": datasets.Value("binary"), "labels": datasets.List(label), "label": label}
    table = pa.table({"audio": of_files, "labels": [[0], [-1, None], [1, 2]], "label": [1, -1, 2]})
    (tmp_path / "table").mkdir()
    table = table.replace_schema_metadata(datasets.Features(types).arrow_schema.metadata)
    pq.write_table(table, tmp_path / "table" / "t.parquet")
    for rows in written(DataArguments(str(tmp_path / "table")), pretrained, tmp_path):
        assert [row["labels"] for row in rows] == [["x"], [None, None], ["y", "2"]]
        assert [row["label"] for row in rows] == ["y", None, "2"]


def test_values_of_mixed_types_are_written_as_they_are_said(sounds, pretrained, tmp_path):
    lines = [
        json.dumps({"audio": f"{i}.wav", "note": ["a", 1, None][i], "in": {"x": [0, "b", 2][i]}}) for i in range(3)
    ]
    (sounds / "list.jsonl").write_text("\n".join(lines))
    for rows in written(DataArguments(str(sounds), files="*.jsonl"), pretrained, tmp_path):
        assert [row["note"] for row in rows] == ["a", "1", None]
        assert [json.loads(row["in"])["x"] for row in rows] == [0, "b", 2]


def test_numbers_as_text_are_numbers_in_a_column_of_numbers(tmp_path, monkeypatch, caplog):
    """As pandas reads a long csv file, 10,000 rows at a time."""
    monkeypatch.setattr("bridle_hf.evaluation.row_files.SECONDS_PER_PART", 0.0)
    rows = [{"clip_name": str(i), "fold": value} for i, value in enumerate([1, 2, "3", "zz", "4"])]
    Parts(tmp_path / "rows.parquet", "").write(rows)
    assert pq.read_table(tmp_path / "rows.parquet")["fold"].to_pylist() == [1, 2, 3, None, 4]
    assert "column 'fold' is left empty for 3: not of the type int64" in caplog.text
