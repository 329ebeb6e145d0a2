"""Folders are shared out to splits and classes as `datasets` does it, by the files that are clips."""

import os
from pathlib import Path

import datasets
import pytest
from datasets.data_files import SPLIT_KEYWORDS, get_data_patterns
from sound_files import clip, flac

from bridle_hf.data import DataArguments
from bridle_hf.data.listing import find_splits
from bridle_hf.data.source import open_source

LAYOUTS = {
    "flat": ["b.wav", "a.wav", "c.txt", ".hidden.wav"],
    "classes": ["dog/1.wav", "rain/2.wav", "rain/.old/3.wav", "__made__/4.wav"],
    "names that sort in between": ["a/1.wav", "a-b/1.wav", "a b/1.wav", "B/1.WAV", "a/é.wav"],
    "words inside words": ["festival.wav", "latest/contest1x.wav", "devil/a.wav"],
    "split folders": ["train/1.wav", "test/2.wav"],
    "split folders of classes": ["train/a/1.wav", "train/b/2.wav", "test/b/3.wav", "test/a/4.wav"],
    "one split among others": ["dog/1.wav", "dog/test/2.wav"],
    "split in a name": ["door.wav", "door_test_1.wav", "dev-2.wav"],
    "shards": ["data/odd-00000-of-00002.parquet", "data/odd-00001-of-00002.parquet"],
    "tables": ["a.parquet", "b.parquet", "about.txt"],
    "a card": ["1.wav", "2.wav", "README.md"],
}
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: second\n    path: 2.wav\n---\n"
SOUND = flac(clip(0))


def write(folder, names, content=SOUND):
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            datasets.Dataset.from_list([{"audio": {"bytes": content, "path": name}}]).to_parquet(path)
        else:
            path.write_bytes(CARD.encode() if name == "README.md" else content)
    return str(folder)


def names_in(folder, extractor, split="train", **data):
    """The names of the clips of a split as they are read, with their label if they have one."""
    source = open_source(DataArguments(str(folder), split=split, **data), extractor)
    found = [(str(example["clip_name"]), example.get("label")) for example in source.read(0)]
    return [(os.path.relpath(name, folder), label) for name, label in found]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_files_in_the_same_splits_and_classes_as_the_library(layout, tmp_path, extractor):
    write(tmp_path, LAYOUTS[layout])
    theirs = datasets.load_dataset_builder(str(tmp_path))
    for split, files in theirs.config.data_files.items():
        source = open_source(DataArguments(str(tmp_path), split=split), extractor)
        if layout in ("shards", "tables"):
            assert source.files == [str(file) for file in files]
            continue
        read = names_in(tmp_path, extractor, split)
        assert [name for name, _ in read] == [os.path.relpath(f, tmp_path) for f in files if not f.endswith(".txt")]
        their_label = theirs.as_streaming_dataset(split).features.get("label")
        if layout == "split folders":  # the library takes its own splits for classes
            their_label = None
        our_label = source.dataset.features.get("label")
        assert our_label == their_label
        if our_label:
            assert [our_label.names[label] for _, label in read] == [Path(name).parent.name for name, _ in read]


NAMES = ["{}/1.wav", "a/{}-1/1.wav", "a-{}/1.wav", "a {}.b/1.wav", "{}_1.wav", "a/b0{}1.wav"]


@pytest.mark.parametrize("word", [word for words in SPLIT_KEYWORDS.values() for word in words])
def test_every_name_that_the_library_takes_for_a_split_is_one(word, tmp_path):
    (split,) = (str(split) for split, words in SPLIT_KEYWORDS.items() if word in words)
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number) / "sounds"
        write(folder, [name.format(word)])
        assert list(get_data_patterns(str(folder))) == [split]
        assert find_splits([name.format(word)]) == {split: [name.format(word)]}


def test_files_names_those_to_read(tmp_path, extractor):
    write(tmp_path, ["door.wav", "door_test_1.wav", "more/window.wav", "more/window.flac", "[a]/b.wav"])

    def names(pattern, split="train"):
        return [name for name, _ in names_in(tmp_path, extractor, split, files=pattern)]

    everything = ["[a]/b.wav", "door.wav", "door_test_1.wav", "more/window.flac", "more/window.wav"]
    assert names("**") == names("**/*") == everything
    assert names("**/*.flac") == names("more/*.flac") == names("./more/*.flac") == ["more/window.flac"]
    assert names("[a]/b.wav") == ["[a]/b.wav"] and names("*.wav") == ["door.wav", "door_test_1.wav"]
    assert names(str(tmp_path / "more" / "*.wav")) == ["more/window.wav"]
    assert names(None, "test") == ["door_test_1.wav"]


def test_a_folder_is_read_as_it_is_now(tmp_path, extractor):
    write(tmp_path, ["dog/1.wav", "dog/2.wav"])
    before = open_source(DataArguments(str(tmp_path)), extractor).fingerprint
    assert open_source(DataArguments(str(tmp_path)), extractor).fingerprint == before
    write(tmp_path, ["rain/3.wav"])
    assert [name for name, _ in names_in(tmp_path, extractor)] == ["dog/1.wav", "dog/2.wav", "rain/3.wav"]
    seen = {before, open_source(DataArguments(str(tmp_path)), extractor).fingerprint}
    (tmp_path / "dog" / "1.wav").write_text("another sound")
    seen.add(open_source(DataArguments(str(tmp_path)), extractor).fingerprint)
    os.utime(tmp_path / "dog" / "1.wav", (1, 1))
    seen.add(open_source(DataArguments(str(tmp_path)), extractor).fingerprint)
    assert len(seen) == 4


def test_a_name_is_one_folder_wherever_the_process_stands(tmp_path, extractor, monkeypatch):
    for home in ("a", "b"):
        write(tmp_path / home / "sounds", ["1.wav"])
        monkeypatch.chdir(tmp_path / home)
        (example,) = open_source(DataArguments("sounds"), extractor).read(0)
        assert example["clip_name"] == str(tmp_path / home / "sounds" / "1.wav")


def test_clips_that_are_of_no_split_are_counted(tmp_path, extractor, caplog):
    write(tmp_path, ["horn.wav", "dog/bark.wav", "train_horn.wav", "notes.txt", ".old.wav"])
    assert [name for name, _ in names_in(tmp_path, extractor)] == ["train_horn.wav"]
    (line,) = caplog.messages
    assert (
        "1 of 5 files are read (split train); left out: 1 .txt (notes.txt); 1 hidden (.old.wav); 2 of no split" in line
    )
    assert "(dog/bark.wav, horn.wav); data.files='**' (--files '**') reads all as split train" in line
    caplog.clear()
    assert len(names_in(tmp_path, extractor, files="**/*.wav")) == 3
    assert "of no split" not in caplog.text


def test_metadata_files_are_read_in_the_order_of_their_names(tmp_path, extractor):
    for folder in "fdbace":
        write(tmp_path, [f"{folder}/1.wav"])
        (tmp_path / folder / "metadata.csv").write_text("file_name,number\n1.wav,1\n")
    assert "".join(name[0] for name, _ in names_in(tmp_path, extractor)) == "abcdef"


def test_folders_of_save_to_disk_are_read(tmp_path, extractor):
    rows = [{"audio": {"bytes": SOUND, "path": f"{i}.flac"}, "kind": i} for i in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows[:2])}).save_to_disk(tmp_path / "splits")
    for folder, count in (("one", 3), ("splits", 2)):
        source = open_source(DataArguments(str(tmp_path / folder)), extractor)
        assert [example["kind"] for example in source.read(0)] == [0, 1, 2][:count]


@pytest.mark.parametrize("page", ["# Sounds", "---\n: [bad\n---\n", "---\na rule\n---\n", "---\nlicense: mit\n---\n"])
def test_a_page_that_says_nothing_of_splits_changes_nothing(page, tmp_path, extractor, caplog):
    write(tmp_path, ["a/1.wav", "b/2.wav"])
    (tmp_path / "README.md").write_text(page)
    assert [label for _, label in names_in(tmp_path, extractor)] == [0, 1] and not caplog.messages


def test_a_link_to_a_file_of_another_name_is_read_where_it_is(tmp_path, extractor):
    """As in the Hub's cache, where files lie under their digests."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(flac(clip(0)))
    (tmp_path / "snapshots" / "a.flac").symlink_to(tmp_path / "blobs" / "0a1b")
    source = open_source(DataArguments(str(tmp_path / "snapshots" / "a.flac")), extractor)
    assert len(list(source.decode_all(0, 0))) == 1


def test_beside_one_file_nothing_is_looked_at(tmp_path, extractor, caplog, monkeypatch):
    caplog.set_level("INFO")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a[1].flac").write_bytes(flac(clip(0)))
    with monkeypatch.context() as patched:
        patched.setattr("os.scandir", lambda *_: pytest.fail("the folder is gone through"))
        source = open_source(DataArguments(str(tmp_path / "a[1].flac")), extractor)
        assert len(list(source.decode_all(0, 0))) == 1
    assert "1 of 1 files are read" in caplog.text and "hidden" not in caplog.text


def test_each_row_of_a_bad_file_is_skipped_for_itself(tmp_path, extractor):
    (tmp_path / "0.flac").write_bytes(SOUND)
    (tmp_path / "bad.flac").write_bytes(b"none")
    (tmp_path / "t.csv").write_text("file,speaker\nbad.flac,1\n0.flac,2\nbad.flac,3\n")
    source = open_source(DataArguments(str(tmp_path / "t.csv")), extractor)
    assert len(list(source.decode_all(0, 1.0))) == 1 and source.bad == 2
    assert list(source.skipped) == [f"{tmp_path}/bad.flac", f"{tmp_path}/bad.flac (sample 3)"]
