"""The example scripts with a user's arguments, read by their last line."""

import json
import runpy

import kaldi
import numpy as np
import pytest
import soundfile
from tiny import tiny_config

from bridle_hf import BridleFeatureExtractor, BridleModel
from bridle_hf.data import decode_audio
from bridle_hf.evaluation.comparison import read_predictions


@pytest.fixture
def script(repository, tmp_path, monkeypatch, capsys):
    def run(name, *arguments, fails=False):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        capsys.readouterr()
        if not fails:
            runpy.run_path(str(repository / "examples" / name), run_name="__main__")
            return capsys.readouterr().out
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(repository / "examples" / name), run_name="__main__")
        return capsys.readouterr().err

    return run


@pytest.fixture
def labelled(tones):
    return ["--dataset", tones, "--label-column", "sound", "--fold-column", "fold"]


@pytest.mark.parametrize(
    ("options", "dimensions", "seeds"),
    [
        (["--layer", "1", "--pooling", "mean_std"], 48, [0]),
        (["--baseline", "random", "--seeds", "0", "1"], 24, [0, 1]),
        (["--baseline", "logmel"], 128, [0]),
        (["--pooling", "bands_std", "--pad-short", "--test-windows", "first"], 4 * 48, [0]),
    ],
)
def test_probe_ends_with_one_json_object(script, labelled, pretrained, options, dimensions, seeds):
    report = json.loads(script("linear_probe.py", "--model", pretrained, *labelled, *options).splitlines()[-1])
    assert report["folds"] == [1, 2, 3] and len(report["per_fold"]) == 3
    assert report["accuracy"] == pytest.approx(sum(report["per_fold"]) / 3)
    assert report["accuracy"] > 0.8  # low and high tones: random features tell them apart
    assert report["dimensions"] == dimensions and report["seeds"] == seeds and report["clips"] == 24


@pytest.mark.parametrize("kind", ["knn", "gradient"])
def test_probes_of_other_kinds_write_what_they_say_of_each_clip(script, labelled, pretrained, tmp_path, kind):
    options = ["--kind", kind, "--output", tmp_path / "said.csv", "--seeds", 0]
    report = json.loads(script("linear_probe.py", "--model", pretrained, *labelled, *options).splitlines()[-1])
    rows = read_predictions(tmp_path / "said.csv")
    assert [row["label"] for row in rows] == ["low", "high"] * 12 and [row["fold"] for row in rows][::8] == list("123")
    assert sum(row["label"] == row["said"] for row in rows) / 24 == pytest.approx(report["accuracy"])
    assert report["kind"] == kind and report["interval"][0] <= report["accuracy"] <= report["interval"][1]
    assert report["accuracy"] > 0.7


@pytest.mark.parametrize("rate", [16000, 22050])
def test_mean_and_std_are_measured_at_the_rate_of_the_recipe(script, tmp_path, rate):
    clips = [0.1 * np.random.default_rng(seed).standard_normal(22050).astype(np.float32) for seed in range(3)]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip, 22050, subtype="FLOAT")
    said = script("measure_mean_std.py", "--dataset", tmp_path, "--num-mel-bins", 64, "--sampling-rate", rate)
    decoded = [decode_audio(str(tmp_path / f"{number}.wav"), rate) for number in range(3)]
    values = np.concatenate([kaldi.fbank(clip, rate, 64).ravel() for clip in decoded])
    measured = json.loads(said.splitlines()[-1])
    assert measured == pytest.approx({"mean": values.mean(), "std": values.std()}, abs=1e-3)


def test_probe_says_what_is_missing(script, labelled):
    assert "--model is missing" in script("linear_probe.py", *labelled, fails=True)
    assert "--folds" in script("linear_probe.py", *labelled, "--model", "runs/{fold}", fails=True)


def test_a_probe_takes_the_baselines_of_the_model_s_modality(script, labelled, pretrained):
    said = script("linear_probe.py", "--model", pretrained, *labelled, "--baseline", "colours", fails=True)
    assert "--baseline is 'colours'; --model is of another modality, and takes random, logmel, logmel-delta." in said


@pytest.fixture
def encoder(tmp_path):
    """Folder of an encoder alone."""
    BridleModel(tiny_config(input_size=(48, 64))).save_pretrained(tmp_path / "encoder")
    BridleFeatureExtractor(max_length=48, num_mel_bins=64).save_pretrained(tmp_path / "encoder")
    return "encoder"


@pytest.mark.parametrize("name", ["tokenize_audio.py", "codebook_report.py"])
def test_scripts_of_codes_want_a_tokenizer(script, tones, encoder, name):
    said = script(name, "--model", encoder, "--dataset", tones, fails=True)
    assert "--model is 'encoder', which holds no tokenizer; it takes a pretraining model such as" in said


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pretrain.py", ["--recipe", "audio/demo", "data.dataset=no/such/set"], "data.dataset is 'no/such/set'; there"),
        ("study.py", ["--recipe", "audio/demo", "data.dataset=no/such/set"], "data.dataset is 'no/such/set'; there"),
        ("study.py", ["--recipe", "audio/demo", "data.dataset={tones}", "--label-column", "x"], "has no column 'x'"),
        ("measure_mean_std.py", ["--dataset", "no/such/set"], "--dataset is 'no/such/set'; there is no such folder"),
        ("measure_mean_std.py", ["--dataset", "{tones}", "--input-column", "x"], "has no column 'x'"),
        ("extract_features.py", ["--model", "no/such/model", "--dataset", "{tones}"], "--model is 'no/such/model'; th"),
        ("extract_features.py", ["--model", "{model}", "--dataset", "no/such/set"], "--dataset is 'no/such/set'"),
        ("tokenize_audio.py", ["--model", "{model}", "--dataset", "no/such/set"], "--dataset is 'no/such/set'"),
        ("codebook_report.py", ["--model", "{model}", "--dataset", "no/such/set"], "--dataset is 'no/such/set'"),
        ("linear_probe.py", ["--model", "no/such/model", "--dataset", "{tones}", "--label-column", "sound"], "--model"),
        ("linear_probe.py", ["--model", "{model}", "--dataset", "{tones}", "--label-column", "x"], "no column 'x'"),
    ],
)
def test_scripts_say_in_one_line_what_is_not_there(script, tones, pretrained, name, arguments, message):
    words = [word.format(tones=tones, model=pretrained) for word in arguments]
    assert message in script(name, *words, fails=True).splitlines()[-1]


def test_finetune_runs_the_shipped_recipe(script, tones, pretrained, tmp_path):
    recipe = "audio/own_finetune"
    data = [f"data.dataset={tones}", "data.label_column=sound", "data.fold_column=fold"]
    changes = [f"model={pretrained}", *data, "output_dir=out"]
    out = script("finetune.py", "--recipe", recipe, *changes, "folds=[2]", "training.epochs=1")
    assert json.loads(out.splitlines()[-1])["folds"] == [2]
    assert (tmp_path / "out" / "fold-2" / "preprocessor_config.json").is_file()
    assert "training.epoch" in script("finetune.py", "--recipe", recipe, "training.epoch=1", fails=True)


def test_report_of_a_model_without_a_run(script, labelled, pretrained, tmp_path):
    script("codebook_report.py", "--model", pretrained, *labelled, "--output", "page.html", "--clips", "1")
    assert "Codebooks of" in (tmp_path / "page.html").read_text()


def test_mean_and_deviation_of_a_dataset(script, tones, tone):
    out = json.loads(script("measure_mean_std.py", "--dataset", tones, "--num-mel-bins", "64").splitlines()[-1])
    clips = [tone(i % 2, i) for i in range(24)]
    values = np.concatenate([kaldi.fbank(clip - clip.mean(), bins=64) for clip in clips])
    assert out["mean"] == pytest.approx(values.mean(), abs=2e-2)  # the clips went through 16-bit files
    assert out["std"] == pytest.approx(values.std(), abs=2e-2)


def test_names_that_speak_of_splits_and_the_files_to_read(script, tone, tmp_path):
    (tmp_path / "sounds").mkdir()
    for name, seed in (("door_test_1", 1), ("window", 2)):
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", tone(0, seed), 16000)
    said = script("measure_mean_std.py", "--dataset", "sounds", fails=True)
    assert "Bad split: train. Available splits: ['test']; --files='**' reads all files as split train" in said
    means = [
        json.loads(script("measure_mean_std.py", "--dataset", "sounds", "--files", files).splitlines()[-1])["mean"]
        for files in ("**", "door*", "window*")
    ]
    assert means[0] == pytest.approx((means[1] + means[2]) / 2, abs=1e-4) and means[1] != means[2]
