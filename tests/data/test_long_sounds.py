"""Long recordings block by block: the same features, codes and labels as of the whole, and little memory."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from sound_files import RATE, encoded_with_av, peak_memory
from tiny import tiny_config

from bridle_hf import BridleFeatureExtractor, BridleModel, BridleTokenizer
from bridle_hf.clip_features_bridle import window_starts
from bridle_hf.data import BadClipError, DataArguments, UnusableDataError, audio, audio_decoding, decode_audio
from bridle_hf.data.audio import LongSound, audio_features, streamed_features
from bridle_hf.data.audio_decoding import stream_audio
from bridle_hf.evaluation.features import write_features
from bridle_hf.evaluation.tokens import write_codes
from bridle_hf.evaluation.windows import windows_of

DATA = DataArguments(min_seconds=0.1)


def music(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    rng, time = np.random.default_rng(rate), np.arange(round(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * (200 + 150 * c) * time * (1 + time / 50)) for c in range(channels)]
    noise = 0.02 * rng.standard_normal((len(time), channels))
    return (np.stack(tones, axis=1) + noise + 0.05).astype(np.float32)


@pytest.fixture
def in_small_parts(monkeypatch):
    """Recordings of more than a second are long, and blocks and parts are small."""
    monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    monkeypatch.setattr(audio, "PART_SAMPLES", 8000)  # 50 frames
    monkeypatch.setattr(audio_decoding, "BLOCK_SAMPLES", 5000)


@pytest.fixture(params=["wav 44.1 kHz, two channels", "flac 16 kHz", "ogg 48 kHz", "mp3 22.05 kHz", "aac", "array"])
def recording(request, tmp_path):
    kind, path = request.param.split()[0], str(tmp_path / "long")
    if kind == "wav":
        soundfile.write(path + ".wav", music(7.3, 44100, channels=2), 44100, subtype="FLOAT")
    elif kind == "flac":
        soundfile.write(path + ".flac", music(7.3, RATE), RATE)
    elif kind == "ogg":
        soundfile.write(path + ".ogg", music(7.3, 48000), 48000)
    elif kind == "mp3":
        soundfile.write(path + ".mp3", music(7.3, 22050), 22050)
    elif kind == "aac":
        return encoded_with_av(music(7.3, 44100)[:, 0], 44100, "adts", "aac")
    else:
        return {"array": music(7.3, 44100, channels=2).T, "sampling_rate": 44100}
    return f"{path}.{kind}"


@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_parts_side_by_side_are_the_whole(recording, in_small_parts, num_channels):
    extractor = BridleFeatureExtractor(num_mel_bins=40, max_length=64, num_channels=num_channels)
    whole = audio_features(recording, DATA, extractor)
    found = streamed_features(recording, DATA, extractor)
    assert isinstance(found, LongSound)
    parts = list(found)
    assert len(parts) > 10 and {len(part) for part in parts[:-1]} == {50} and len(parts[-1]) >= 16
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    assert [len(part) for part in found] == [len(part) for part in parts]  # it can be read again
    channels = audio.channels_of(extractor)
    samples = np.concatenate(list(stream_audio(recording, RATE, channels=channels)))
    np.testing.assert_allclose(samples, decode_audio(recording, RATE, channels=channels), atol=1e-6)


def test_short_recordings_are_decoded_at_once(tmp_path, in_small_parts):
    soundfile.write(tmp_path / "a.wav", music(0.9, RATE), RATE)
    extractor = BridleFeatureExtractor(num_mel_bins=40, max_length=64)
    found = streamed_features(str(tmp_path / "a.wav"), DATA, extractor)
    np.testing.assert_array_equal(found, audio_features(str(tmp_path / "a.wav"), DATA, extractor))


@pytest.mark.parametrize("part", [7, 48, 1000])
@pytest.mark.parametrize("length", [5, 48, 49, 96, 100, 112, 411])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.99])
def test_windows_of_parts_are_those_of_the_whole(part, length, overlap):
    clip = np.arange(length)
    parts = [clip[start : start + part] for start in range(0, length, part)]
    found = [(start, piece.tolist()) for start, piece in windows_of(parts, 48, overlap, 16)]
    starts = window_starts(length, 48, overlap, 16)
    assert found == [(start, clip[start : start + 48].tolist()) for start in starts]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny encoder and tokenizer, and a folder with a short and two long sounds."""
    torch.manual_seed(0)
    config = tiny_config("audio", input_size=(48, 64), decoder_type="plain")
    extractor = BridleFeatureExtractor(num_mel_bins=64, max_length=48, mean=-7.0, std=4.0)
    folder = tmp_path_factory.mktemp("sounds")
    soundfile.write(folder / "a.wav", music(0.8, RATE), RATE)
    soundfile.write(folder / "b.flac", music(6.1, 44100), 44100)
    soundfile.write(folder / "c.flac", music(3.0, RATE), RATE)
    tokenizer = BridleTokenizer(config)
    tokenizer.quantizer.initialize_(torch.randn(400, config.quantizer_config.codebook_dim))
    return BridleModel(config), tokenizer, extractor, DataArguments(str(folder))


def rows(path):
    return pq.read_table(path).to_pylist()


def test_features_and_codes_are_those_of_whole_files(saved, tmp_path, monkeypatch, in_small_parts):
    model, tokenizer, extractor, data = saved
    monkeypatch.setattr(audio, "LONG_SECONDS", 10**9)
    for name in ("whole", "parts"):
        write_features(tmp_path / f"{name}.f", model, data, extractor, pooling="frames", batch_size=2)
        write_codes(tmp_path / f"{name}.c", tokenizer, data, extractor, batch_size=2)
        monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    for one, other in zip(rows(tmp_path / "whole.f"), rows(tmp_path / "parts.f"), strict=True):
        assert one["start"] == other["start"] and one["clip_name"] == other["clip_name"]
        np.testing.assert_allclose(one["last"], other["last"], atol=1e-4)
    for one, other in zip(rows(tmp_path / "whole.c"), rows(tmp_path / "parts.c"), strict=True):
        assert one["shape"] == other["shape"] and np.mean(np.array(one["codes"]) != other["codes"]) < 0.01


def test_of_a_recording_damaged_behind_its_beginning_nothing_is_written(saved, tmp_path, monkeypatch, in_small_parts):
    model, _, extractor, data = saved
    write_features(tmp_path / "whole.f", model, data, extractor)
    stream = audio.stream_audio

    def damaged(raw, *settings):
        for number, block in enumerate(stream(raw, *settings)):
            if "b.flac" in str(raw) and number == 20:
                raise BadClipError("cannot be decoded: made up")
            yield block

    monkeypatch.setattr(audio, "stream_audio", damaged)
    write_features(tmp_path / "parts.f", model, data, extractor)
    before, found = rows(tmp_path / "whole.f"), rows(tmp_path / "parts.f")
    assert [row["clip_name"] for row in found] == [before[0]["clip_name"], before[2]["clip_name"]]
    assert [row["last"] for row in found] == [before[0]["last"], before[2]["last"]]
    few = DataArguments(data.dataset, files="b.flac")
    with pytest.raises(UnusableDataError, match="no usable example .* 1 bad clips; the last one, .*b.flac, .*made up"):
        write_features(tmp_path / "none.f", model, few, extractor)


def test_an_hour_takes_the_memory_of_a_block(tmp_path, monkeypatch):
    torch.manual_seed(0)
    extractor = BridleFeatureExtractor(16, 8000, max_length=64, frame_ms=400.0, hop_ms=400.0)
    model = BridleModel(tiny_config("audio", input_size=(64, 16), decoder_type="plain"))
    (tmp_path / "sounds").mkdir()
    with soundfile.SoundFile(tmp_path / "sounds" / "hour.flac", "w", 8000, 1, format="FLAC") as file:
        for minute in range(60):
            file.write(np.full(8000 * 60, minute / 100, np.float32))
    read, sizes = soundfile.SoundFile.read, []

    def counted(file, *given, **more):
        block = read(file, *given, **more)
        sizes.append(block.nbytes)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    data = DataArguments(str(tmp_path / "sounds"))
    monkeypatch.setattr(audio_decoding, "BLOCK_SAMPLES", 2**16)
    monkeypatch.setattr(audio, "PART_SAMPLES", 2**16)
    whole = 8000 * 3600 * 4
    used = peak_memory(lambda: write_features(tmp_path / "f", model, data, extractor, pooling="frames"))
    (row,) = rows(tmp_path / "f")
    assert len(row["last"]) == -(-9000 // 16) and row["start"][-1] == 562 * 16 * 0.4  # to the last bit
    assert max(sizes) <= 4 * 2**16 and sum(sizes) == whole
    assert used < whole / 4, f"{used / 1e6:.0f} MB of {whole / 1e6:.0f}"
