"""Folders as people have them: what is read, what is left out, and that it is said."""

import os
import sys
import zipfile
from pathlib import Path

import pytest
from test_opening import SOUND, names_in, write

from bridle_hf.data import DataArguments, load_examples
from bridle_hf.data.extensions import image_extensions
from bridle_hf.data.source import open_source

CLASSES = ["dog/0.wav", "dog/1.wav", "rain/0.wav", "rain/1.wav"]


def labels(folder, extractor, **data):
    """Name of each clip and of its class."""
    found = load_examples(DataArguments(str(folder), label_column="label", **data), extractor)
    return {
        os.path.relpath(name, folder): found.label_names[label]
        for name, label in zip(found.clip_names, found.labels, strict=True)
    }


@pytest.mark.parametrize(
    "stray",
    ["train.log", "tests/test_dataset.py", "notes-test.txt", "train.txt", "train.csv", "eval.json", "dev/x.jpg"],
)
def test_what_is_no_clip_speaks_of_no_split(stray, tmp_path, extractor, caplog):
    write(tmp_path, CLASSES)
    write(tmp_path, [stray], b"file,label\n0.wav,x\n")
    assert list(labels(tmp_path, extractor).values()) == ["dog", "dog", "rain", "rain"]
    assert f"4 of 5 files are read (split train); left out: 1 {Path(stray).suffix} ({stray})" in caplog.text


def test_more_sidecars_than_sounds(tmp_path, extractor, caplog):
    write(tmp_path, [f"{i}.wav" for i in range(3)])
    write(tmp_path, [f"{i}{end}" for i in range(3) for end in (".json", ".info.json", ".jpg", ".txt", ".b.jpg")], b"{}")
    assert [name for name, _ in names_in(tmp_path, extractor)] == ["0.wav", "1.wav", "2.wav"]
    assert "3 of 18 files are read" in caplog.text and "6 .jpg (" in caplog.text and "3 .txt (" in caplog.text


def test_a_column_of_a_table_beside_sounds_is_found_or_hinted_at(tmp_path, extractor, caplog):
    write(tmp_path, CLASSES)
    write(tmp_path, ["list.csv"], b"path,kind\ndog/0.wav,1\nrain/1.wav,2\n")
    with pytest.raises(ValueError, match=r"no column 'kind'.*data.files='\*\*/\*.csv' reads its tables"):
        open_source(DataArguments(str(tmp_path), label_column="kind"), extractor)
    for data in ({}, {"files": "*.csv"}):
        source = open_source(DataArguments(str(tmp_path), input_column="path", **data), extractor)
        assert [row["kind"] for row in source.read(0)] == [1, 2]
    assert "1 of 5 files are read (split train); left out: 4 .wav" in caplog.text


def test_links_to_folders_are_followed_and_each_file_is_read_once(tmp_path, extractor, caplog):
    disk, folder = tmp_path / "disk", tmp_path / "set"
    write(disk, CLASSES)
    write(folder, ["bird/1.wav"])
    (folder / "dog").symlink_to(disk / "dog")
    (folder / "rain").symlink_to(Path("../disk/rain"))
    (folder / "bird" / "2.wav").symlink_to(disk / "dog" / "0.wav")
    (folder / "bird" / "again").symlink_to("..")
    (folder / "bird" / "itself").symlink_to("itself")
    (folder / "zoo").symlink_to(folder / "bird")
    (folder / "part").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.wav")
    assert [name for name, _ in names_in(folder, extractor)] == ["bird/1.wav", *CLASSES]
    assert "5 of 11 files are read (split train)" in caplog.text
    assert "3 links to what is read already (zoo, bird/2.wav, bird/again)" in caplog.text
    assert "2 links to nothing (part, bird/itself)" in caplog.text and "1 no regular file (pipe.wav)" in caplog.text


ODD = ["[D_DATA]", "a::b", "50%", "%41", "#1", "what?", "*", "{x,y}", "it's", "new\nline", " space ", "C:", "e\u0301"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_folders_and_files_are_read(name, tmp_path, extractor):
    folder = tmp_path / name
    write(folder, [f"{name}/{name}.wav", "b/x.wav", f"b/x{name}.wav"])
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.writestr(f"{name}/in{name}.wav", SOUND)
    assert labels(folder, extractor, max_bad_share=0) == {
        f"{name}/{name}.wav": name,
        "b/x.wav": "b",
        f"b/x{name}.wav": "b",
        os.path.relpath(f"zip://{name}/in{name}.wav::{folder}/{name}.zip", folder): name,
    }


def test_a_name_that_is_no_text_costs_its_file(tmp_path, extractor, caplog):
    write(tmp_path, CLASSES)
    with open(os.fsencode(tmp_path) + b"/dog/caf\xe9.wav", "wb") as file:
        file.write(SOUND)
    assert len(names_in(tmp_path, extractor)) == 4
    assert (
        r"4 of 5 files are read (split train); left out: 1 a name that is no UTF-8 (dog/caf\udce9.wav)" in caplog.text
    )


def zipped(path, names, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, SOUND)


INSIDE = [*CLASSES, "__MACOSX/dog/._0.wav", "notes.txt"]


@pytest.mark.parametrize(
    ("archives", "classes"),
    [
        ({"sounds.zip": INSIDE}, ["dog", "dog", "rain", "rain"]),
        ({"sounds.zip": [f"sounds/{name}" for name in INSIDE]}, ["dog", "dog", "rain", "rain"]),
        ({"dog.zip": CLASSES[:2], "rain.zip": CLASSES[2:]}, ["dog", "dog", "rain", "rain"]),
        ({"dog.zip": ["0.wav"], "rain.zip": ["0.wav"]}, ["dog", "rain"]),
        ({"train.zip": CLASSES[1:3], "test.zip": CLASSES}, ["dog", "rain"]),
        ({"part/a.zip": CLASSES[:3], "part/b.zip": ["bird/1.wav"]}, ["dog", "dog", "rain", "bird"]),
    ],
)
def test_classes_of_archives_are_the_folders_inside(archives, classes, tmp_path, extractor):
    for name, inside in archives.items():
        zipped(tmp_path / name, inside)
    assert list(labels(tmp_path, extractor, max_bad_share=0).values()) == classes


def test_archives_beside_files_flat_ones_broken_ones_and_those_with_metadata(tmp_path, extractor, caplog):
    write(tmp_path / "both", CLASSES[:2])
    zipped(tmp_path / "both" / "more.zip", ["rain/5.wav"], compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "both" / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    assert list(labels(tmp_path / "both", extractor).values()) == ["dog", "dog", "rain"]
    assert "3 of 4 files are read" in caplog.text and "(File is not a zip file) (broken.zip)" in caplog.text
    zipped(tmp_path / "flat" / "sounds.zip", ["1.wav", "2.wav"])
    assert [label for _, label in names_in(tmp_path / "flat", extractor)] == [None, None]
    zipped(tmp_path / "table" / "sounds.zip", ["a/1.wav", "a/2.wav"])
    with zipfile.ZipFile(tmp_path / "table" / "sounds.zip", "a") as archive:
        archive.writestr("a/metadata.csv", "file_name,label\n2.wav,low\n1.wav,high\n")
    assert list(labels(tmp_path / "table", extractor).values()) == ["low", "high"]


def test_what_is_left_out_of_archives_is_said(tmp_path, extractor, caplog):
    zipped(tmp_path / "x.zip", [*CLASSES, "__MACOSX/dog/._0.wav", "../../evil.wav", "dog/notes.txt"])
    assert len(labels(tmp_path, extractor)) == 4
    assert (
        "4 of 4 files are read (split train); left out: 2 hidden in archives (x.zip/../../evil.wav, "
        "x.zip/__MACOSX/dog/._0.wav); 1 of other types in archives (x.zip/dog/notes.txt)" in caplog.text
    )


def test_archives_of_windows_have_backslashes(tmp_path, extractor):
    zipped(tmp_path / "x.zip", [name.replace("/", "\\") for name in CLASSES])
    assert list(labels(tmp_path, extractor, max_bad_share=0).values()) == ["dog", "dog", "rain", "rain"]


@pytest.mark.parametrize("keep", [0, 1, 100, -30])
def test_archives_alone_that_are_damaged_are_named(keep, tmp_path, extractor):
    zipped(tmp_path / "x.zip", CLASSES)
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:keep])
    said = r"no audio file, archive or table that can be read; it holds 1 cannot be read \(File is not a zip file\) \(x"
    with pytest.raises(ValueError, match=said):
        open_source(DataArguments(str(tmp_path)), extractor)


WHY = {
    "files lie at different depths (demo.wav and dog/0.wav)": ["demo.wav"],
    "files lie at different depths (dog/0.wav and rain/heavy/9.wav)": ["rain/heavy/9.wav"],
}


@pytest.mark.parametrize("why", WHY)
def test_what_keeps_folders_from_being_classes_is_said(why, tmp_path, extractor):
    write(tmp_path, [*CLASSES, *WHY[why]])
    with pytest.raises(ValueError) as error:
        labels(tmp_path, extractor)
    assert f"has no column 'label': {why}" in str(error.value)


def test_one_folder_no_folder_and_metadata_are_no_classes(tmp_path, extractor):
    for name, names, why in [
        ("one", ["dog/1.wav", "dog/2.wav"], "all files lie in one folder, dog"),
        ("none", ["1.wav", "2.wav"], "files lie in no folders of classes"),
        ("table", ["dog/1.wav", "rain/2.wav"], "columns come from metadata.csv"),
        (
            "split",
            ["dog/1.wav", "rain/2.wav", "train/3.wav"],
            "the folder of train/3.wav is taken for a split and not ",
        ),
    ]:
        write(tmp_path / name, names)
        if name == "table":
            (tmp_path / name / "metadata.csv").write_text("file_name,kind\ndog/1.wav,1\n")
        with pytest.raises(ValueError, match=f"no column 'label': {why}"):
            labels(tmp_path / name, extractor)


def test_folders_of_splits_are_no_classes(tmp_path, extractor):
    write(tmp_path, ["dog/train/1.wav", "rain/train/2.wav", "dog/test/3.wav", "rain/test/4.wav"])
    assert list(labels(tmp_path, extractor).values()) == ["dog", "rain"]


def test_labels_of_folders_in_folders_are_said(tmp_path, extractor, caplog):
    write(tmp_path, [f"{kind}/{who}/1.wav" for kind in ("dog", "rain") for who in ("anna", "bert")])
    assert list(labels(tmp_path, extractor).values()) == ["anna", "bert", "anna", "bert"]
    said = "its innermost folder (anna, bert); the folders around these (dog, rain) are no labels. Others are said by a"
    assert said in caplog.text and "metadata.csv with the columns file_name and label" in caplog.text
    assert "small letters" not in caplog.text


def test_folders_called_like_splits_but_for_their_capitals_are_said(tmp_path, extractor, caplog):
    write(tmp_path, [f"{part}/{kind}/1.wav" for part in ("Train", "TEST") for kind in ("dog", "rain")])
    assert list(labels(tmp_path, extractor).values()) == ["dog", "rain", "dog", "rain"]
    said = "the folders around these (TEST, Train) are no labels, and no splits, which have small letters (test, train)"
    assert said in caplog.text


def test_folders_around_those_that_are_labels_are_said_where_no_name_repeats(tmp_path, extractor, caplog):
    write(tmp_path, ["dog/anna/1.wav", "dog/bert/2.wav", "rain/carl/3.wav"])
    assert list(labels(tmp_path, extractor).values()) == ["anna", "bert", "carl"]
    assert "(anna, bert, carl); the folders around these (dog, rain) are no labels" in caplog.text
    caplog.clear()
    open_source(DataArguments(str(tmp_path)), extractor)  # without labels
    assert "no labels" not in caplog.text


def test_rows_and_files_of_metadata_that_do_not_meet_are_counted(tmp_path, extractor, caplog):
    write(tmp_path, ["1.wav", "2.wav", "more/3.wav"])
    rows = (
        "file_name,kind,peer_file_name\n1.wav,a,2.wav\nmore/3.wav,b,\n../1.wav,c,\n/etc/passwd,d,\nfile:///x.wav,e,\n"
    )
    (tmp_path / "metadata.csv").write_text(rows)
    source = open_source(DataArguments(str(tmp_path)), extractor)
    examples = list(source.read(0))
    assert [(example["kind"], os.path.relpath(example["clip_name"], tmp_path)) for example in examples] == [
        ("a", "1.wav"),
        ("b", "more/3.wav"),
    ]
    assert examples[0]["peer"] == {"bytes": None, "path": str(tmp_path / "2.wav")}
    assert "3 rows of metadata.csv whose files lie outside its folder (2, 3, 4)" in caplog.text


def test_names_of_metadata_in_other_forms(tmp_path, extractor, caplog):
    write(tmp_path, ["1.wav", "more/2.wav", "back\\slash.wav", "4.wav"])
    names = [".\\1.wav", "more\\2.wav", "back\\slash.wav", f"{tmp_path}/4.wav", "..\\..\\etc\\passwd", f"{tmp_path}2/x"]
    rows = "".join(f"{name},{number}\n" for number, name in enumerate(names))
    (tmp_path / "metadata.csv").write_text(f"file_name,audio\n{rows}")
    source = open_source(DataArguments(str(tmp_path)), extractor)
    found = [(os.path.relpath(row["clip_name"], tmp_path), row["dataset_audio"]) for row in source.read(0)]
    assert found == [("1.wav", 0), ("more/2.wav", 1), ("back\\slash.wav", 2), ("4.wav", 3)]
    assert "2 rows of metadata.csv whose files lie outside its folder (4, 5)" in caplog.text
    assert "metadata.csv: column 'audio' is read as 'dataset_audio': that of the clips is called so" in caplog.text


def test_files_without_a_row_of_metadata_are_counted(tmp_path, extractor, caplog):
    write(tmp_path, ["1.wav", "2.wav"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "2.wav", "kind": ["a", "b"]}\n')
    (example,) = open_source(DataArguments(str(tmp_path)), extractor).read(0)
    assert example["kind"] == ["a", "b"] and "1 of 2 files are read" in caplog.text
    assert "1 of no row in metadata.jsonl (1.wav)" in caplog.text


def test_metadata_that_cannot_be_read_is_named(tmp_path, extractor):
    write(tmp_path, ["1.wav"])
    (tmp_path / "metadata.csv").write_text("name,kind\n1.wav,a\n")
    with pytest.raises(ValueError, match=r"metadata.csv has no column 'file_name' of names; .*\['name', 'kind'\]"):
        open_source(DataArguments(str(tmp_path)), extractor)
    (tmp_path / "metadata.csv").write_text("file_name,kind\n1,a\n")
    with pytest.raises(ValueError, match=r"no column 'file_name' of names, it holds int64; .*\['file_name', 'kind'\]"):
        open_source(DataArguments(str(tmp_path)), extractor)
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match="metadata.jsonl cannot be read: JSON parse error"):
        open_source(DataArguments(str(tmp_path)), extractor)


FILMS = [f"{i}.{end}" for i, end in enumerate(["webm", "m4v", "mts", "m2ts", "ts", "mpg", "wmv", "flv", "gif", "MP4"])]


def test_the_modality_says_what_a_film_is(tmp_path, extractor, image_processor, video_processor, caplog):
    write(tmp_path, [*FILMS, "a.wav", "b.png", "c.avif"])

    def read(processor):
        return [name for name, _ in names_in(tmp_path, processor)]

    assert read(video_processor) == FILMS
    assert "10 of 13 files are read (split train); left out: 1 .wav (a.wav); 1 .png (b.png); 1 .avif (c.avif)" in (
        caplog.text
    )
    assert read(extractor) == ["0.webm", "1.m4v", "2.mts", "3.m2ts", "5.mpg", "6.wmv", "7.flv", "9.MP4", "a.wav"]
    pictures = ["8.gif", "b.png"] + ["c.avif"] * (".avif" in image_extensions())
    assert read(image_processor) == pictures


def test_a_folder_without_any_of_the_modality_says_what_it_holds(tmp_path, image_processor):
    write(tmp_path, ["a.xyz", "b.xyz"])
    with pytest.raises(ValueError, match=r"no image file, archive or table that can be read; it holds 2 .xyz \(a.xyz"):
        open_source(DataArguments(str(tmp_path)), image_processor)


def test_texts_are_no_clips_unless_their_column_is_named(tmp_path, extractor):
    (tmp_path / "clips.txt").write_text("sounds/1.wav\n")
    with pytest.raises(
        ValueError, match="a folder that holds no audio file, archive or table that can be read; it hol"
    ):
        open_source(DataArguments(str(tmp_path)), extractor)
    assert open_source(DataArguments(str(tmp_path), input_column="text"), extractor).input_column == "text"


@pytest.mark.parametrize("name", ["~x", "~"])
def test_a_folder_may_be_called_like_a_home(name, tmp_path, extractor, monkeypatch):
    write(tmp_path / name, CLASSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = f"./{name}" if name == "~" else name
    assert set(labels(given, extractor).values()) == {"dog", "rain"}
    write(tmp_path / "home" / "sounds", CLASSES)
    assert set(labels("~/sounds", extractor).values()) == {"dog", "rain"}


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, extractor, caplog, monkeypatch):
    write(tmp_path, CLASSES)
    look = os.scandir

    def refuse(path):
        if str(path).endswith("rain"):
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [name for name, _ in names_in(tmp_path, extractor)] == CLASSES[:2]
    assert "1 cannot be read (Permission denied) (rain/)" in caplog.text


def test_a_folder_of_a_format_that_needs_another_package_holds_no_sound(tmp_path, extractor, monkeypatch):
    (tmp_path / "t.h5").write_bytes(b"none")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match="a folder that holds no audio file.*; it holds 1 .h5"):
        open_source(DataArguments(str(tmp_path)), extractor)


def test_archives_have_metadata_files_of_their_own(tmp_path, extractor, caplog):
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}.wav", SOUND)
            archive.writestr("metadata.csv", f"file_name,other_file_name,kind\n{name}.wav,{name}.wav,{name}\n")
    found = load_examples(DataArguments(str(tmp_path), label_column="kind"), extractor)
    assert found.label_names == ["a", "b"] and "several rows" not in caplog.text  # a file in two columns is one row
