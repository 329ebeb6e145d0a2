"""`bridle check`: what a dataset holds, what a recipe would make of it, and when it could not train."""

import csv
import json
import re
import shutil
import zipfile

import datasets
import numpy as np
import pytest
import soundfile
from picture_files import counting_video, picture, png
from sound_files import clip, flac

from bridle_hf.cli.main import main as bridle
from bridle_hf.data.duplicates import Duplicates
from bridle_hf.data.streaming import build_loader
from bridle_hf.training import load_recipe


@pytest.fixture
def checked(capsys):
    """`checked(*words)` -> the lines by their names, and the exit status."""

    def run(*words):
        status = 0
        try:
            bridle(["check", *map(str, words)])
        except SystemExit as ended:
            status = ended.code
        lines, out = {}, capsys.readouterr()
        for line in out.out.splitlines():
            lines.setdefault(line[:14].strip(), []).append(line[14:])
        return lines, status, out.err

    return run


def tone(seconds, rate, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * 440 * (c + 1) * time) for c in range(channels)], axis=1)


@pytest.fixture
def sounds(tmp_path):
    """Two classes: 20 of one second at 16 kHz, 20 of 12 s at 44.1 kHz in stereo, one too short, one broken, a text."""
    folder = tmp_path / "sounds"
    for name in ("dog", "sea"):
        (folder / name).mkdir(parents=True)
    for number in range(20):
        soundfile.write(folder / "dog" / f"{number}.wav", tone(1.0, 16000), 16000)
        soundfile.write(folder / "sea" / f"{number}.flac", tone(12.0, 44100, channels=2), 44100)
    soundfile.write(folder / "dog" / "short.wav", tone(0.1, 16000), 16000)
    (folder / "sea" / "broken.mp3").write_bytes(b"no sound")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_folder_of_sounds(checked, sounds, caplog):
    lines, status, err = checked(sounds)
    assert status == 0, err
    assert lines["clips"] == ["40 can be used, of 42"] and lines["in all"] == ["0.07 hours"]
    assert lines["lengths"] == ["1 to 12, median 6.5 s"]
    bars = [re.fullmatch(r" *(.*?) (#*) ?(\d+)", line).groups() for line in lines[""]]
    assert bars == [
        ("1 to 2 s", 40 * "#", "20"), ("2 to 5 s", "", "0"), ("5 to 10 s", "", "0"), ("10 to 20 s", 40 * "#", "20"),
    ]  # fmt: skip
    assert lines["rates"] == ["16000 per second (20), 44100 per second (20)"]
    assert lines["channels"] == ["1 (20), 2 (20)"]
    assert lines["label"] == ["2 values: dog (20), sea (20)"]
    # windows of 512 frames: one of each second, three of 12 s
    assert lines["windows"] == ["80 of 5.12 s, side by side"]
    assert lines["the recipe"] == ["4300 steps of 40 draw each clip 4300.0 times"]
    short, broken = sorted(lines["left out"], reverse=True)
    assert short.startswith("1, too short: ") and short.endswith("dog/short.wav")
    assert broken.startswith("1, cannot be decoded") and broken.endswith("sea/broken.mp3")
    assert lines["verdict"] == ["the recipe can train on it"]
    assert [line[:4] for line in lines["remark"]] == ["4300", "belo", "50 %", "50 %"]
    assert any("left out" in line and "notes.txt" in line for line in caplog.messages)  # what the folder holds besides
    recipe = load_recipe("audio/own_small", [f"data.dataset={sounds}", "data.cache=false"])
    loader = build_loader(recipe.data, recipe.build_processor(), batch_size=42, seed=0)
    next(loader)
    assert len(loader.skipped) == 2  # as pretraining reads it


def test_why_folders_are_no_classes_is_said(checked, sounds):
    shutil.copy(sounds / "dog" / "0.wav", sounds / "stray.wav")
    assert checked(sounds)[0]["label"][0].startswith("none: files lie at different depths (")
    clips = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in sounds.glob("*/[0-9]*.*")]
    (sounds / "metadata.csv").write_text("\n".join(["file_name,label", *clips]))
    assert [line[:8] for line in checked(sounds)[0]["label"]] == ["2 values"]


def test_where_too_much_is_broken_the_exit_status_says_so(checked, sounds):
    for number in range(12):
        (sounds / "dog" / f"broken-{number}.wav").write_bytes(b"RIFF")
    lines, status, _ = checked(sounds)
    assert status == 1 and lines["clips"] == ["40 can be used, of 54"]
    (verdict,) = lines["verdict"]
    assert (
        # the short one besides does not count
        verdict.startswith("the recipe could not train on it: 13 of 54 clips") and "data.max_bad_share=0.05" in verdict
    )
    lines, status, _ = checked(sounds, "data.max_bad_share=0.5")
    assert status == 0 and lines["verdict"] == ["the recipe can train on it"]


def test_where_nothing_can_be_used(checked, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    lines, status, _ = checked(tmp_path)
    assert status == 1 and list(lines) == ["verdict"] and "no usable example" in lines["verdict"][0]


def test_what_the_recipe_says_counts(checked, sounds):
    lines, status, _ = checked(sounds, "--recipe", "audio/own_32k", "data.exclude={label: [0]}")
    assert status == 0 and lines["clips"] == ["20 can be used, of 21"] and lines["excluded"] == ["21, by data.exclude"]
    assert lines["label"] == ["1 values: sea (20)"]
    lines, status, _ = checked(sounds, "--recipe", "audio/own_32k", "processor.channel=1", "data.max_bad_share=1")
    assert lines["clips"] == ["20 can be used, of 42"] and any("has 1 channel" in line for line in lines["left out"])
    lines, status, _ = checked(sounds, "--recipe", "audio/own_32k")
    assert any("50 % of the clips have a lower rate than the 32000 Hz" in line for line in lines["remark"])


def test_tables_with_labels_and_folds(checked, tmp_path):
    rows = [
        {
            "audio": {"bytes": flac(clip(i)), "path": None},
            "target": i % 3,
            "fold": i % 2 + 1,
            "tags": ["a", "b"][: i % 3],
        }
        for i in range(12)
    ]
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "target": datasets.ClassLabel(names=["dog", "rain", "bell"]),
            "fold": datasets.Value("int64"),
            "tags": datasets.List(datasets.Value("string")),
        }
    )
    table = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")
    lines, status, err = checked(tmp_path / "set", "data.label_column=tags")
    assert status == 0, err
    assert lines["target"] == ["3 values: dog (4), rain (4), bell (4)"]
    assert lines["fold"] == ["2 values: 1 (6), 2 (6)"] and lines["tags"] == ["2 values: a (8), b (4)"]


def test_pictures_and_videos(checked, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        (pictures / f"{number}.png").write_bytes(png(picture(number)))
    lines, status, err = checked(pictures)
    assert status == 0, err
    height, width = np.asarray(picture(0)).shape[:2]
    assert lines["sizes"] == [f"{width} x {height} (3)"] and lines["windows"] == ["3"]
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(2):
        counting_video(videos / f"{number}.mp4", 40)
    lines, status, err = checked(videos)
    assert status == 0 and lines["recipe"] == ["video/own_small"], err
    assert lines["clips"] == ["2 can be used, of 2"] and "lengths" in lines and "rates" in lines


def test_what_is_no_dataset_is_one_line(checked, tmp_path):
    (tmp_path / "empty").mkdir()
    for words in ([tmp_path / "none"], [tmp_path / "empty"], [tmp_path, "--recipe", "audio/none"]):
        lines, status, err = checked(*words)
        assert status == 2 and not lines
        assert err.splitlines()[-1].startswith("bridle check: error: ")


def test_copies_in_archives_and_under_names_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in.flac", flac(clip(0)))
    (tmp_path / "b.flac").write_bytes(flac(clip(0)))
    found = Duplicates()
    found.add("zipped", {"bytes": None, "path": f"zip://in.flac::{tmp_path}/a.zip"})
    found.add("again", {"bytes": None, "path": f"zip://in.flac::{tmp_path}/a.zip"})
    found.add("from home", "~/b.flac")
    found.add("whole", str(tmp_path / "b.flac"))
    assert found.groups() == [["zipped", "again", "from home", "whole"]]


def test_copies_and_a_table_of_all_clips(checked, tmp_path, caplog):
    folder = tmp_path / "some"
    folder.mkdir()
    for name, number in (("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", 0)):
        (folder / f"{name}.flac").write_bytes(flac(clip(number)))
    (folder / "f.flac").write_bytes(b"none")
    soundfile.write(folder / "g.wav", tone(0.1, 16000), 16000)
    lines, status, err = checked(folder, "--output", tmp_path / "clips.csv")
    assert status == 0, err
    a, c = f"{folder}/a.flac", f"{folder}/c.flac"
    assert lines["duplicates"] == [f"2 clips are copies of others: {a} = {c}"] and lines["recipe"] == [
        "audio/own_small"
    ]
    assert not any("skipped" in line for line in caplog.messages)  # the lines have it
    with open(tmp_path / "clips.csv") as file:
        rows = {row["name"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert len(rows) == 7 and list(rows["a.flac"]) == ["name", "seconds", "rate", "channels", "copy_of", "problem"]
    assert {name: row["copy_of"] for name, row in rows.items() if row["copy_of"]} == {"c.flac": a, "e.flac": a}
    assert {name for name, row in rows.items() if row["problem"]} == {"f.flac", "g.wav"}
    assert rows["g.wav"]["problem"].startswith("too short") and rows["g.wav"]["seconds"] == ""
    assert float(rows["b.flac"]["seconds"]) == pytest.approx(len(clip(1)) / 16000) and rows["b.flac"]["channels"] == "1"


def test_copies_in_tables_and_arrays():
    found = Duplicates()
    rows = {"a": {"bytes": b"x", "path": None}, "b": {"bytes": b"y", "path": "p"}, "c": {"bytes": b"x", "path": "q"}}
    arrays = {"d": np.zeros(3), "e": np.zeros(3, np.float32), "f": [0.0, 0.0, 0.0], "g": "https://x/y.wav"}
    for name, raw in (rows | arrays).items():
        found.add(name, raw)
    assert found.groups() == [["a", "c"], ["d", "f"]]


def test_labels_that_fine_tuning_refuses_are_said(checked, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.flac").write_bytes(flac(clip(number)))
    rows = [{"file_name": f"{number}.flac", "label": {"name": "dog"}} for number in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines, status, err = checked(tmp_path)
    assert status == 0, err
    assert any(
        "fine-tuning refuses it: data.label_column: 'label' must hold one integer" in each for each in lines["label"]
    )
