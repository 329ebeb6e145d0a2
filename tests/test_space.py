"""The Gradio app, in parts and clicked through in a real browser."""

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from video_files import write_video

import bridle_hf

gradio = pytest.importorskip("gradio", reason="the extra `space` is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TONES = (300, 900, 2000, 5000)


def tone(hertz, seconds=0.7):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model/, classifier/ and clips/, one tone each."""
    folder = tmp_path_factory.mktemp("space")
    torch.manual_seed(0)
    config = bridle_hf.BridleConfig(
        input_size=(64, 128), hidden_size=24, num_hidden_layers=1, num_attention_heads=2, decoder_hidden_size=24,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, estimator_num_hidden_layers=1,
        id2label=dict(enumerate(("dog", "rain", "bell"))), quantizer_config={"codebook_size": 8, "codebook_dim": 8},
    )  # fmt: skip
    bridle_hf.BridleForPreTraining(config).save_pretrained(folder / "model")
    bridle_hf.BridleFeatureExtractor(max_length=64).save_pretrained(folder / "model")
    bridle_hf.BridleForAudioClassification(config).save_pretrained(folder / "classifier")
    bridle_hf.BridleFeatureExtractor(max_length=32).save_pretrained(folder / "classifier")
    (folder / "clips").mkdir()
    for hertz in TONES:
        soundfile.write(folder / "clips" / f"{hertz}.wav", tone(hertz), 16000)
    (folder / "clips" / "notes.txt").write_text("no sound")
    (folder / "clips" / "damaged.wav").write_text("no sound")
    soundfile.write(folder / "clips" / "LOUD.FLAC", 3 * tone(930), 16000)
    soundfile.write(folder / "clips" / ".hidden.wav", tone(930), 16000)
    soundfile.write(folder / "question.wav", tone(930), 16000)
    soundfile.write(folder / "short.wav", tone(930, 0.01), 16000)
    return folder


@pytest.fixture(scope="module")
def listener(folder, repository):
    app = runpy.run_path(str(repository / "examples" / "space" / "app.py"), run_name="app")
    return app["Listener"](folder / "model", folder / "classifier", folder / "clips")


def test_a_sound_has_a_picture_classes_and_neighbours(listener, folder):
    picture, classes, *nearest = listener(str(folder / "question.wav"))
    assert "<svg" in picture and "codebook 4:" in picture
    assert set(classes) == {"dog", "rain", "bell"} and sum(classes.values()) == pytest.approx(1)
    paths, cosines = zip(*nearest, strict=True)
    assert len(set(paths)) == 3 and paths[0].endswith("900.wav")
    assert 1 >= cosines[0] >= cosines[1] >= cosines[2] >= -1


def test_neighbours_are_called_by_their_files(listener, folder):
    *_, first, second, third = listener.shown(str(folder / "question.wav"))
    assert re.fullmatch(r"Neighbour 1: 900.wav \((0\.\d\d|1.00) alike\)", first.label)
    assert [each.label for each in listener.shown(None)[2:]] == ["Neighbour 1", "Neighbour 2", "Neighbour 3"]


def test_the_help_needs_no_gradio(repository):
    app = repository / "examples" / "space" / "app.py"
    code = "import runpy, sys; sys.modules['gradio'] = None; sys.argv[1:] = [{}]; "
    code += f"runpy.run_path({str(app)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code.format("'--help'")], capture_output=True, text=True)
    assert done.returncode == 0 and "--classifier" in done.stdout
    done = subprocess.run([sys.executable, "-c", code.format("")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith('gradio is missing; pip install "bridle-hf[space]"\n')


def test_nothing_and_what_is_no_sound(listener, folder):
    write_video(folder / "film.mp4", frames=np.zeros((6, 48, 64, 3), np.uint8))
    Image.new("RGB", (9000, 2000)).save(folder / "picture.png")
    assert listener(None) == ("", None, *[(None, None)] * 3)
    for name, message in (
        ("short.wav", "at least"),
        ("clips/notes.txt", "cannot be decoded"),
        ("film.mp4", "holds no sound, only video"),
        ("picture.png", "holds no sound, only video"),
        ("clips", "is no regular file"),
    ):
        with pytest.raises(gradio.Error, match=message):
            listener(str(folder / name))


def test_of_a_long_sound_the_beginning_is_looked_at_and_that_is_said(listener, folder, monkeypatch):
    window = 0.64 + 0.015  # seconds that 64 frames see
    for name, seconds, said in (("longer", 0.8, True), ("exact", window, False)):
        soundfile.write(folder / f"{name}.wav", tone(930, seconds).astype(np.float32), 16000)
        picture, classes, *_ = listener(str(folder / f"{name}.wav"))
        assert ("these are its first 0.655 seconds" in picture) == said
    noise = np.random.default_rng(0).normal(size=16000 * 60) / 9
    samples = np.concatenate([tone(930, 0.8).astype(np.float32), noise.astype(np.float32)])
    soundfile.write(folder / "minute.wav", samples, 16000)
    monkeypatch.setattr("bridle_hf.data.audio_decoding.MAX_SAMPLES", 16000)  # no more is decoded
    assert listener(str(folder / "minute.wav"))[1] == listener(str(folder / "longer.wav"))[1]


def test_forms_of_sound(listener, folder):
    rng = np.random.default_rng(0)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "stereo.ogg", rng.normal(size=(44100, 2)) / 9, 44100)
    soundfile.write(folder / "slow.mp3", rng.normal(size=8000) / 9, 8000)
    for name in ("silent.wav", "stereo.ogg", "slow.mp3"):
        picture, classes, *nearest = listener(str(folder / name))
        assert "<svg" in picture and sum(classes.values()) == pytest.approx(1) and (None, None) not in nearest


@pytest.mark.parametrize("changes", [{"num_channels": 2}, {"dtype": torch.bfloat16}])
def test_models_of_two_channels_and_of_half_precision(changes, listener, folder, tmp_path):
    config = bridle_hf.BridleConfig.from_pretrained(folder / "model", **changes)
    bridle_hf.BridleForPreTraining(config).to(config.dtype).save_pretrained(tmp_path)
    bridle_hf.BridleFeatureExtractor(max_length=64, num_channels=config.num_channels).save_pretrained(tmp_path)
    soundfile.write(tmp_path / "stereo.wav", np.random.default_rng(0).normal(size=(16000, 2)) / 9, 16000)
    picture, _, nearest, *_ = type(listener)(tmp_path, None, folder / "clips")(str(tmp_path / "stereo.wav"))
    assert "<svg" in picture and nearest[0]


def test_the_classifier_has_a_window_of_its_own(listener, folder):
    extractor = bridle_hf.BridleFeatureExtractor(max_length=32)
    inputs = extractor(tone(930).astype(np.float32), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = listener.classifier(**inputs).logits.softmax(-1)[0]
    soundfile.write(folder / "float.wav", tone(930), 16000, subtype="FLOAT")
    found = list(listener(str(folder / "float.wav"))[1].values())
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)


def test_sounds_to_compare_with(listener, folder):
    names = [path.rpartition("/")[2] for path in listener.clips]
    assert names == sorted(["LOUD.FLAC", *(f"{hertz}.wav" for hertz in TONES)])
    assert len(listener.features) == len(names)
    for clips in ("question.wav", "nowhere"):
        with pytest.raises(ValueError, match="--clips is .*; it takes a folder of sounds"):
            type(listener)(folder / "model", None, folder / clips)


def test_a_model_of_pictures_is_refused(listener, tmp_path):
    sizes = {"input_size": (16, 16), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = bridle_hf.BridleConfig(modality="image", estimator_num_hidden_layers=1, **sizes)
    bridle_hf.BridleForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--model is .*, a model of image data; it takes one of sounds"):
        type(listener)(tmp_path)


def test_models_of_other_kinds_are_refused(listener, folder):
    for model, classifier, message in (
        ("classifier", None, "--model is .*, which holds no tokenizer"),
        ("model", "model", "--classifier is .*, which holds no classifier"),
    ):
        with pytest.raises(ValueError, match=message):
            type(listener)(folder / model, classifier and folder / classifier)


@pytest.fixture(scope="module")
def address(folder, repository):
    """Where the started app answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = {f"--{name}": str(folder / name) for name in ("model", "classifier", "clips")} | {"--port": str(port)}
    command = [sys.executable, "examples/space/app.py", *(word for pair in parts.items() for word in pair)]
    environment = os.environ | {"PYTHONPATH": str(repository / "src"), "GRADIO_ANALYTICS_ENABLED": "False"}
    url = f"http://127.0.0.1:{port}"
    app = subprocess.Popen(command, cwd=repository, env=environment)
    try:
        for _ in range(240):
            assert app.poll() is None, "the app stopped"
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        app.terminate()
        app.wait(20)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_the_app_can_be_clicked_through(address, folder):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(str(folder / "question.wav"))
        page.wait_for_selector("#codes svg", timeout=60_000)
        for number in (1, 2, 3):
            page.get_by_test_id(re.compile(f"^waveform-Neighbour {number}: ")).wait_for(timeout=30_000)
        assert page.get_by_test_id("rain-confidence-set").count() == 1
        assert page.locator("#codes svg text").count() > 32  # a code on every patch
        assert not errors
        browser.close()
