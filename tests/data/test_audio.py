import io
import sys

import numpy as np
import pytest
import soundfile
import torch
from sound_files import encoded_with_av

from bridle_hf.data import BadClipError, DataArguments, decode_audio, media
from bridle_hf.data.audio import audio_features


def sine(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def encoded(waveform: np.ndarray, rate: int, form: str, **options) -> dict:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=form, **options)
    return {"bytes": buffer.getvalue(), "path": f"clip.{form.lower()}"}


def loudest(waveform: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return spectrum.argmax() * rate / len(waveform)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_common_formats(form):
    waveform = decode_audio(encoded(sine(440, 16000), 16000, form), 16000)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 16000) <= 1152 * (form == "MP3")
    assert loudest(waveform, 16000) == pytest.approx(440, abs=2)


def test_aac_goes_through_pyav():
    waveform = decode_audio(encoded_with_av(sine(440, 44100), 44100, "adts", "aac"), 16000)
    assert loudest(waveform, 16000) == pytest.approx(440, abs=2)
    assert np.abs(waveform[4000:12000]).max() == pytest.approx(0.5, abs=0.02)
    assert 0.95 < len(waveform) / 16000 < 1.1


def test_other_formats_without_pyav_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadClipError, match=r"pip install bridle-hf\[av\]"):
        decode_audio({"bytes": b"no audio at all", "path": None}, 16000)


def test_video_without_sound_is_a_bad_clip():
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        file.mux([*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode(None)])
    with pytest.raises(BadClipError, match="cannot be decoded"):
        decode_audio({"bytes": buffer.getvalue(), "path": "silent.mp4"}, 16000)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44101, 48000, 96000])
def test_resampling_keeps_frequency_amplitude_phase_and_length(rate):
    for hertz in (100, 440, 3000):
        waveform = decode_audio(encoded(sine(hertz, rate), rate, "WAV", subtype="FLOAT"), 16000)
        assert waveform.dtype == np.float32 and len(waveform) == 16000
        np.testing.assert_allclose(waveform[500:-500], sine(hertz, 16000)[500:-500], atol=2e-5)


def test_resampling_keeps_high_notes_and_folds_none_back():
    high = decode_audio(encoded(sine(7200, 44100), 44100, "WAV", subtype="FLOAT"), 16000)
    np.testing.assert_allclose(high[500:-500], sine(7200, 16000)[500:-500], atol=2e-3)
    above = decode_audio(encoded(sine(9000, 44100), 44100, "WAV", subtype="FLOAT"), 16000)
    assert np.abs(above[500:-500]).max() < 1e-5


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_agrees_with_torchaudio(rate, torchaudio):
    mixture = sum(sine(hertz, rate) / 4 for hertz in (100, 440, 997, 1500))
    expected = torchaudio.functional.resample(torch.from_numpy(mixture), rate, 16000).numpy()
    waveform = decode_audio(encoded(mixture, rate, "WAV", subtype="FLOAT"), 16000)
    assert len(waveform) == len(expected)
    np.testing.assert_allclose(waveform[500:-500], expected[500:-500], atol=1e-3)


def test_channels_are_averaged():
    stereo = np.stack([sine(440, 16000), 0 * sine(440, 16000)], axis=1)
    waveform = decode_audio(encoded(stereo, 16000, "WAV", subtype="FLOAT"), 16000)
    np.testing.assert_allclose(waveform, sine(440, 16000) / 2, atol=1e-6)


def test_path_alone(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(440, 16000), 16000, subtype="FLOAT")
    for audio in (str(tmp_path / "a.wav"), {"bytes": None, "path": str(tmp_path / "a.wav")}):
        np.testing.assert_allclose(decode_audio(audio, 16000), sine(440, 16000), atol=1e-6)


def test_truncated_wav_is_too_short():
    whole = encoded(sine(440, 16000), 16000, "WAV")
    whole["bytes"] = whole["bytes"][:200]
    with pytest.raises(BadClipError, match=r"too short: 0\.00. s, at least 0.2 s"):
        decode_audio(whole, 16000, min_seconds=0.2)


@pytest.mark.parametrize(
    "audio, message",
    [
        ({"bytes": b"no audio at all", "path": "a.wav"}, "cannot be decoded"),
        ({"bytes": b"", "path": "a.wav"}, "cannot be decoded"),
        ({"bytes": b"\x04", "path": "a.wav"}, "cannot be decoded"),  # FFmpeg takes it for sound at 0 Hz
        ({"bytes": None, "path": "missing/file.wav"}, "cannot be read.*file.wav"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        (None, "neither bytes nor a path"),
        (encoded(np.zeros(0), 16000, "WAV"), "too short"),
        (encoded(np.array([0.0, np.nan] * 4000), 16000, "WAV", subtype="FLOAT"), "NaN or infinite"),
    ],
)
def test_bad_clips_say_why(audio, message):
    with pytest.raises(BadClipError, match=message):
        decode_audio(audio, 16000)


def test_what_the_feature_extractor_refuses_is_a_bad_clip(extractor):
    with pytest.raises(BadClipError, match="samples"):
        audio_features(encoded(sine(440, 16000, seconds=0.05), 16000, "WAV"), DataArguments(min_seconds=0), extractor)


def test_features_are_neither_padded_nor_cut(extractor):
    features = audio_features(encoded(sine(440, 8000, seconds=0.8), 8000, "WAV"), DataArguments(), extractor)
    assert features.shape == (1 + (12800 - 400) // 160, 32)


def test_of_a_long_file_no_more_is_read_than_the_part(tmp_path, monkeypatch):
    long = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 60).astype("float32")
    soundfile.write(tmp_path / "long.wav", long, 16000)
    read = []

    class Counting(io.FileIO):
        def readinto(self, memory):
            read.append(super().readinto(memory))
            return read[-1]

    monkeypatch.setattr(media, "open", Counting, raising=False)
    part = decode_audio(str(tmp_path / "long.wav"), 16000, part_seconds=1.0, rng=np.random.default_rng(1))
    assert 0 < sum(read) < 200_000  # of 1.9 MB
    content = {"bytes": (tmp_path / "long.wav").read_bytes(), "path": None}
    again = decode_audio(content, 16000, part_seconds=1.0, rng=np.random.default_rng(1))
    assert len(part) == 16000 and np.array_equal(part, again)
