"""A row for each window of long sounds: of features and of predictions."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tiny import tiny_config

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification, BridleModel
from bridle_hf.cli.main import main as bridle
from bridle_hf.clip_features_bridle import window_starts
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.evaluation import row_files, windows
from bridle_hf.evaluation.features import write_features

LENGTHS, WINDOW, UNIT, PATCH = (33, 90, 160), 48, 16, 0.16


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, to_wav):
    """Clips of 33, 90 and 160 frames; the window is 48. A column is called as one of ours."""
    folder, rng = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    clips = [to_wav(rng.normal(size=400 + 160 * (frames - 1)) / 10) for frames in LENGTHS]
    rows = [{"audio": clip, "end": f"e{frames}"} for clip, frames in zip(clips, LENGTHS, strict=True)]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return DataArguments(dataset=str(folder), min_seconds=0)


@pytest.fixture(scope="module")
def model(pretrained):
    return BridleModel.from_pretrained(pretrained).eval()


@pytest.fixture(scope="module")
def extractor(pretrained):
    return BridleFeatureExtractor.from_pretrained(pretrained)


@pytest.mark.parametrize(("pooling", "overlap"), [("mean", 0.0), ("bands_std", 0.5), ("mean_std", 0.5)])
def test_each_window_is_pooled_by_itself(sounds, model, extractor, tmp_path, pooling, overlap):
    how = {"pooling": pooling, "overlap": overlap, "per_window": True, "batch_size": 2}
    count = write_features(tmp_path / "f.parquet", model, sounds, extractor, (None, 1), **how)
    rows = pq.read_table(tmp_path / "f.parquet").to_pylist()
    clips = load_examples(sounds, extractor).clips
    expected = [
        (number, start)
        for number, frames in enumerate(LENGTHS)
        for start in window_starts(frames, WINDOW, overlap, UNIT)
    ]
    assert count == len(rows) == len(expected)
    for row, (number, start) in zip(rows, expected, strict=True):
        piece = torch.from_numpy(clips[number][start : start + WINDOW])
        length = len(piece)
        padded = torch.nn.functional.pad(piece, (0, 0, 0, WINDOW - length))[None]
        mask = (torch.arange(WINDOW) < length).long()[None]
        for column, layer in (("last", None), ("layer_1", 1)):
            options = {"attention_mask": mask, "pooling": pooling, "layers": layer}
            alone = model.extract_features(padded, **options).features[0]
            np.testing.assert_allclose(row[column], alone.detach(), atol=2e-5)
        assert row["start"] == pytest.approx(start / UNIT * PATCH)
        assert row["end"] == pytest.approx((start / UNIT + -(-length // UNIT)) * PATCH)
        assert row["dataset_end"] == f"e{LENGTHS[number]}"


def test_a_killed_writer_leaves_no_clip_in_part(sounds, model, extractor, tmp_path, monkeypatch):
    how = {"overlap": 0.0, "per_window": True, "batch_size": 1}
    whole = write_features(tmp_path / "whole.parquet", model, sounds, extractor, **how)
    monkeypatch.setattr(row_files, "SECONDS_PER_PART", 0.0)  # a part after each clip
    monkeypatch.setattr(row_files, "ROWS_PER_GROUP", 1 / 16)
    run, calls = model.forward, []

    def stop(*given, **more):
        calls.append(1)
        if len(calls) == 4:  # inside the third clip
            raise KeyboardInterrupt
        return run(*given, **more)

    monkeypatch.setattr(model, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / "f.parquet", model, sounds, extractor, **how)
    monkeypatch.setattr(row_files, "ROWS_PER_GROUP", 256)
    assert write_features(tmp_path / "f.parquet", model, sounds, extractor, **how) == whole
    assert pq.read_table(tmp_path / "f.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_the_command(sounds, pretrained, tmp_path, capsys):
    words = ["features", "--model", str(pretrained), "--dataset", sounds.dataset, "--rows", "windows", "--pad-short"]
    bridle([*words, "--output", str(tmp_path / "f.parquet")])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"windows": 1 + 2 + 4, "output": str(tmp_path / "f.parquet")}
    starts = pq.read_table(tmp_path / "f.parquet")["start"].to_pylist()
    assert starts == pytest.approx([0, 0, 0.48, 0, 0.48, 0.96, 1.12])  # none sees a part again but the last
    with pytest.raises(SystemExit, match="2"):
        bridle([*words, "--pooling", "frames"])
    assert "--rows is 'windows', which takes" in capsys.readouterr().err.splitlines()[-1]


def test_a_long_recording_has_a_bar_of_its_own(sounds, model, extractor, tmp_path, monkeypatch, capsys):
    how = {"pooling": "mean", "per_window": True, "batch_size": 2}
    write_features(tmp_path / "a.parquet", model, sounds, extractor, (None,), **how)
    assert "windows/s" not in capsys.readouterr().err
    monkeypatch.setattr(windows, "SHOWN_AFTER", 0)
    write_features(tmp_path / "b.parquet", model, sounds, extractor, (None,), **how)
    assert "tone.wav: 0 windows [" in capsys.readouterr().err


def test_predictions_of_each_window(sounds, extractor, tmp_path, capsys):
    torch.manual_seed(0)
    names = {0: "rain", 1: "sea", 2: "wind"}
    classifier = BridleForAudioClassification(tiny_config(input_size=(48, 64), id2label=names)).eval()
    classifier.save_pretrained(tmp_path / "run" / "final")
    extractor.save_pretrained(tmp_path / "run" / "final")
    words = ["classify", "--model", str(tmp_path / "run"), "--dataset", sounds.dataset, "--windows", "each"]
    bridle([*words, "--output", str(tmp_path / "new" / "p.csv"), "--pad-short"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["windows"] == 7
    with open(tmp_path / "new" / "p.csv") as file:
        rows = list(csv.DictReader(file))
    clips = load_examples(sounds, extractor).clips
    places = [(n, start) for n, frames in enumerate(LENGTHS) for start in window_starts(frames, WINDOW, 0.0, UNIT)]
    for row, (number, start) in zip(rows, places, strict=True):
        piece = torch.from_numpy(clips[number][start : start + WINDOW])
        padded = torch.nn.functional.pad(piece, (0, 0, 0, WINDOW - len(piece)))[None]
        mask = (torch.arange(WINDOW) < len(piece)).long()[None]
        scores = classifier(padded, attention_mask=mask).logits.double().softmax(-1)[0]
        assert [float(row[f"score_{name}"]) for name in names.values()] == pytest.approx(scores.tolist(), abs=1e-5)
        assert row["prediction"] == names[int(scores.argmax())] and row["problem"] == ""
        assert float(row["start"]) == pytest.approx(start / 100)
        assert float(row["end"]) == pytest.approx((start / UNIT + -(-len(piece) // UNIT)) * PATCH, abs=1e-3)
