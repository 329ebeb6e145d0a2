"""Sounds of 8 to 48 kHz, of two channels and of a chosen one, from files to a classifier, features, codes and ONNX."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from tiny_run import TINY
from transformers import pipeline

import bridle_hf
from bridle_hf.cli.main import main as bridle
from bridle_hf.data import BadClipError, DataArguments, load_examples, load_processor
from bridle_hf.data.audio import audio_features
from bridle_hf.evaluation.features import write_features
from bridle_hf.hub.onnx_export import export_onnx, largest_difference
from bridle_hf.hub.reload import outputs
from bridle_hf.training import load_recipe

UNIT = 16
# Name -> rate, what the model and what the processor says.
CASES = {
    "8 kHz": (8000, {}, {"fmax": 3800.0}),
    "22.05 kHz": (22050, {}, {}),
    "32 kHz, one channel of two": (32000, {}, {"channel": 1, "fmin": 50.0, "fmax": 14000.0}),
    "48 kHz, two channels": (48000, {"num_channels": 2}, {"frame_ms": 20.0, "hop_ms": 8.0}),
}


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(int(hertz))
    time = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Stereo files of several rates; what tells the classes apart is in the second channel."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(12):
        rate, name = (8000, 22050, 44100, 48000)[number % 4], ("low", "high")[number % 2]
        (folder / name).mkdir(exist_ok=True)
        channels = [tone(600 + number, rate), tone((300, 2500)[number % 2] + number, rate)]
        soundfile.write(folder / name / f"{number}.wav", np.stack(channels, axis=1), rate)
    return folder


@pytest.fixture(scope="module", params=CASES)
def run(request, sounds, tmp_path_factory):
    """The folder of a pretrained model and its case."""
    rate, model, processor = CASES[request.param]
    folder = tmp_path_factory.mktemp("run")
    settings = processor | {"sampling_rate": rate, "mean": "auto", "std": "auto"}
    recipe = TINY | {"output_dir": str(folder / "run"), "model": TINY["model"] | model, "processor": settings}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    final = bridle_hf.pretrain(
        folder / "recipe.yaml", sounds, **{"training.max_steps_per_phase": 2, "data.cache": True}
    )
    return final, CASES[request.param]


def test_the_model_keeps_what_the_recipe_says(run):
    final, (rate, model, settings) = run
    stored = json.loads((final / "preprocessor_config.json").read_text())
    assert stored["sampling_rate"] == rate and settings.items() <= stored.items()
    assert stored["num_channels"] == model.get("num_channels", 1)
    assert -12 < stored["mean"] < -2 and stored["std"] > 1


def test_features_have_exact_times(run, sounds, tmp_path, caplog):
    final, (rate, _, _) = run
    encoder, processor = bridle_hf.BridleModel.from_pretrained(final), load_processor(str(final))
    write_features(tmp_path / "f.parquet", encoder, DataArguments(str(sounds)), processor, pooling="frames")
    rows = pq.read_table(tmp_path / "f.parquet").to_pylist()
    assert len(rows) == 12
    for row in rows:
        frames = 1 + (rate - processor.window) // processor.hop  # of one second
        assert len(row["last"]) == -(-frames // UNIT)
        expected = [patch * UNIT * processor.hop / rate for patch in range(len(row["last"]))]
        np.testing.assert_allclose(row["start"], expected, rtol=1e-7)
    clip = np.stack([tone(500, rate), tone(700, rate)])
    given = clip if processor.num_channels > 1 else clip[0]
    inputs = processor(given, sampling_rate=rate, return_tensors="pt")
    found = encoder.extract_features(**inputs, hop_seconds=processor.hop_seconds)
    np.testing.assert_allclose(found.times, np.arange(4) * UNIT * processor.hop / rate, rtol=1e-7)
    command = ["features", "--model", str(final), "--dataset", str(sounds), "--window-seconds", "0.3"]
    bridle([*command, "--pooling", "frames", "--output", str(tmp_path / "w.parquet")])
    patch, unit = UNIT * processor.hop / rate, round(0.3 / (UNIT * processor.hop / rate))
    said = f"windows are {unit * patch:.4g} s long, {unit} whole patches of {patch:.4g} s"
    assert (said in caplog.messages) == (abs(unit * patch - 0.3) > 1e-9)
    windows = pq.read_table(tmp_path / "w.parquet").to_pylist()
    assert [row["start"] for row in windows] == [row["start"] for row in rows]
    assert np.abs(np.array(windows[0]["last"]) - rows[0]["last"]).max() > 1e-4  # windows of 0.3 s, and not of 64 frames


def test_codes_pipelines_and_arrays_agree(run, sounds, tmp_path):
    final, (rate, _, _) = run
    model = bridle_hf.load(final)
    assert {codes.shape[1:] for codes in model.tokens(sounds)} == {(2, 2)}
    clip = np.stack([tone(500, rate, 0.5), tone(700, rate, 0.5)])
    seen = model.processor.choose_channels(clip.T)
    embedded = model.embed(clip, sampling_rate=rate)
    inputs = model.processor(seen, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        expected = model.encoder(**inputs).pooler_output
    np.testing.assert_allclose(embedded, expected, atol=1e-4)
    extract = pipeline("audio-feature-extraction", model=str(final))
    for given in (clip, clip.T, {"array": clip, "sampling_rate": rate}):
        np.testing.assert_allclose(extract(given, pool=True), expected, atol=1e-4)
    elsewhere = {"array": np.stack([tone(500, 44100, 0.5), tone(700, 44100, 0.5)]), "sampling_rate": 44100}
    np.testing.assert_allclose(extract(elsewhere, pool=True), model.embed(elsewhere), atol=1e-3)
    if model.processor.num_channels > 1 or model.processor.channel is not None:  # read by soundfile, not by ffmpeg
        path = str(tmp_path / "a.flac")
        soundfile.write(path, elsewhere["array"].T, 44100)
        np.testing.assert_allclose(extract(path, pool=True), model.embed(path), atol=1e-3)
        swapped = model.embed(clip[::-1], sampling_rate=rate)
        assert np.abs(swapped - embedded).max() > 1e-3


@pytest.mark.parametrize("run", ["8 kHz", "48 kHz, two channels"], indirect=True)
def test_probe_and_fine_tuning(run, sounds, tmp_path, capsys):
    final, (rate, _, _) = run
    bridle(["probe", "--model", str(final), "--dataset", str(sounds), "--label-column", "label"])
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] <= 1
    recipe = {
        "model": str(final), "output_dir": str(tmp_path / "tuned"), "folds": [1],
        "data": {"dataset": str(sounds), "label_column": "label", "frequency_mask": 0.3, "time_mask": 0.2},
        "training": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0},
    }  # fmt: skip
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(recipe))
    bridle(["finetune", str(tmp_path / "finetune.yaml")])
    tuned = bridle_hf.load(tmp_path / "tuned" / "fold-1")
    rows = tuned.classify(sounds)
    assert len(rows) == 12 and {label for row in rows for label in row["labels"]} <= {"low", "high"}
    assert tuned.processor.sampling_rate == rate
    classify = pipeline("long-audio-classification", model=str(tmp_path / "tuned" / "fold-1"))
    clip = np.stack([tone(500, rate), tone(700, rate)])
    scores = {each["label"]: each["score"] for each in classify(clip)}
    assert scores == pytest.approx(tuned.classify(clip, sampling_rate=rate)[0]["scores"], abs=1e-4)


def test_the_recipe_at_32_khz():
    recipe = load_recipe("audio/own_32k", ["data.dataset=x"])
    extractor = recipe.build_processor()
    assert (extractor.window, extractor.hop, extractor.fmax) == (800, 320, 16000)
    assert recipe.processor["mean"] == recipe.processor["std"] == "auto" and extractor.num_mel_bins == 128


@pytest.mark.parametrize("run", ["48 kHz, two channels"], indirect=True)
def test_onnx_files_take_the_same_inputs(run, tmp_path):
    final, (rate, _, settings) = run
    encoder, processor = bridle_hf.BridleModel.from_pretrained(final), load_processor(str(final))
    _, constants = export_onnx(encoder, tmp_path / "encoder.onnx", processor)
    assert largest_difference(encoder, tmp_path / "encoder.onnx") < 1e-4
    given = np.load(constants)
    assert (given["sampling_rate"], given["hop"], len(given["window"])) == (rate, processor.hop, processor.window)
    hertz = np.flatnonzero(given["filters"].any(axis=1)) * rate / (2 * (len(given["filters"]) - 1))
    assert settings.get("fmin", 20.0) <= hertz.min() and hertz.max() <= settings.get("fmax", rate / 2)
    assert outputs(final)["processor.input_values"].shape == (1, 64, 2, 16)  # as a release checks it


def test_files_that_lack_the_channels_are_named(sounds, tmp_path):
    for number, channels in enumerate((1, 2, 3)):
        samples = np.stack([tone(300 + 100 * channel, 16000) for channel in range(channels)], axis=1)
        soundfile.write(tmp_path / f"{number}.flac", samples, 16000)
    data = DataArguments(str(tmp_path), max_bad_share=0.5)
    plain = bridle_hf.BridleFeatureExtractor(num_mel_bins=16, max_length=64)
    whole = {"sampling_rate": 16000, "padding": False, "truncation": False}
    alone = [plain(tone(300 + 100 * c, 16000), **whole)["input_values"][0] for c in range(3)]
    for channel, there in ((0, [0, 1, 2]), (1, [1, 2]), (2, [2])):
        extractor = bridle_hf.BridleFeatureExtractor(num_mel_bins=16, max_length=64, channel=channel)
        clips = load_examples(data, extractor).clips
        assert len(clips) == len(there)
        for clip in clips:
            np.testing.assert_allclose(clip, alone[channel], atol=1e-2)
    stereo = load_examples(data, bridle_hf.BridleFeatureExtractor(num_mel_bins=16, max_length=64, num_channels=2)).clips
    assert [clip.shape for clip in stereo] == [(98, 2, 16)] * 2
    np.testing.assert_allclose(stereo[0], np.stack([alone[0], alone[0]], axis=1), atol=1e-2)
    np.testing.assert_allclose(stereo[1], np.stack(alone[:2], axis=1), atol=1e-2)
    with pytest.raises(BadClipError, match="has 3 channels; the feature extractor takes 1 or 2 channels"):
        audio_features(
            str(tmp_path / "2.flac"), data, bridle_hf.BridleFeatureExtractor(num_channels=2, num_mel_bins=16)
        )
