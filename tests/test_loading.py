"""`bridle_hf.load`: files and arrays to features, codes and labels, and `bridle classify` over the same."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from picture_files import counting_video, picture, png
from PIL import Image
from tiny import tiny_config

import bridle_hf
from bridle_hf.cli.main import main as bridle
from bridle_hf.data import build_processor

RATE = 16000
LABELS = {0: "dog", 1: "rain", 2: "bell"}


def save(folder, name, modality="audio", **options):
    torch.manual_seed(0)
    sizes = {"audio": (48, 64), "image": (32, 32), "video": (4, 32, 32)}
    config = tiny_config(modality, input_size=sizes[modality], decoder_type="plain", **options)
    model = getattr(bridle_hf, name)(config).eval()
    processor = build_processor(config, **({"mean": -7.0, "std": 4.0} if modality == "audio" else {}))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *save(folder / "final", "BridleForPreTraining")[1:]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    made = {}
    for kind in ("single_label_classification", "multi_label_classification"):
        folder, model, processor = save(
            tmp_path_factory.mktemp(kind), "BridleForAudioClassification", problem_type=kind, id2label=LABELS
        )
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor([0.3, 0.2, -4.0]))
        model.save_pretrained(folder)
        made[kind.partition("_")[0]] = folder, model, processor
    return made


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Short, long (1.5 s, three windows) and of another rate and two channels; the second is called as a split is."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    waves = {
        "a.wav": (rng.normal(size=6000) / 10, RATE),
        "test_b.flac": (rng.normal(size=24000) / 10, RATE),
        "c.wav": (rng.normal(size=(5000, 2)) / 10, 11025),
    }
    for name, (samples, rate) in waves.items():
        soundfile.write(folder / name, samples, rate)
    return folder, {name: soundfile.read(folder / name, dtype="float32")[0] for name in waves}


def windows_of(model, extractor, samples, starts=None):
    """Tokens of the patches that are real (n, D) of one window, or of several that begin at these frames."""
    frames = extractor(samples, sampling_rate=RATE, padding=False, truncation=False)["input_values"][0]
    for start in [0] if starts is None else starts:
        part = np.zeros((48, 64), np.float32)
        piece = frames[start : start + 48]
        part[: len(piece)] = piece
        mask = (np.arange(48) < len(piece)).astype(np.int64)
        yield torch.as_tensor(part)[None], torch.as_tensor(mask)[None], -(-len(piece) // 16)


def test_a_short_file_gives_the_mean_of_its_real_patches(run, clips):
    folder, model, extractor = run
    ((values, mask, rows),) = windows_of(model, extractor, clips[1]["a.wav"])
    with torch.no_grad():
        tokens = model.bridle(values, attention_mask=mask).last_hidden_state[0, 1:].view(3, 4, -1)[:rows]
        codes = model.tokenizer.encode(values, mask).view(3, 4, 2)[:rows]
    loaded = bridle_hf.load(folder)
    found = loaded.embed(clips[0] / "a.wav")
    np.testing.assert_allclose(found, tokens.flatten(0, 1).mean(0)[None], rtol=0, atol=1e-5)
    (frames,) = loaded.embed([str(clips[0] / "a.wav")], pooling="frames")
    np.testing.assert_allclose(frames, tokens.mean(1), rtol=0, atol=1e-5)
    (found,) = loaded.tokens(clips[0] / "a.wav")
    np.testing.assert_array_equal(found, codes)


def test_a_long_file_is_embedded_in_windows_and_layers_are_stacked(run, clips):
    folder, model, extractor = run
    samples = clips[1]["test_b.flac"]
    inputs = extractor(samples, sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt")
    with torch.no_grad():
        expected = model.bridle.extract_features(**inputs, pooling="mean_std", layers=[0, -1], overlap=0.5).features
        first = model.bridle.extract_features(**extractor(samples, sampling_rate=RATE, return_tensors="pt"))
    loaded = bridle_hf.load(folder / "final")
    found = loaded.embed([clips[0] / "test_b.flac"], "mean_std", [0, -1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert loaded.embed(clips[0] / "test_b.flac", layers="all").shape == (1, 3, 24)
    (frames,) = loaded.embed(clips[0] / "test_b.flac", "frames", windows="first")
    np.testing.assert_allclose(frames, first.features[0], rtol=0, atol=1e-5)
    (codes,) = loaded.tokens(clips[0] / "test_b.flac")
    assert codes.shape == (-(-inputs["input_values"].shape[1] // 16), 4, 2)


def test_codes_are_decoded_window_by_window(run, clips):
    """`decode` splits the codes of a long sound into the windows that `tokens` encoded."""
    loaded = bridle_hf.load(run[0])
    (codes,) = loaded.tokens(clips[0] / "test_b.flac")
    tokenizer, (rows, bands) = loaded.tokenizer, loaded.tokenizer.config.grid
    assert len(codes) > rows
    found = loaded.decode(codes)
    assert found.shape == (len(codes), bands, loaded.encoder.config.hidden_size) and found.dtype == np.float32
    with torch.no_grad():
        first, last = (
            tokenizer.decode(torch.tensor(part).reshape(1, rows * bands, 2))[0].reshape(rows, bands, -1)
            for part in (codes[:rows], codes[-rows:])
        )
    behind = len(codes) % rows or rows  # patches that the last window alone has
    np.testing.assert_allclose(found[:rows], first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[-behind:], last[-behind:], rtol=0, atol=1e-6)
    for given in (codes.tolist(), codes.astype(np.uint16)):
        np.testing.assert_array_equal(loaded.decode(given), found)
    for bad in (codes[:0], codes[:, : bands // 2], codes[0]):
        with pytest.raises(ValueError, match=r"^codes is \(.*; the model takes \(\*grid, codebooks\), its grid being"):
            loaded.decode(bad)
    for bad in (codes + 0.7, codes > 3, codes.astype(str), np.full(codes.shape, np.nan)):
        with pytest.raises(ValueError, match="^codes is an array of .*; it takes integers"):
            loaded.decode(bad)
    (again,) = loaded.decode([torch.tensor(codes)])
    np.testing.assert_array_equal(again, found)
    coarse = loaded.decode(codes[..., :1])
    assert coarse.shape == found.shape and not np.allclose(coarse, found)


def test_a_batch_in_one_array_is_not_taken_for_channels(run):
    loaded, batch = bridle_hf.load(run[0]), np.random.default_rng(0).normal(0, 0.1, (8, 16000)).astype(np.float32)
    with pytest.raises(ValueError, match=r"clips has an array \(8, 16000\): several sounds are a list of arrays"):
        loaded.embed(batch, sampling_rate=16000)
    assert len(loaded.embed(list(batch), sampling_rate=16000)) == 8
    assert len(loaded.embed({"array": batch, "sampling_rate": 16000})) == 1


def test_arrays_are_their_files_and_a_folder_is_all_of_them(run, clips):
    loaded, (folder, waves) = bridle_hf.load(run[0]), clips
    names = ["a.wav", "c.wav", "test_b.flac"]
    found = loaded.embed([folder / name for name in names])
    assert found.shape == (3, 24) and found.dtype == np.float32
    np.testing.assert_allclose(loaded.embed(folder), found, rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.embed(waves["a.wav"], sampling_rate=RATE)[0], found[0], rtol=0, atol=1e-6)
    other = {"array": waves["c.wav"], "sampling_rate": 11025}
    mixed = loaded.embed([torch.tensor(waves["a.wav"]), other], sampling_rate=RATE)
    np.testing.assert_allclose(mixed, found[:2], rtol=0, atol=1e-6)


def test_what_cannot_be_used_is_named(run, clips, tmp_path):
    with pytest.raises(TypeError, match="source is None; it takes a folder or the id of a model"):
        bridle_hf.load(None)
    loaded = bridle_hf.load(run[0])
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    for name, message in (("bad.wav", "cannot be decoded"), ("none.wav", "No such file")):
        with pytest.raises(ValueError, match=rf"{name} \(row 1\) cannot be used: .*{message}.*Leave it out"):
            loaded.embed([clips[0] / "a.wav", tmp_path / name])
    with pytest.raises(ValueError, match="sampling_rate is missing; arrays of sounds take it, in Hz"):
        loaded.embed(np.zeros(16000))
    with pytest.raises(ValueError, match="windows is 'last'; it takes 'all' or 'first'"):
        loaded.embed(clips[0], windows="last")
    for given, message in (
        ({"layers": 1.0}, "layers: got 1.0"),
        ({"layers": "last"}, "layers: got 'last'"),
        ({"batch_size": 0}, "batch_size is 0; it takes an integer from 1 on"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded.embed(clips[0], **given)
    with pytest.raises(ValueError, match="clips is a list of numbers; one sound is an array of them"):
        loaded.embed([0.1, 0.2], sampling_rate=RATE)
    with pytest.raises(ValueError, match="BridleFeatureExtractor has no setting 'padshort'"):
        bridle_hf.load(run[0], padshort=True)
    with pytest.raises(ValueError, match="clips is an empty list"):
        loaded.tokens([])
    with pytest.raises(TypeError, match="clips is a int; it takes a file, an array"):
        loaded.embed(5)
    with pytest.raises(ValueError, match="BridleForPreTraining.* is no classifier; labels take a fine-tuned one"):
        loaded.classify(clips[0])
    with pytest.raises(ValueError, match="source is .*, a folder with neither .* it takes a pretraining model"):
        bridle_hf.load(tmp_path)
    with pytest.raises(ValueError, match="a folder with neither a config.json nor a final/; it holds final"):
        bridle_hf.load(two(tmp_path, run[0] / "final"))


def two(folder, model):
    """A folder with two folders of models in it, none called final."""
    for name in ("fold-1", "final.old-1"):
        (folder / "run" / name).mkdir(parents=True)
        (folder / "run" / name / "config.json").write_text((model / "config.json").read_text())
    return folder / "run"


def test_labels_are_the_likeliest_or_those_above_the_threshold(classifiers, clips):
    for kind, (folder, model, extractor) in classifiers.items():
        loaded = bridle_hf.load(folder)
        with pytest.raises(ValueError, match="holds no tokenizer; codes take a pretraining model"):
            loaded.tokens(clips[0] / "a.wav")
        samples = clips[1]["test_b.flac"]
        frames = extractor(samples, sampling_rate=RATE, padding=False, truncation=False)["input_values"][0]
        starts = [*range(0, len(frames) - 48, 48), -(-(len(frames) - 48) // 16) * 16]
        with torch.no_grad():
            parts = [
                (model(v, attention_mask=m).logits[0], n) for v, m, n in windows_of(model, extractor, samples, starts)
            ]
        logits = sum(part * n for part, n in parts) / sum(n for _, n in parts)
        scores = logits.sigmoid() if kind == "multi" else logits.softmax(0)
        (found,) = loaded.classify(clips[0] / "test_b.flac")
        assert found["name"] == str(clips[0] / "test_b.flac")
        assert found["scores"] == pytest.approx(dict(zip(LABELS.values(), scores.tolist(), strict=True)), abs=1e-6)
        assert list(found["scores"].values()) == sorted(found["scores"].values(), reverse=True)
        likely = [LABELS[i] for i in scores.argsort(descending=True).tolist() if scores[i] > 0.5]
        assert found["labels"] == (likely if kind == "multi" else [LABELS[int(scores.argmax())]])
        assert loaded.classify(clips[0] / "test_b.flac", threshold=0.999)[0]["labels"] == []
        (first,) = loaded.classify(clips[0] / "test_b.flac", windows="first")
        with torch.no_grad():
            logits = model(**extractor(samples, sampling_rate=RATE, return_tensors="pt")).logits[0]
        scores = logits.sigmoid() if kind == "multi" else logits.softmax(0)
        assert first["scores"] == pytest.approx(dict(zip(LABELS.values(), scores.tolist(), strict=True)), abs=1e-6)


def test_features_of_a_classifier_are_those_that_the_command_writes(classifiers, clips):
    folder, model, extractor = classifiers["single"]
    encoder = bridle_hf.BridleModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = encoder.extract_features(
            **extractor(clips[1]["a.wav"], sampling_rate=RATE, return_tensors="pt"), pooling="mean"
        ).features
    np.testing.assert_allclose(bridle_hf.load(folder).embed(clips[0] / "a.wav"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_command_writes_a_row_for_every_file(classifiers, clips, kind, tmp_path, capsys):
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("a.wav", "test_b.flac"):
        (folder / name.replace("test_", "")).write_bytes((clips[0] / name).read_bytes())
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    output = tmp_path / "predictions.csv"
    bridle(["classify", "--model", str(classifiers[kind][0]), "--dataset", str(folder), "--output", str(output)])
    assert json.loads(capsys.readouterr().out) == {"clips": 2, "unusable": 1, "output": str(output)}
    rows = list(csv.DictReader(output.open()))
    assert list(rows[0]) == ["name", "prediction", "score", "score_dog", "score_rain", "score_bell", "problem"]
    found = bridle_hf.load(classifiers[kind][0]).classify([folder / "a.wav", folder / "b.flac"])
    for row, each in zip(rows, found, strict=False):
        assert row["name"] == each["name"] and row["problem"] == ""
        assert float(row["score_rain"]) == pytest.approx(each["scores"]["rain"], abs=1e-6)
        labels = json.loads(row["prediction"]) if kind == "multi" else [row["prediction"]]
        assert labels == each["labels"]
    assert rows[2]["name"].endswith("broken.wav") and rows[2]["problem"] and rows[2]["prediction"] == ""


def test_pictures_and_videos_too(tmp_path):
    folder, model, processor = save(tmp_path / "image", "BridleForPreTraining", "image")
    pixels = picture(3, 40)
    (tmp_path / "a.png").write_bytes(png(pixels))
    loaded = bridle_hf.load(folder)
    with torch.no_grad():
        inputs = processor(Image.fromarray(pixels), return_tensors="pt")
        expected = model.bridle(**inputs).last_hidden_state[:, 1:].mean(1)
    for given in (tmp_path / "a.png", pixels, Image.fromarray(pixels)):
        np.testing.assert_allclose(loaded.embed(given), expected, rtol=0, atol=1e-5)
    assert loaded.tokens(pixels)[0].shape == (2, 2, 2)
    assert loaded.decode(loaded.tokens(pixels))[0].shape == (2, 2, loaded.encoder.config.hidden_size)

    folder, *_ = save(tmp_path / "video", "BridleForVideoClassification", "video", id2label=LABELS)
    video = counting_video(tmp_path / "a.mp4")
    (found,) = bridle_hf.load(folder).classify(video)
    assert sum(found["scores"].values()) == pytest.approx(1) and found["labels"] == [next(iter(found["scores"]))]


def test_what_reads_and_trains_is_imported_when_it_is_asked_for():
    """Without the extra `train`, one sentence says so."""
    program = """
import sys
sys.modules.update(dict.fromkeys(("datasets", "accelerate", "soundfile", "sklearn", "torchdata")))
import bridle_hf
assert not [name for name in sys.modules if name.startswith(("bridle_hf.data", "bridle_hf.training"))]
assert {"load", "pretrain", "BridleTrainerCallback"} <= set(dir(bridle_hf))
for name in ("load", "pretrain"):
    try:
        getattr(bridle_hf, name)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, name in zip(done.stdout.splitlines(), ("load", "pretrain"), strict=True):
        assert f'is not installed; bridle_hf.{name} needs it: pip install "bridle-hf[train]"' in line


def test_clips_of_one_name_are_told_apart(classifiers, clips, tmp_path):
    sounds = [{"bytes": (clips[0] / name).read_bytes(), "path": "audio.wav"} for name in ("a.wav", "test_b.flac")] * 2
    found = bridle_hf.load(classifiers["single"][0]).classify(sounds)
    assert [each["name"] for each in found] == ["audio.wav", *(f"audio.wav (row {row})" for row in (1, 2, 3))]


def test_a_model_of_regression_gives_no_classes(classifiers, clips, tmp_path, capsys):
    folder = shutil.copytree(classifiers["single"][0], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "regression"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the model is one of regression"):
        bridle_hf.load(folder).classify(clips[0] / "a.wav")
    with pytest.raises(SystemExit, match="2"):
        bridle(["classify", "--model", str(folder), "--dataset", str(clips[0])])
    assert "the model is one of regression" in capsys.readouterr().err
