"""transformers' pipelines on files and arrays; those for classification of images and videos are tested with them."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import soundfile
import soxr
import torch
from PIL import Image
from sound_files import Decoder
from transformers import pipeline

import bridle_hf
from bridle_hf.data import build_processor, decode_audio, load_processor
from bridle_hf.hub import release

SIZES = {"audio": (64, 32), "image": (32, 32), "video": (4, 32, 32)}


def tiny(modality, name, **fields):
    torch.manual_seed(0)
    config = bridle_hf.BridleConfig(
        modality=modality, input_size=SIZES[modality], hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, **fields,
    )  # fmt: skip
    return getattr(bridle_hf, name)(config).eval(), build_processor(config)


def save(folder, *made):
    for part in made:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    model, extractor = tiny("audio", "BridleModel")
    return save(tmp_path_factory.mktemp("encoder"), model, extractor), model, extractor


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    labels = dict(enumerate(("dog", "rain", "bell")))
    fields = {"problem_type": "multi_label_classification", "id2label": labels}
    model, extractor = tiny("audio", "BridleForAudioClassification", **fields)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([5.0, 4.0, -4.0]))
    return save(tmp_path_factory.mktemp("tagger"), model, extractor), model, extractor


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).normal(size=6000).astype(np.float32) / 10  # 36 frames: 3 patches of the 4


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """The program that transformers reads audio files with, on the path."""
    binary = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(binary)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_tagging_gives_a_score_a_label(tagger, clip):
    folder, model, extractor = tagger
    with torch.no_grad():
        logits = model(**extractor(clip, sampling_rate=16000, return_tensors="pt")).logits[0]
    got = pipeline("audio-classification", model=folder)(clip, top_k=None)
    assert [each["label"] for each in got] == ["dog", "rain", "bell"]
    assert [each["score"] for each in got] == pytest.approx(logits.sigmoid().tolist())
    assert sum(each["score"] for each in got) > 1.5


def test_tagging_a_file_is_tagging_its_samples(tagger, clip, ffmpeg, tmp_path):
    classify = pipeline("audio-classification", model=tagger[0])
    soundfile.write(tmp_path / "clip.wav", clip, 16000, subtype="FLOAT")
    expected = {each["label"]: each["score"] for each in classify(clip)}
    got = {each["label"]: each["score"] for each in classify(str(tmp_path / "clip.wav"))}
    assert got == pytest.approx(expected, abs=1e-5)


def test_features_of_a_sound_are_the_encoder_s(encoder, clip):
    folder, model, extractor = encoder
    inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    extract = pipeline("audio-feature-extraction", model=folder)
    got = extract(clip, return_tensors=True)
    assert got.shape == (1, 1 + 3 * 2, 24)  # the fourth column of patches is padding
    torch.testing.assert_close(got, expected.last_hidden_state[:, : 1 + 3 * 2])
    assert extract({"array": clip, "sampling_rate": 16000}, pool=True) == expected.pooler_output.tolist()
    whole = np.tile(clip, 3)
    several = extract([clip, whole], batch_size=2, return_tensors=True)
    assert [each.shape[1] for each in several] == [7, 15]  # the second in two windows
    first = extract([clip, whole], batch_size=2, return_tensors=True, windows="first")
    assert [each.shape[1] for each in first] == [7, 9]
    with pytest.raises(ValueError, match="windows is 'last'; it takes 'all' or 'first'"):
        extract(clip, windows="last")
    torch.testing.assert_close(several[0], got, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["raw", "array"])
def test_samples_come_by_either_name_and_at_any_rate(name, encoder, clip):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    expected = extract(clip, return_tensors=True)
    given = {name: clip, "sampling_rate": 16000, "path": None}
    torch.testing.assert_close(extract(given, return_tensors=True), expected)
    assert sorted(given) == sorted([name, "path", "sampling_rate"])  # left as it was
    fast = np.tile(clip, 3)
    expected = extract(soxr.resample(fast, 44100, 16000), pool=True)
    assert np.shape(expected) == (1, 24)
    samples = (fast * 32768).round().astype(np.int16)
    for same, tolerance in (
        (fast, 1e-6),
        (torch.from_numpy(fast), 1e-6),
        (fast.astype(np.float64), 1e-5),
        (fast[None, ::-1][:, ::-1], 1e-6),
        (samples, 0.05),
    ):
        got = extract({name: same, "sampling_rate": 44100}, pool=True)
        np.testing.assert_allclose(got, expected, atol=tolerance)


def test_channels_are_averaged_and_never_taken_for_clips(encoder, clip):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    stereo = np.stack([clip, -0.5 * clip])
    expected = extract(clip / 4, return_tensors=True)
    samples = (stereo * 2**15).astype(np.int16)
    forms = [stereo, stereo.T, torch.from_numpy(stereo), Decoder(stereo, 16000), np.concatenate([stereo] * 3)]
    forms += [{"array": stereo, "sampling_rate": 16000}, {"raw": stereo.T, "sampling_rate": 16000, "path": "a.wav"}]
    for given, tolerance in [*((form, 1e-4) for form in forms), (samples, 0.2)]:
        torch.testing.assert_close(extract(given, return_tensors=True), expected, atol=tolerance, rtol=1e-3)
    faster = extract(Decoder(np.stack([np.tile(clip, 3)] * 2), 44100), return_tensors=True)
    assert torch.equal(faster, extract({"raw": np.tile(clip, 3), "sampling_rate": 44100}, return_tensors=True))


@pytest.mark.parametrize("rate", [1000, 11127, 22254, 24414, 44099, 44101, 48828, 97656, 195312, 384000])
def test_any_rate_is_resampled_as_files_are(rate, encoder):
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(rate // 2) / rate).astype(np.float32)
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    decoded = decode_audio({"array": tone, "sampling_rate": rate}, 16000)
    assert abs(len(decoded) - 8000) <= 1
    assert torch.equal(
        extract({"raw": tone, "sampling_rate": rate}, return_tensors=True), extract(decoded, return_tensors=True)
    )


def test_what_would_be_too_large_once_resampled_is_refused(encoder, clip, monkeypatch):
    monkeypatch.setattr(bridle_hf.feature_extraction_bridle, "MAX_SAMPLES", 50_000)
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    for rate in (1000, "16000", float("nan")):
        with pytest.raises(ValueError, match=f"sampling_rate is {rate!r}; .* resample them first"):
            extract({"raw": clip, "sampling_rate": rate})


def test_a_list_of_numbers_is_named(encoder, clip):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    with pytest.raises(
        ValueError, match="inputs is a list of numbers; a list holds clips here: give one clip as an array"
    ):
        extract(clip.tolist())
    for given in ({"audio": clip}, (clip, 16000), object()):
        with pytest.raises(ValueError, match="^inputs "):
            extract(given)


def test_an_extractor_with_other_mel_bins_than_the_model_is_refused(encoder):
    wide = bridle_hf.BridleFeatureExtractor(max_length=64)
    with pytest.raises(ValueError, match="num_mel_bins of the feature extractor is 128; the model takes 32"):
        pipeline("audio-feature-extraction", model=encoder[0], feature_extractor=wide)
    for build in (
        lambda: load_processor(encoder[0], num_mel_bins=64),
        lambda: build_processor(encoder[1].config, num_mel_bins=64),
    ):
        with pytest.raises(ValueError, match="num_mel_bins of the processor is 64; the model takes 32"):
            build()


def test_a_dict_without_samples_or_rate_is_named(encoder, clip):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    for inputs in ({"array": clip}, {"sampling_rate": 16000, "samples": clip}):
        with pytest.raises(
            ValueError, match=r"inputs has the keys \[.*; a dict takes 'raw' or 'array', and 'sampling_r"
        ):
            extract(inputs)


@pytest.mark.parametrize("rate", [0, -16000, 5, 10**9, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_named(rate, encoder, clip):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    with pytest.raises(ValueError, match=f"sampling_rate is {rate}.*resample them first"):
        extract({"raw": clip, "sampling_rate": rate})


def test_samples_that_cannot_be_resampled_are_named(encoder, clip):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    for samples, message in (
        (np.stack([clip] * 65), "shape .65, 6000.; a clip is mono, .*: channels before or after"),
        (clip[None, None], "shape .1, 1, 6000.; a clip is mono"),
        (clip.astype(np.int32), "dtype int32"),
        (clip[:0], "is empty"),
        (clip[:1], "is empty"),  # at 16 kHz
        (np.full(44100, np.nan), "NaN or inf"),
    ):
        with pytest.raises(ValueError, match=message):
            extract({"raw": samples, "sampling_rate": 44100})


def test_without_soxr_another_rate_is_named(encoder, clip, monkeypatch):
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    monkeypatch.setattr(bridle_hf.pipeline_bridle, "soxr", None)
    with pytest.raises(ValueError, match="sampling_rate is 8000.*resample them first"):
        extract({"raw": clip, "sampling_rate": 8000})


def test_features_of_a_file_are_those_of_its_samples(encoder, clip, ffmpeg, tmp_path):
    soundfile.write(tmp_path / "clip.wav", clip, 16000, subtype="FLOAT")
    extract = pipeline("audio-feature-extraction", model=encoder[0])
    expected = extract(clip, return_tensors=True)
    torch.testing.assert_close(extract(str(tmp_path / "clip.wav"), return_tensors=True), expected, atol=1e-4, rtol=1e-3)
    data = (tmp_path / "clip.wav").read_bytes()
    path = tmp_path / "clip.wav"
    with socket_server(data) as address:
        files = [data, path, {"bytes": data, "path": None}, {"path": str(path)}, {"bytes": None, "path": path}]
        for given in [*files, f"{address}/clip.wav"]:
            torch.testing.assert_close(extract(given, return_tensors=True), expected, atol=1e-4, rtol=1e-3)


@contextmanager
def socket_server(content):
    """The address of a server that answers every request with these bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *said):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_features_of_images_and_videos(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(256, size=(40, 48, 3), dtype=np.uint8)
    frames = rng.integers(256, size=(4, 40, 48, 3), dtype=np.uint8)
    for modality, given in (("image", Image.fromarray(picture)), ("video", frames)):
        model, processor = tiny(modality, "BridleModel")
        extract = pipeline(f"{modality}-feature-extraction", model=save(tmp_path / modality, model, processor))
        more = {"do_sample_frames": False} if modality == "video" else {}
        with torch.no_grad():
            expected = model(**processor(given, return_tensors="pt", **more))
        got = extract(given, return_tensors=True)
        torch.testing.assert_close(got, expected.last_hidden_state)
        torch.testing.assert_close(torch.tensor(extract(given, pool=True)), expected.pooler_output)


def test_a_released_encoder_knows_its_task_without_the_package(clip, repository, tmp_path):
    folder = save(tmp_path / "model", *tiny("audio", "BridleModel"))
    release.stage(folder, tmp_path / "release", "org/x", repository / "model_cards" / "bridle-audio.md")
    program = (
        "import sys; sys.modules['bridle_hf'] = None; import numpy; from transformers import pipeline;"
        "extract = pipeline(model=sys.argv[1], trust_remote_code=True);"
        "print(extract.task, len(extract(numpy.load(sys.argv[2]))[0]))"
    )
    np.save(tmp_path / "clip.npy", clip)
    command = [sys.executable, "-I", "-c", program, str(tmp_path / "release"), str(tmp_path / "clip.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["audio-feature-extraction", "7"]
