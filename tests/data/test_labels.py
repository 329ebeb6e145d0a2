"""Labels and folds: what they are read as, what is left out, and that they are checked before any clip is decoded."""

import io
import json
import logging
import tarfile
from dataclasses import replace

import datasets
import numpy as np
import pytest
from sound_files import flac

from bridle_hf.data import DataArguments, LabelError, UnusableDataError, audio, load_examples
from bridle_hf.data.labels import encode_folds, encode_labels
from bridle_hf.evaluation.cross_validation import check_folds

NAMES = [f"{number}.wav" for number in range(100)]


def encode(values, feature=None):
    labels, classes = encode_labels(values, feature, "kind", NAMES[: len(values)])
    return labels.tolist(), classes


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (["b", "a", "b"], [1, 0, 1], ["a", "b"]),
        ([7, 3, 7], [1, 0, 1], ["3", "7"]),
        ([1.0, 3.0, 1.0], [0, 1, 0], ["1", "3"]),  # integers of a column with a gap
        ([True, False], [1, 0], ["False", "True"]),
        ([np.int64(2), np.int64(1)], [1, 0], ["1", "2"]),
        ([["b"], ["a", "b"], []], [[0, 1], [1, 1], [0, 0]], ["a", "b"]),
        ([["b", "b"], ["a"]], [[0, 1], [1, 0]], ["a", "b"]),  # of events of one kind
        ([[2, 5], [5]], [[1, 1], [0, 1]], ["2", "5"]),
        ([[0], [1], [0, 1]], [[1, 0], [0, 1], [1, 1]], ["0", "1"]),
        # one flag a class
        ([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], list("0123")),
        ([[1.0, 0.0], [0.0, 1.0]], [[1, 0], [0, 1]], ["0", "1"]),
        ([[True, False, False]], [[1, 0, 0]], ["0", "1", "2"]),
        ([np.array([0, 1, 1])], [[0, 1, 1]], ["0", "1", "2"]),
    ],
)
def test_values_become_labels(values, labels, classes):
    assert encode(values) == (labels, classes)


def test_class_labels_have_their_names():
    kinds = datasets.ClassLabel(names=["a", "b", "c"])
    assert encode([2, 0], kinds) == ([2, 0], ["a", "b", "c"])
    assert encode([[0, 1], [1, 0]], datasets.List(kinds)) == ([[1, 1, 0], [1, 1, 0]], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([0.5, 1.0], None, "one integer or string per sample, got 0.5 for 0.wav"),
        ([["a"], None], None, "a list of integers or strings per sample, got None for 1.wav"),
        ([["a"], ["a", None]], None, r"got \['a', None\] for 1.wav"),
        (["a", ["a"]], None, "a list of integers or strings per sample, got 'a' for 0.wav"),
        ([1, "a"], None, "got 'a' for 1.wav and integers for others"),
        ([{"a": 1}], None, r"got {'a': 1} for 0.wav"),
        ([[0.3, 0.7]], None, r"got \[0.3, 0.7\] for 0.wav"),
        ([[1, 0, 0], [1, 0]], None, r"got \[1, 0, 0\] for 0.wav; it takes each class once, or lists of one flag"),
        ([[0, 2, 2], [1]], None, r"got \[0, 2, 2\] for 0.wav; it takes each class once"),
        ([0, 2], datasets.ClassLabel(names=["a", "b"]), "got 2 for 1.wav; its classes are 0 to 1"),
        ([[0, -1]], datasets.List(datasets.ClassLabel(names=["a", "b"])), r"got \[0, -1\] for 0.wav; its classes"),
        ([[0, 1, 0]], datasets.List(datasets.ClassLabel(names=["a", "b"])), r"got \[0, 1, 0\] .* each class once"),
    ],
)
def test_what_is_no_label_is_named_with_its_clip(values, feature, message):
    with pytest.raises(LabelError, match=f"^data.label_column: 'kind' must hold .*{message}"):
        encode(values, feature)


def folds_of(*values):
    return encode_folds(list(values), "fold", NAMES[: len(values)]).tolist()


def test_folds_are_values_or_text():
    for values in ([1, 2], ["a/b", "c"], [0.5, 1.5], [True, False]):
        assert folds_of(*values) == values
    assert [type(fold) for fold in folds_of(1.0, 2.0)] == [int, int]
    assert folds_of(np.datetime64("2024-05-01").item()) == ["2024-05-01"]
    with pytest.raises(
        LabelError, match="'fold' says nothing of 2 of the 4 clips: 1.wav, 3.wav; .*data.exclude='{fold: .null.}'.$"
    ):
        folds_of(1, None, 2, float("nan"))
    with pytest.raises(LabelError, match=r"""'fold' says nothing of 1 of the 2 clips: 1.wav; .*{fold: \[""\]}'.$"""):
        folds_of("a", "")
    with pytest.raises(LabelError, match=r"""'fold' says nothing of 2 of the 3 clips: .*{fold: \["  ", null\]}'.$"""):
        folds_of("a", None, "  ")
    with pytest.raises(LabelError, match=r"'fold' is \[1\] for 0.wav; it takes one value"):
        folds_of([1])


@pytest.fixture
def undecoded(monkeypatch):
    """Any clip that is decoded fails the test."""
    monkeypatch.setattr(audio, "decode_audio", lambda *_: pytest.fail("a clip was decoded"))


@pytest.fixture
def write(tmp_path, waveforms):
    """Writes six clips with the columns of `rows` in a format; returns the arguments that read them."""

    def make(kind, rows, **more):
        folder = tmp_path / "set"
        folder.mkdir()
        sounds = [flac(waveforms[number]) for number in range(len(rows))]
        if kind == "parquet":
            rows = [{"audio": {"bytes": s, "path": f"{n}.flac"}} | rows[n] for n, s in enumerate(sounds)]
            datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
        elif kind == "tar":
            with tarfile.open(folder / "train-0.tar", "w") as tar:
                for number, sound in enumerate(sounds):
                    for ending, content in (("flac", sound), ("json", json.dumps(rows[number]).encode())):
                        member = tarfile.TarInfo(f"{number}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        elif kind == "table.jsonl":  # of paths
            for number, sound in enumerate(sounds):
                (tmp_path / f"{number}.flac").write_bytes(sound)
                rows[number]["audio"] = str(tmp_path / f"{number}.flac")
            (folder / kind).write_text("\n".join(map(json.dumps, rows)))
        else:
            for number, sound in enumerate(sounds):
                (folder / f"{number}.flac").write_bytes(sound)
            rows = [{"file_name": f"{number}.flac"} | row for number, row in enumerate(rows)]
            if kind == "metadata.csv":
                lines = [",".join(rows[0])] + [",".join("" if v is None else str(v) for v in r.values()) for r in rows]
                (folder / kind).write_text("\n".join(lines))
            else:
                (folder / kind).write_text("\n".join(map(json.dumps, rows)))
        return DataArguments(str(folder), **more)

    return make


KINDS = ["parquet", "metadata.csv", "metadata.jsonl", "tar"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_errors_come_before_the_first_clip_is_decoded(kind, in_memory, write, extractor, undecoded, tmp_path):
    field = "json." if kind == "tar" else ""
    rows = [{"kind": "ab"[n % 2], "part": None if n == 3 else n % 3 + 1} for n in range(6)]
    options = {"label_column": f"{field}kind", "fold_column": f"{field}part", "in_memory": in_memory}
    data = write(kind, rows, cache_dir=str(tmp_path / "cache"), **options)
    with pytest.raises(LabelError, match="part' says nothing of 1 of the 6 clips: "):
        load_examples(data, extractor)

    def check(found):
        assert found.labels.tolist() == [0, 1, 0, 0, 1] and found.folds.tolist() == [1, 2, 3, 2, 3]
        raise LabelError("early")

    data.exclude = {f"{field}part": [None]}
    with pytest.raises(LabelError, match="early"):
        load_examples(data, extractor, check=check)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{}, {"in_memory": False}, {"cache": True}, {"cache": True, "in_memory": False}])
def test_clips_without_a_label_are_left_out_and_named(kind, how, write, extractor, tmp_path, caplog):
    field = "json." if kind == "tar" else ""
    rows = [{"kind": None if n in (1, 4) else "ab"[n % 2], "part": n} for n in range(6)]
    options = {"label_column": f"{field}kind", "fold_column": f"{field}part", "cache_dir": str(tmp_path / "cache")}
    with caplog.at_level(logging.INFO):
        examples = load_examples(write(kind, rows, **options, **how), extractor)
    assert examples.labels.tolist() == [0, 0, 1, 1] and examples.label_names == ["a", "b"]
    assert examples.folds.tolist() == [0, 2, 3, 5] and len(examples) == len(examples.clip_names) == 4
    assert "2 of the 6 clips of set (train) have no label" in caplog.text
    assert "4 clips, 2 classes: a (2), b (2)" in caplog.text


@pytest.mark.parametrize(
    ("values", "left"),
    [([0, 1, -1, 1, 0, -1], 4), ([0, 1, None, -1, 0, 1], 4), ([0.0, 1.0, float("nan"), 1.0, 0, 1], 5)],
)
def test_minus_one_and_nan_are_no_labels(values, left, write, extractor, caplog):
    examples = load_examples(write("parquet", [{"kind": v} for v in values], label_column="kind"), extractor)
    assert len(examples) == left and examples.label_names == ["0", "1"]
    assert f"{6 - left} of the 6 clips" in caplog.text


def test_a_class_called_none_is_one(write, extractor, caplog):
    rows = [{"kind": None if n == 2 else ("None", "bird")[n % 2]} for n in range(6)]
    examples = load_examples(write("metadata.jsonl", rows, label_column="kind"), extractor)
    assert examples.label_names == ["None", "bird"] and examples.labels.tolist() == [0, 1, 1, 0, 1]


def test_a_set_without_any_label_is_refused(write, extractor, undecoded):
    data = write("parquet", [{"kind": -1} for _ in range(6)], label_column="kind")
    with pytest.raises(LabelError, match="none of the 6 clips of set .train. has a label, 'kind' is -1"):
        load_examples(data, extractor)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_set_of_which_nothing_is_left_is_refused(write, extractor, undecoded, in_memory):
    data = write("parquet", [{"kind": n % 2} for n in range(6)], label_column="kind", exclude={"kind": [0, 1]})
    with pytest.raises(UnusableDataError, match="no example in set .train. with exclude={'kind': .0, 1.}"):
        load_examples(replace(data, in_memory=in_memory), extractor)


def test_unlabelled_rows_of_a_dataset_in_hand(write, extractor, undecoded, caplog):
    data = write("parquet", [{"kind": [0, 1, -1][n % 3], "part": n % 2} for n in range(6)])
    given = datasets.Dataset.from_parquet(data.dataset + "/train.parquet")
    kinds = given.cast_column("kind", datasets.ClassLabel(names=["a", "b"]))
    data = DataArguments(label_column="kind", fold_column="part")
    for dataset in (kinds, kinds.to_iterable_dataset()):
        caplog.clear()
        with pytest.raises(LabelError, match="early"):
            load_examples(data, extractor, dataset, check=early)
        assert "2 of the 6 clips of the given dataset have no label ('kind' is -1)" in caplog.text


def early(found):
    assert found.labels.tolist() == [0, 1, 0, 1] and found.folds.tolist() == [0, 1, 1, 0]
    raise LabelError("early")


def test_classes_of_two_splits_are_the_same(write, extractor, undecoded):
    data = write("parquet", [{"kind": n % 2} for n in range(6)])
    given = datasets.Dataset.from_parquet(data.dataset + "/train.parquet")
    train = given.cast_column("kind", datasets.ClassLabel(names=["a", "b"]))
    test = given.cast_column("kind", datasets.ClassLabel(names=["b", "a"]))
    with pytest.raises(LabelError, match=r"has other classes in each split: \['a', 'b'\] in train; \['b', 'a'\]"):
        load_examples(DataArguments(label_column="kind"), extractor, train, test)


def test_fields_of_a_column(write, extractor, tmp_path):
    rows = [{"about": {"kind": "ab"[n % 2], "where": {"site": n % 3}}} for n in range(6)]
    data = write("parquet", rows, label_column="about.kind", fold_column="about.where.site")
    data.exclude = {"about.where.site": [2]}
    for how in ({}, {"in_memory": False}, {"cache": True}):
        data = DataArguments(**vars(data) | how | {"cache_dir": str(tmp_path / "cache")})
        examples = load_examples(data, extractor)
        assert examples.labels.tolist() == [0, 1, 1, 0] and examples.folds.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="data.label_column: .* has no column 'about.size'"):
        load_examples(DataArguments(data.dataset, label_column="about.size"), extractor)


@pytest.mark.parametrize("field", ["kind", "about.kind"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "a", 2, "b", 1, 2], "one integer or string per sample, got 'a' for .* and integers for others"),
        (["a", ["a", "b"], None, -1, "b", "a"], "a list of integers or strings per sample, got 'a' for "),
        ([1, {"a": 1}, 2, 3, 1, 2], "one integer or string per sample, got {'a': 1} for "),
    ],
)
def test_values_that_differ_in_type_are_named(field, values, message, write, extractor, undecoded, caplog):
    """The library gives such columns of a jsonl table as JSON text."""
    rows = [{"kind": value, "about": {"kind": value}} for value in values]
    data = write("table.jsonl", rows, label_column=field)
    with pytest.raises(LabelError, match=f"'{field}' must hold {message}"):
        load_examples(data, extractor)
    if None in values:
        assert "2 of the 6 clips of set (train) have no label" in caplog.text


def test_json_text_is_read(write, extractor, tmp_path):
    data = write("table.jsonl", [{"kind": ["a"] * (n % 2), "n": n or "x"} for n in range(6)], label_column="kind")
    assert load_examples(data, extractor).labels.tolist() == [[0], [1]] * 3
    data.label_column, data.exclude = "n", {"n": ["x", '"x"']}
    for how in ({}, {"in_memory": False}, {"cache": True}):
        data = DataArguments(**vars(data) | how | {"cache_dir": str(tmp_path / "cache")})
        assert load_examples(data, extractor).label_names == ["1", "2", "3", "4", "5"]


def class_folders(folder, places, waveforms):
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(flac(waveforms[number]))
    return DataArguments(str(folder), label_column="label")


def test_the_way_out_of_a_class_called_train_leads_out(tmp_path, waveforms, extractor):
    data = class_folders(tmp_path / "set", ["dog/0.flac", "rain/1.flac", "train/2.flac"], waveforms)
    data.files = "**/*.flac"
    assert load_examples(data, extractor).label_names == ["dog", "rain", "train"]


@pytest.mark.parametrize("text", ['["dog", "rain"]', "['dog']", "[1, 0]", "[]"])
def test_a_list_as_text_is_no_class(text):
    with pytest.raises(LabelError, match="'kind' must hold .*, got .* for b, a list as text; a csv file holds none"):
        encode_labels(["[unknown]", text], None, "kind", ["a", "b"])


def test_a_name_in_brackets_is_a_class():
    assert encode_labels(["[unknown]", "dog"], None, "kind", ["a", "b"])[1] == ["[unknown]", "dog"]


def test_lists_without_any_class_are_refused():
    with pytest.raises(LabelError, match="'kind' is an empty list for all 2 clips"):
        encode_labels([[], []], None, "kind", ["a", "b"])


@pytest.mark.parametrize("values", [["dog", ""], [3, -1], [""]])
def test_what_stands_for_no_class_in_a_list_is_refused(values):
    with pytest.raises(LabelError, match="for b; -1 and empty text stand for no class"):
        encode_labels([values[:1] if values[0] else ["rain"], values], None, "kind", ["a", "b"])


def test_classes_that_are_nearly_one_are_named(caplog):
    labels, classes = encode_labels(["dog", "Dog ", "rain", "DOG"], None, "kind", list("abcd"))
    assert classes == ["DOG", "Dog ", "dog", "rain"] and labels.tolist() == [2, 1, 3, 0]
    (line,) = caplog.messages
    assert (
        "classes of 'kind' differ in spaces, capitals or the form of letters alone: 'DOG' and 'Dog ' and 'dog'" in line
    )
    caplog.clear()
    composed, apart = "caf\u00e9", "cafe\u0301"
    for given, feature in (([composed, apart], None), ([0, 1], datasets.ClassLabel(names=[composed, apart]))):
        assert encode_labels(given, feature, "kind", ["a", "b"])[0].max() == 1
        assert "'cafe\\u0301'" in caplog.messages[-1] and repr(composed) in caplog.messages[-1]
    caplog.clear()
    encode_labels(["dog", "rain"], None, "kind", ["a", "b"])
    assert not caplog.messages


def test_empty_text_is_no_label(write, extractor, caplog):
    rows = [{"kind": kind} for kind in ("dog", "", "rain", "dog")]
    examples = load_examples(write("metadata.jsonl", rows, label_column="kind"), extractor)
    assert examples.label_names == ["dog", "rain"] and examples.labels.tolist() == [0, 1, 0]
    assert "1 of the 4 clips" in caplog.text and "'kind' is ''" in caplog.text


@pytest.mark.parametrize("lost", ["class", "fold", "class of three", "class of flags"])
def test_a_class_or_fold_of_which_no_clip_can_be_used_is_named(lost, tmp_path, extractor, caplog):
    kinds = ["dog", "rain", "bell"] if lost == "class of three" else ["dog", "rain"]
    for number in range(12):
        (tmp_path / f"{number}.flac").write_bytes(flac(np.ones(16000, np.float32) * number / 99))
    rows = [{"path": f"{i}.flac", "kind": kinds[i % len(kinds)], "fold": i // 6} for i in range(12)]
    if lost == "class of flags":
        rows = [row | {"kind": [int(row["kind"] == kind) for kind in kinds]} for row in rows]
    for number, row in enumerate(rows):
        if row["fold"] == 1 if lost == "fold" else number % len(kinds) == 1:
            (tmp_path / f"{number}.flac").write_bytes(b"none")
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataArguments(
        str(tmp_path), files="*.jsonl", input_column="path", label_column="kind", fold_column="fold", max_bad_share=1.0
    )
    raised = {"class": "all clips are of one class, 'dog'", "fold": r"folds: got only \[0\]"}
    if lost in raised:
        with pytest.raises(LabelError, match=raised[lost]):
            load_examples(data, extractor, check=check_folds)
    else:
        assert len(load_examples(data, extractor, check=check_folds)) == (8 if lost == "class of three" else 6)
    name = {"fold": "fold 1", "class of flags": "class 1"}.get(lost, "class rain")
    assert f"none of the clips of {name} can be used" in caplog.text


def test_folds_that_are_nearly_one_are_named(caplog):
    assert folds_of("1", " 1", "2") == ["1", " 1", "2"]
    assert "folds of 'fold' differ in spaces, capitals or the form of letters alone: '1' and ' 1'" in caplog.text


def test_blank_labels_are_none(tmp_path, waveforms, extractor):
    data = class_folders(tmp_path / "set", [f"{number}.flac" for number in range(4)], waveforms)
    lines = [f"{number}.flac,{label}" for number, label in enumerate(["dog", " ", "rain", ""])]
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(["file_name,kind", *lines]))
    data.label_column = "kind"
    assert load_examples(data, extractor).label_names == ["dog", "rain"]


def test_the_label_of_another_type_is_named_and_not_a_number_as_text():
    with pytest.raises(LabelError, match="got 'x9' for c and integers for others"):
        encode_labels([1, "2", "x9"], None, "kind", ["a", "b", "c"])


def test_files_of_several_rows_are_named(tmp_path, waveforms, extractor, caplog):
    data = class_folders(tmp_path / "set", [f"{number}.flac" for number in range(3)], waveforms)
    rows = "file_name,kind\n0.flac,dog\n1.flac,rain\n0.flac,rain\n2.flac,dog\n"
    (tmp_path / "set" / "metadata.csv").write_text(rows)
    data.label_column = "kind"
    assert len(load_examples(data, extractor)) == 4
    assert "names 1 files in several rows" in caplog.text and "1 files are named by several rows" in caplog.text
    (tmp_path / "set" / "metadata.jsonl").write_text('{"file_name": "0.flac", "kind": "dog"}\n')
    with pytest.raises(ValueError, match="metadata.csv and .*metadata.jsonl both say what the files beside them are"):
        load_examples(data, extractor)
