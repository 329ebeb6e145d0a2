"""Folders are opened as `datasets` itself opens them, and what was opened is opened again once it has changed."""

import os
from pathlib import Path

import datasets
import pytest
from datasets.data_files import SPLIT_KEYWORDS, get_data_patterns

from bridle_hf.data import DataArguments
from bridle_hf.data.opening import load_builder, look_at
from bridle_hf.data.source import open_source

LAYOUTS = {
    "flat": ["b.wav", "a.wav", "c.txt", ".hidden.wav"],
    "classes": ["dog/1.wav", "rain/2.wav", "rain/.old/3.wav", "__made__/4.wav"],
    "words inside words": ["festival.wav", "latest/contest1x.wav", "devil/a.wav"],
    "split folders": ["train/1.wav", "test/2.wav"],
    "one split among others": ["dog/1.wav", "dog/test/2.wav"],
    "split in a name": ["door.wav", "door_test_1.wav", "dev-2.wav"],
    "an end that is a word": ["1.wav", "log.eval"],
    "shards": ["data/odd-00000-of-00002.parquet", "data/odd-00001-of-00002.parquet"],
    "tables": ["a.parquet", "b.parquet", "about.txt"],
    "a card": ["1.wav", "2.wav", "README.md"],
}
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: second\n    path: 2.wav\n---\n"


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CARD if name == "README.md" else "")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_files_in_the_same_splits_as_the_library(layout, tmp_path):
    write(tmp_path, LAYOUTS[layout])
    ours, theirs = load_builder(DataArguments(str(tmp_path))), datasets.load_dataset_builder(str(tmp_path))
    assert type(ours).__module__ == type(theirs).__module__
    # Told the split, the library leaves files of other types out of a folder of sounds later.
    ours.config.data_files = {
        split: [name for name in names if "parquet" in type(ours).__module__ or not name.endswith(".txt")]
        for split, names in ours.config.data_files.items()
    }
    assert ours.config.data_files == theirs.config.data_files
    assert look_at(str(tmp_path))[1] == (layout in ("flat", "classes", "words inside words", "tables"))


def test_files_of_other_types_are_left_out(tmp_path, extractor):
    write(tmp_path, ["dog/1.wav", "dog/1.txt", "rain/2.wav", "notes.json"])
    examples = open_source(DataArguments(str(tmp_path)), extractor).read(0)
    assert [(Path(example["clip_name"]).name, example["label"]) for example in examples] == [("1.wav", 0), ("2.wav", 1)]


NAMES = ["{}/1.wav", "a/{}-1/1.wav", "a-{}/1.wav", "a {}.b/1.wav", "{}_1.wav", "a/b0{}1.wav"]


@pytest.mark.parametrize("word", [word for words in SPLIT_KEYWORDS.values() for word in words])
def test_every_name_that_the_library_takes_for_a_split_is_left_to_it(word, tmp_path):
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number) / "sounds"
        write(folder, [name.format(word)])
        assert get_data_patterns(str(folder)) != {"train": ["**"]} and not look_at(str(folder))[1]


def test_a_folder_is_opened_once_until_it_changes(tmp_path, monkeypatch):
    write(tmp_path, ["dog/1.wav", "dog/2.wav"])
    load, opened = datasets.load_dataset_builder, []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: opened.append(a) or load(*a, **k))

    def names():
        return [name[-5:] for name in load_builder(DataArguments(str(tmp_path))).config.data_files["train"]]

    assert names() == names() == ["1.wav", "2.wav"] and len(opened) == 1
    write(tmp_path, ["rain/3.wav"])
    assert names() == ["1.wav", "2.wav", "3.wav"] and len(opened) == 2
    (tmp_path / "dog" / "1.wav").write_text("another sound")
    assert names() == ["1.wav", "2.wav", "3.wav"] and len(opened) == 3
    os.utime(tmp_path / "dog" / "1.wav", (1, 1))
    assert names() == ["1.wav", "2.wav", "3.wav"] and len(opened) == 4


def test_a_name_is_one_folder_wherever_the_process_stands(tmp_path, monkeypatch):
    for home in ("a", "b"):
        write(tmp_path / home / "sounds", ["1.wav"])
        os.utime(tmp_path / home / "sounds" / "1.wav", (1, 1))
        monkeypatch.chdir(tmp_path / home)
        (name,) = load_builder(DataArguments("sounds")).config.data_files["train"]
        assert name == str(tmp_path / home / "sounds" / "1.wav")


def test_files_that_vanish_and_links_to_nothing_are_passed_over(tmp_path):
    write(tmp_path, ["1.wav"])
    before = look_at(str(tmp_path))
    (tmp_path / "part").symlink_to("nowhere")
    assert look_at(str(tmp_path)) == before
    write(tmp_path, [".huggingface.yaml"])
    assert not look_at(str(tmp_path))[1]


def test_clips_that_are_of_no_split_are_counted(tmp_path, caplog):
    write(tmp_path, ["horn.wav", "dog/bark.wav", "train_horn.wav", "notes.txt", ".old.wav"])
    assert len(load_builder(DataArguments(str(tmp_path))).config.data_files["train"]) == 1
    assert "2 of the 3 clips in" in caplog.text and "speak of one (train); data.files='**/*.wav'" in caplog.text
    caplog.clear()
    load_builder(DataArguments(str(tmp_path), files="**/*.wav"))
    assert not caplog.text


def test_metadata_files_are_read_in_the_order_of_their_names(tmp_path, extractor):
    """The library keeps them in a set, whose order is another in every process."""
    for folder in "fdbace":
        write(tmp_path, [f"{folder}/1.wav"])
        (tmp_path / folder / "metadata.csv").write_text("file_name,number\n1.wav,1\n")
    examples = open_source(DataArguments(str(tmp_path)), extractor).read(0)
    assert "".join(Path(example["clip_name"]).parent.name for example in examples) == "abcdef"


def test_files_names_those_to_read(tmp_path):
    write(tmp_path, ["door.wav", "door_test_1.wav", "more/window.wav", "more/window.flac"])

    def names(pattern):
        files = load_builder(DataArguments(str(tmp_path), files=pattern)).config.data_files
        return {split: [name.rsplit("/", 1)[1] for name in found] for split, found in files.items()}

    assert names("**") == {"train": ["door.wav", "door_test_1.wav", "window.flac", "window.wav"]}
    assert names("**/*.flac") == {"train": ["window.flac"]}
    assert list(names(None)) == ["test"]
