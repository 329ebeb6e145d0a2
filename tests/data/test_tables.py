"""Tables and shards: relative paths, columns of bytes, damage wherever it is, and tar files of class folders."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_files import clip, flac, wav

from bridle_hf.data import DataArguments, UnusableDataError, load_examples, source
from bridle_hf.data.source import open_source

SOUND = flac(clip(0))
SHARDS = 24


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(source, "RETRY_SECONDS", 0.0)


def read(folder, extractor, **data):
    """The examples that decode, and what was skipped."""
    opened = open_source(DataArguments(str(folder), **data), extractor)
    found = [example for example, _ in opened.decode_all(0, data.get("max_bad_share", 0.05))]
    return found, opened.skipped


def write_paths(path, names, column="path"):
    """A table of names in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_list([{column: name, "label": str(i)} for i, name in enumerate(names)])
    if path.suffix == ".jsonl":
        rows.to_json(path)
    elif path.suffix == ".parquet":
        rows.to_parquet(path)
    elif path.suffix == ".tsv":
        rows.to_csv(path, sep="\t")
    else:
        rows.to_csv(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_relative_paths_count_from_the_table_and_then_from_where_the_process_stands(
    kind, tmp_path, extractor, monkeypatch
):
    for number, place in enumerate(["set/meta/both.flac", "set/audio/a.flac", "here/both.flac", "here/only.flac"]):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(flac(clip(number)))
    write_paths(tmp_path / "set" / "meta" / f"a.{kind}", ["both.flac", "../audio/a.flac", "only.flac"])
    write_paths(tmp_path / "set" / "meta" / "more" / f"b.{kind}", ["../both.flac", str(tmp_path / "here/only.flac")])
    monkeypatch.chdir(tmp_path / "here")
    found, skipped = read(tmp_path / "set" / "meta", extractor, input_column="path", max_bad_share=0)
    paths = [Path(example["path"]).resolve().relative_to(tmp_path) for example in found]
    expected = ["set/meta/both.flac", "set/audio/a.flac", "here/only.flac", "set/meta/both.flac", "here/only.flac"]
    assert list(map(str, paths)) == expected and not skipped


def test_audio_columns_without_bytes_count_from_the_table_too(tmp_path, extractor, monkeypatch):
    (tmp_path / "set" / "audio").mkdir(parents=True)
    (tmp_path / "set" / "audio" / "a.flac").write_bytes(SOUND)
    table = pa.table({"audio": pa.array([{"bytes": None, "path": "audio/a.flac"}, {"bytes": SOUND, "path": "b.flac"}])})
    pq.write_table(table, tmp_path / "set" / "list.parquet")
    found, _ = read(tmp_path / "set", extractor, files="*.parquet", max_bad_share=0)
    assert [example["clip_name"] for example in found] == [str(tmp_path / "set" / "audio" / "a.flac"), "b.flac"]


def test_paths_of_windows_and_urls_of_files(tmp_path, extractor):
    (tmp_path / "set").mkdir()
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "1%20.flac").write_bytes(SOUND)
    names = ["..\\a b\\1%20.flac", f"file://{tmp_path}/a b/1%20.flac", f"file://{tmp_path}/a%20b/1%2520.flac"]
    write_paths(tmp_path / "set" / "list.csv", names)
    assert len(read(tmp_path / "set", extractor, input_column="path", max_bad_share=0)[0]) == 3


def test_texts_that_are_no_paths_are_not_shown(tmp_path, extractor):
    write_paths(tmp_path / "list.csv", ["x" * 5000, "no.wav"])
    with pytest.raises(ValueError, match="2 bad clips; the last one, no.wav,"):
        read(tmp_path, extractor, input_column="path")
    write_paths(tmp_path / "list.csv", ["x" * 5000])
    with pytest.raises(ValueError, match="the last one, shard 0, example 0, is a text of 5000 characters, no path"):
        read(tmp_path, extractor, input_column="path")


def test_tables_of_other_columns_cost_their_rows(tmp_path, extractor):
    for name in ("0", "1"):
        (tmp_path / f"{name}.flac").write_bytes(SOUND)
        write_paths(tmp_path / "set" / f"{name}.csv", [f"../{name}.flac"], "path" if name == "0" else "file")
    found, skipped = read(tmp_path / "set", extractor, input_column="path", max_bad_share=0.5)
    assert [example["path"] for example in found] == [f"{tmp_path}/set/../0.flac"]
    assert list(skipped.values()) == ["has no column 'path'"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "path,label\ncafé.wav,x\n".encode("latin-1"), "'utf-8' codec can't .*; save it as UTF-8$"),
        ("a.csv", "path,label\na.wav,x\n".encode("utf-16"), "'utf-8' codec can't .*; save it as UTF-8$"),
        ("a.csv", b"", "No columns to parse"),
        ("a.csv", b"path,label\na.wav,x\na.wav,x,y\n", "Expected 2 fields in line 3, saw 3"),
        ("a.tsv", b"path\tlabel\na.wav\tx\na.wav\tx\ty\n", "Expected 2 fields in line 3, saw 3"),
        ("a.jsonl", b'{"path": "a.wav"}\n{"path"', "JSON parse error: .* in row 1"),
    ],
)
def test_tables_that_cannot_be_read_are_named(name, content, said, tmp_path, extractor):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/{name} cannot be read: .*{said}"):
        read(tmp_path, extractor, input_column="path")


def test_where_nothing_can_be_used_the_last_reason_is_told(tmp_path, extractor):
    write_paths(tmp_path / "list.csv", ["no.wav", "neither.wav"])
    with pytest.raises(ValueError, match="2 bad clips; the last one, neither.wav, cannot be read: .*No such file"):
        read(tmp_path, extractor, input_column="path")


def test_a_column_of_text_that_is_no_path_is_named(tmp_path, extractor):
    write_paths(tmp_path / "list.csv", [f"word {number}" for number in range(8)])
    said = r"The values of column 'path' \(data.input_column\) are taken for paths\.$"
    with pytest.raises(UnusableDataError, match=f"^6 of 6 clips .*word 5: cannot be read: .*{said}"):
        read(tmp_path, extractor, input_column="path")
    with pytest.raises(UnusableDataError, match=rf"^no usable example .*, 8 bad clips; .*{said}"):
        read(tmp_path, extractor, input_column="path", max_bad_share=1)


def test_a_column_of_bytes_is_decoded(tmp_path, extractor):
    pq.write_table(pa.table({"audio": [SOUND, SOUND], "label": ["a", "b"]}), tmp_path / "a.parquet")
    found, _ = read(tmp_path, extractor, max_bad_share=0)
    assert [(example["clip_name"], example["label"]) for example in found] == [
        ("shard 0, example 0", "a"),
        ("shard 0, example 1", "b"),
    ]


def test_a_column_of_waveforms_is_taken_at_the_rate_of_the_model(tmp_path, extractor):
    pq.write_table(pa.table({"wave": [clip(0).tolist(), clip(1).tolist()]}), tmp_path / "a.parquet")
    examples = load_examples(DataArguments(str(tmp_path), input_column="wave"), extractor)
    expected = extractor(clip(1), sampling_rate=16000, padding=False, return_tensors="np")["input_values"][0]
    assert abs(examples.clips[1] - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int64"), ([1.5, 2.5], "float"), ([True, False], "bool"), ([["a"], ["b"]], "List"), ([{"x": 1}], "x")],
)
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_column_that_can_hold_no_media_is_refused_once(form, values, kind, tmp_path, extractor):
    rows = datasets.Dataset.from_dict({"x": values})
    rows.to_parquet(tmp_path / "a.parquet") if form == "parquet" else rows.to_json(tmp_path / "a.jsonl")
    with pytest.raises(
        ValueError, match=f"data.input_column: .* a column 'x' of type .*{kind}.*; it takes bytes, paths"
    ):
        open_source(DataArguments(str(tmp_path), input_column="x"), extractor)


def write_tar(path, names, content=SOUND):
    with tarfile.open(path, "w") as tar:
        for name in names:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


@pytest.mark.parametrize("extension", ["flac", "m4a", "wma", "webm", "amr"])
def test_fields_of_tar_files_are_found_by_our_own_extensions(extension, tmp_path, extractor):
    write_tar(tmp_path / "a.tar", [f"{i}.{extension}" for i in range(3)])
    found, _ = read(tmp_path, extractor, max_bad_share=0)
    assert [example["__key__"] for example in found] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_classes_of_tar_files_are_the_folders_inside(name, tmp_path, extractor):
    write_tar(tmp_path / "plain.tar", [f"set/{kind}/{i}.flac" for kind in ("dog", "rain") for i in range(2)])
    if name.endswith(".gz"):
        with tarfile.open(tmp_path / name, "w:gz") as tar, tarfile.open(tmp_path / "plain.tar") as plain:
            for member in plain:
                tar.addfile(member, plain.extractfile(member))
        (tmp_path / "plain.tar").unlink()
    data = DataArguments(str(tmp_path), label_column="label", cache_dir=str(tmp_path / "cache"), max_bad_share=0)
    for more in ({}, {"in_memory": False}):
        examples = load_examples(DataArguments(**{**vars(data), **more}), extractor)
        assert [examples.label_names[label] for label in examples.labels] == ["dog", "dog", "rain", "rain"]


def test_tar_files_without_folders_have_no_label(tmp_path, extractor):
    write_tar(tmp_path / "a.tar", ["0.flac"])
    with pytest.raises(ValueError, match="no column 'label'"):
        open_source(DataArguments(str(tmp_path), label_column="label"), extractor)


def write_shards(folder, kind):
    """24 shards of two clips each."""
    folder.mkdir()
    for number in range(SHARDS):
        path = folder / f"train-{number:05d}-of-{SHARDS:05d}.{kind}"
        if kind == "tar":
            write_tar(path, [f"{number}-{i}.flac" for i in range(2)])
        elif kind == "parquet":
            rows = [{"audio": {"bytes": SOUND, "path": f"{number}-{i}.flac"}} for i in range(2)]
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            sounds = [folder.parent / f"{number}-{i}.flac" for i in range(2)]
            for sound in sounds:
                sound.write_bytes(SOUND)
            write_paths(path, map(str, sounds), "audio")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "columns"])
@pytest.mark.parametrize("kind", ["parquet", "tar", "jsonl"])
@pytest.mark.parametrize("which", [0, 13])
def test_damage_in_the_first_shard_costs_no_more_than_in_another(kind, damage, which, tmp_path, extractor, caplog):
    bad = write_shards(tmp_path / "set", kind)[which]
    content = bad.read_bytes()
    if damage == "columns":
        if kind == "tar":
            write_tar(bad, ["1.other"])
        else:
            write_paths(bad, ["x"], "other")
    else:
        bad.write_bytes(
            {"cut": content[: len(content) // 3], "empty": b"", "garbage": bytes(range(7, 250)) * 30}[damage]
        )
    found, skipped = read(tmp_path / "set", extractor)
    whole = {f"{shard}-{i}.flac" for shard in range(SHARDS) if shard != which for i in range(2)}
    read_names = {Path(example["clip_name"]).name for example in found}
    assert whole <= read_names and len(read_names - whole) <= 1  # of a shard that was cut, what came before may be read
    silent = damage == "empty" and kind != "parquet"  # a text without lines is a table without rows
    told = " ".join([*skipped.values(), caplog.text])
    assert bad.name in told or silent and kind == "jsonl" or damage == "columns" and kind == "tar"


@pytest.mark.parametrize("cut", ["between members", "in a header", "whole"])
def test_a_tar_file_that_ends_early_is_named(cut, tmp_path, extractor, caplog):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        write_tar(folder / f"{number}.tar", [f"{number}-{i}.flac" for i in range(3)])
    with tarfile.open(folder / "1.tar") as tar:
        starts = [member.offset for member in tar]
    content = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(
        content[: {"between members": starts[2], "in a header": starts[2] + 100, "whole": len(content)}[cut]]
    )
    found, _ = read(folder, extractor)
    assert len(found) == (6 if cut == "whole" else 5)
    early = "1 of 2 tar files do not end as a tar does, what came behind is lost (1.tar)"
    assert (early in caplog.text) == (cut != "whole")


def test_an_error_of_the_content_is_not_tried_again(tmp_path, extractor, caplog):
    write_shards(tmp_path / "set", "parquet")[5].write_bytes(b"nothing that one could read, however often")
    _, skipped = read(tmp_path / "set", extractor)
    assert list(skipped) == ["shard 5"] and "trying again" not in caplog.text


def test_names_of_shards_with_brackets_and_words_of_others(tmp_path, extractor, caplog):
    folder = tmp_path / "[a] set"
    folder.mkdir()
    for name in ("b[1]", "c"):
        pq.write_table(pa.table({"audio": [SOUND]}), folder / f"{name}.parquet")
    (folder / "notes-test.txt").write_text("words")
    (folder / "train.json").write_text("{}")
    found, _ = read(folder, extractor, max_bad_share=0)
    assert len(found) == 2 and "2 of 4 files are read (split train); left out: 1 .txt (notes-test.txt)" in caplog.text
    (tmp_path / "a::b").mkdir()
    pq.write_table(pa.table({"audio": [SOUND]}), tmp_path / "a::b" / "x.parquet")
    with pytest.raises(ValueError, match="'::' in the path of a table is a chain of URLs"):
        open_source(DataArguments(str(tmp_path / "a::b")), extractor)


def test_a_name_of_its_own_is_kept(tmp_path, extractor):
    (tmp_path / "1.wav").write_bytes(wav(clip(0)))
    (tmp_path / "metadata.csv").write_text("file_name,clip_name\n1.wav,bark\n")
    found, _ = read(tmp_path, extractor)
    assert found[0]["clip_name"] == "bark"


def odd_rows(tmp_path, odd):
    """A table of 12 clips; in the fourth row the path is something else, and `x` is a text or a number."""
    rows = []
    for number in range(12):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
        path = odd if number == 3 else str(tmp_path / f"{number}.flac")
        x = "ab"[number // 2 % 2] if number % 2 else 5
        rows.append({"audio": path, "x": x, "meta": {"x": x}, "label": "dog" if number % 3 else "rain"})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "set"


@pytest.mark.parametrize("odd", [5, False, [1, 2], {"other": 1}])
def test_an_odd_value_in_a_column_of_paths_costs_that_row(odd, tmp_path, extractor):
    folder = odd_rows(tmp_path, odd)
    found, skipped = read(folder, extractor, input_column="audio", max_bad_share=0.2)
    assert len(found) == 11 and len(skipped) == 1


@pytest.mark.parametrize(("column", "value", "left"), [("x", "a", 8), ("x", 5, 5), ("meta.x", "b", 9)])
@pytest.mark.parametrize("cache", [False, True])
def test_values_of_columns_of_mixed_types_are_excluded(column, value, left, cache, tmp_path, extractor):
    folder = odd_rows(tmp_path, "gone.flac")
    data = DataArguments(str(folder), exclude={column: [value]}, max_bad_share=0.2, cache=cache)
    data.cache_dir, data.label_column, data.input_column = str(tmp_path / "cache"), "label", "audio"
    for in_memory in (True, False):
        data.in_memory = in_memory
        assert len(load_examples(data, extractor)) == left


@pytest.mark.parametrize("kind", ["bytes", "arrays", "dicts"])
def test_samples_that_are_kept_as_files_are_those_in_memory(kind, tmp_path, extractor):
    sounds = [clip(number) for number in range(6)]
    made = {
        "bytes": list(map(flac, sounds)),
        "arrays": [each.tolist() for each in sounds],
        "dicts": [{"array": each.tolist(), "sampling_rate": 16000} for each in sounds],
    }
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"audio": made[kind], "label": list("ababab")}), tmp_path / "set" / "t.parquet")
    data = DataArguments(str(tmp_path / "set"), label_column="label", cache_dir=str(tmp_path / "cache"))
    expected = load_examples(data, extractor).batch(range(6))["input_values"]
    data.in_memory = False
    if kind != "bytes":
        with pytest.raises(UnusableDataError, match="column 'audio' holds arrays; it takes files, or data.cache=true"):
            load_examples(data, extractor)
        data.cache = True
    assert abs(load_examples(data, extractor).batch(range(6))["input_values"] - expected).max() < 1e-2


@pytest.mark.parametrize("name", ["file_name", "filename", "file", "filepath", "path"])
def test_a_table_with_a_column_of_paths_may_be_named_alone(name, tmp_path, extractor, caplog):
    caplog.set_level("INFO")
    for number in range(3):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
    write_paths(tmp_path / "labels.csv", [f"{number}.flac" for number in range(3)], name)
    data = DataArguments(str(tmp_path / "labels.csv"), label_column="label")
    assert len(load_examples(data, extractor)) == 3
    assert f"the paths in column {name!r} are read (data.input_column)" in caplog.text


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_link_to_a_table_is_the_table(elsewhere, tmp_path, extractor):
    for number in range(3):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
    write_paths(tmp_path / "labels_v3.csv", [f"{number}.flac" for number in range(3)])
    link = tmp_path / ("other" if elsewhere else ".") / "latest.csv"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "labels_v3.csv")
    found, skipped = read(link, extractor, input_column="path", max_bad_share=0)
    assert len(found) == 3 and not skipped
    for number in range(3):  # what lies beside the link counts first
        (link.parent / f"{number}.flac").write_bytes(flac(clip(9)))
    beside, _ = read(link, extractor, input_column="path", max_bad_share=0, exclude={"path": ["1.flac"]})
    assert [example["path"] for example in beside] == [str(link.parent / f"{number}.flac") for number in (0, 2)]


@pytest.mark.parametrize("options", [{"cache": True}, {"in_memory": False}])
def test_one_odd_value_among_paths_costs_itself_in_caches_too(options, tmp_path, extractor):
    rows = [{"path": f"{number}.flac" if number else 3, "label": "xy"[number % 2]} for number in range(4)]
    for number in range(4):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataArguments(
        str(tmp_path / "t.jsonl"), input_column="path", label_column="label", max_bad_share=0.5,
        cache_dir=str(tmp_path / "cache"), **options,
    )  # fmt: skip
    assert len(load_examples(data, extractor)) == 3
    (tmp_path / "1.flac").write_bytes(flac(clip(7)))  # a cache notices
    again = load_examples(data, extractor)
    fresh = load_examples(DataArguments(str(tmp_path / "1.flac")), extractor, for_training=False)
    assert np.allclose(again.clips[0], fresh.clips[0], atol=1e-2)


def test_the_column_of_paths_is_found_where_the_first_is_empty(tmp_path, extractor):
    (tmp_path / "0.flac").write_bytes(SOUND)
    (tmp_path / "t.csv").write_text("file,label\n,x\n0.flac,y\n0.flac,y\n")
    found, skipped = read(tmp_path / "t.csv", extractor, max_bad_share=0.5)
    assert len(found) == 2 and len(skipped) == 1
    (tmp_path / "t.jsonl").write_text('{"path": " "}\n{"path": "zip://a::gone.zip"}\n' + '{"path": "0.flac"}\n' * 3)
    assert len(read(tmp_path / "t.jsonl", extractor, max_bad_share=0.5)[0]) == 3
