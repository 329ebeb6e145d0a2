"""Files that lie, streams that break: what is skipped, retried and refused, and what it costs."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from sound_files import RATE, clip, flac, peak_memory, wav

from bridle_hf.data import (
    BadClipError,
    DataArguments,
    UnusableDataError,
    build_loader,
    decode_audio,
    load_examples,
    source,
)

PLAIN = {"roll": False, "gain": False}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"RIFF\x00\x00", "cannot be decoded"),
        (wav(np.zeros(0, np.float32)), "too short: 0.000 s"),
        (wav(np.full(8000, np.nan, np.float32), subtype="FLOAT"), "NaN or infinite"),
        (wav(np.full(8000, np.inf, np.float32), subtype="FLOAT"), "NaN or infinite"),
        (wav(clip(0), declared_rate=1), "sampling rate of 1 Hz, of which no 16000 Hz can be made"),
        (wav(clip(0), declared_rate=2**31 - 1), "sampling rate of 2147483647 Hz"),
    ],
)
def test_bad_files_are_refused(content, message):
    with pytest.raises(BadClipError, match=message):
        decode_audio({"bytes": content, "path": None}, RATE, min_seconds=0.0 if "rate" in message else 0.1)


@pytest.fixture
def damaged_folder(tmp_path):
    """Eight wav files of floats; one bit of one sample of clip-3.wav is flipped, which leaves it finite."""
    for index in range(8):
        samples = np.tile(clip(index), 3)
        if index == 3:
            samples[2000] = -0.42
            samples[2000:2001].view(np.uint32)[:] ^= np.uint32(1 << 30)
            assert np.isfinite(samples).all() and samples.min() < -1e38
        soundfile.write(tmp_path / f"clip-{index}.wav", samples, RATE, subtype="FLOAT")
    return str(tmp_path)


@pytest.mark.parametrize("cache", [False, True])
def test_a_flipped_bit_costs_its_clip_and_names_it(damaged_folder, extractor, cache, tmp_path_factory, caplog):
    data = DataArguments(damaged_folder, max_frames=96, cache=cache, cache_dir=str(tmp_path_factory.mktemp("cache")))
    loader = build_loader(data, extractor, batch_size=7, seed=0)
    assert all(next(loader)["input_values"].isfinite().all() for _ in range(4))
    ((name, reason),) = loader.skipped.items()
    assert name.endswith("clip-3.wav") and "peaks at 1.43e+38" in reason
    said = {record.name for record in caplog.records if record.getMessage() == f"skipped {name}: {reason}"}
    assert said == {source.__name__}  # of the cache's writer and of the loader: a command names a clip once
    examples = load_examples(data, extractor)
    assert len(examples) == 7 and not any("clip-3" in name for name in examples.clip_names)
    assert all(np.isfinite(features).all() for features in examples.clips)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_stereo_of_any_depth_is_mixed_down(subtype):
    left, right = 0.5 * clip(0), 0.5 * clip(1)
    decoded = decode_audio({"bytes": wav(np.stack([left, right], 1), subtype=subtype), "path": None}, RATE)
    assert np.abs(decoded - (left + right) / 2).max() < 2**-15


@pytest.mark.parametrize("part", [None, 10.0])
def test_a_header_that_says_nothing_is_there_is_not_believed(part, monkeypatch):
    pytest.importorskip("av")
    content = {"bytes": wav(clip(0), data_bytes=0), "path": None}
    np.testing.assert_allclose(decode_audio(content, RATE, part_seconds=part), clip(0), atol=2**-14)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadClipError, match="too short: 0.000 s, it holds no samples"):
        decode_audio(content, RATE)


def test_a_header_that_promises_gigabytes_costs_nothing():
    content = wav(clip(0), data_bytes=2**32 - 64)
    assert peak_memory(lambda: decode_audio({"bytes": content, "path": None}, RATE)) < 50e6


def test_a_header_that_promises_hours_of_low_rate_is_refused(monkeypatch):
    content = wav(clip(0), declared_rate=100)  # 53 seconds, and 850,000 samples at 16 kHz
    assert len(decode_audio({"bytes": content, "path": None}, RATE)) == len(clip(0)) * 160
    monkeypatch.setattr("bridle_hf.feature_extraction_bridle.MAX_SAMPLES", 500_000)
    with pytest.raises(BadClipError, match="sampling rate of 100 Hz"):
        decode_audio({"bytes": content, "path": None}, RATE)


def test_what_is_too_long_as_a_whole_is_refused(monkeypatch):
    monkeypatch.setattr("bridle_hf.data.audio_decoding.MAX_SAMPLES", 4000)
    with pytest.raises(BadClipError, match="longer than 4000 samples"):
        decode_audio({"bytes": flac(clip(0)), "path": None}, RATE)
    part = decode_audio({"bytes": flac(clip(0)), "path": None}, RATE, part_seconds=0.1)
    np.testing.assert_allclose(part, clip(0)[:1600], atol=1e-4)


@pytest.fixture(scope="module")
def hours(tmp_path_factory):
    """Ten hours of silence but for a tick every second; 8 kHz. A megabyte."""
    path = tmp_path_factory.mktemp("long") / "hours.flac"
    second = np.zeros(8000, np.float32)
    second[0] = 0.5
    with soundfile.SoundFile(path, "w", 8000, 1, format="FLAC") as file:
        for _ in range(36):
            file.write(np.tile(second, 1000))
    return path


def test_of_ten_hours_only_what_is_needed_is_decoded(hours, monkeypatch):
    read, frames = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda f, n, **k: frames.append(n) or read(f, n, **k))
    monkeypatch.setattr("bridle_hf.data.audio_decoding.BLOCK_SAMPLES", 8000)
    part = decode_audio(str(hours), 16000, 0.2, part_seconds=10.0, rng=np.random.default_rng(0))
    assert part.shape == (160_000,) and sum(frames) <= 88_000
    assert 9 <= (part > 0.1).sum() <= 40  # ten ticks, each a few samples wide after resampling


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_fails_once_is_read_again(parquet_folder, extractor, identify, monkeypatch, num_workers):
    fail_reads(monkeypatch, shard=2, times=1)
    loader = build_loader(
        DataArguments(parquet_folder, num_workers=num_workers, **PLAIN), extractor, batch_size=8, seed=0
    )
    assert sorted(index for _ in range(3) for index in identify(next(loader))) == list(range(24))
    assert not loader.skipped


def test_a_shard_that_always_fails_is_skipped_and_named(parquet_folder, extractor, identify, monkeypatch, caplog):
    fail_reads(monkeypatch, shard=2, times=10**9)
    data = DataArguments(parquet_folder, max_bad_share=0.25, **PLAIN)
    loader = build_loader(data, extractor, batch_size=6, seed=0)
    seen = [index for _ in range(6) for index in identify(next(loader))]
    assert set(seen) == set(range(24)) - set(range(12, 18))
    assert list(loader.skipped) == ["shard 2"] and "the disk is gone" in loader.skipped["shard 2"]
    assert "shard 2" in caplog.text
    data = DataArguments(parquet_folder, max_bad_share=0.2, **PLAIN)
    with pytest.raises(
        RuntimeError,
        match="1 of 4 shards could not be read.*max_bad_share=0.2.*shard 2 .*-00002-of-00004.parquet.: .*disk is gone",
    ):
        for _ in range(6):
            next(build_loader(data, extractor, batch_size=24, seed=0))


@pytest.mark.parametrize("cached", [False, True])
def test_bad_clips_of_one_name_are_several(cached, extractor, tmp_path):
    for shard in range(2):
        rows = [{"bytes": flac(clip(i)) if i % 3 else b"broken", "path": "audio.flac"} for i in range(6)]
        pq.write_table(pa.table({"audio": rows}), tmp_path / f"train-{shard}.parquet")
    data = DataArguments(str(tmp_path), max_bad_share=0.5, cache=cached, cache_dir=str(tmp_path / "cache"), **PLAIN)
    loader = build_loader(data, extractor, batch_size=8, seed=0)
    for _ in range(3):
        next(loader)
    places = [(shard, example) for shard in (0, 1) for example in (0, 3)]
    assert loader.skipped.keys() == {f"audio.flac (shard {shard}, example {example})" for shard, example in places}


def fail_reads(monkeypatch, shard: int, times: int) -> None:
    """Reading a shard raises half-way, so many times."""
    batches, left = source.Source.batches, [times]

    def failing(self, number):
        for batch in batches(self, number):
            if number == shard and left[0] > 0:
                left[0] -= 1
                raise OSError("the disk is gone")
            yield batch

    monkeypatch.setattr(source.Source, "batches", failing)
    monkeypatch.setattr(source, "RETRY_SECONDS", 0.0)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_set_of_which_nothing_is_left_ends_the_run(audio_folder, extractor, num_workers, share):
    data = DataArguments(audio_folder, min_seconds=1e9, max_bad_share=share, num_workers=num_workers)
    with pytest.raises(
        UnusableDataError, match="^no usable example in .*too short: .* at least 1000000000.0 s are need"
    ) as error:
        next(build_loader(data, extractor, batch_size=4, seed=0))
    assert "\n" not in str(error.value)  # as a worker said it, without its traceback
