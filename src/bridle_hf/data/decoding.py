"""Bytes of audio files, images and videos to arrays, without a system FFmpeg.

Audio: soundfile decodes wav, flac, ogg and mp3; PyAV, which bundles FFmpeg, the rest (the extra `av`).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import BinaryIO

import fsspec
import numpy as np
import soundfile
import soxr

from ..feature_extraction_bridle import HOP_SECONDS, MAX_RATE_RATIO, WINDOW_SECONDS


class BadClipError(ValueError):
    """A clip that cannot be used: corrupt, empty, too short, or not finite. Loaders skip it, count it and name it."""


# What a file may ask for, whatever its header declares: a clip decoded as a whole has at most 35 minutes at 48 kHz
# (400 MB), before it is resampled and after.
MAX_SAMPLES = 100_000_000
BLOCK_SAMPLES = 2**20  # over all channels, decoded at a time


def decode_audio(
    audio: dict | str | None,
    sampling_rate: int,
    min_seconds: float = 0.0,
    part_seconds: float | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Decode one clip or a part of it, mix it to mono and resample it.

    Args:
        audio: `{"bytes", "path"}` as an undecoded `datasets.Audio` column gives it, or a path or URL alone.
        sampling_rate: rate of the result in Hz.
        min_seconds: shortest clip that is accepted.
        part_seconds: of a longer clip only a part of this length is decoded; `None` decodes all.
        rng: draws where the part begins, in steps of a frame's hop; without it is the clip's beginning.

    Returns:
        float32 waveform (samples,); full scale is 1.

    Raises:
        BadClipError: where the clip is missing, corrupt, empty, shorter than `min_seconds`, holds NaN or inf, or asks
            for more memory than is sensible.
    """

    def choose(total: int, rate: int) -> tuple[int, int]:
        """First sample and number of samples of the part."""
        length = total if part_seconds is None else min(total, round(part_seconds * rate))
        spare = int((total - length) / (HOP_SECONDS * rate))
        return (round(rng.integers(spare + 1) * HOP_SECONDS * rate) if rng is not None and spare else 0), length

    try:
        with open_file(audio) as file:
            try:
                waveform, rate = _decode_with_soundfile(file, choose)
            except soundfile.LibsndfileError as error:
                file.seek(0)
                waveform, rate = _decode_with_av(file, str(error), choose)
    except OSError as error:
        raise BadClipError(f"cannot be read: {error}") from error
    if len(waveform) == 0 or len(waveform) < min_seconds * rate:
        raise BadClipError(f"too short: {len(waveform) / rate:.3f} s, at least {min_seconds} s are needed")
    if not np.isfinite(waveform).all():
        raise BadClipError("holds NaN or infinite samples")
    if rate != sampling_rate:
        ratio = sampling_rate / rate
        if not 1 / MAX_RATE_RATIO <= ratio <= MAX_RATE_RATIO or len(waveform) * ratio > MAX_SAMPLES:
            raise BadClipError(f"has a sampling rate of {rate} Hz, of which no {sampling_rate} Hz can be made")
        waveform = soxr.resample(waveform, rate, sampling_rate)
    return waveform


@contextmanager
def open_file(clip: dict | str | None) -> Iterator[BinaryIO]:
    """What an undecoded column of `datasets` holds, or the file at a path or URL, of which no more is read than used.

    Raises:
        BadClipError: neither is there.
    """
    if isinstance(clip, str):
        clip = {"bytes": None, "path": clip}
    if clip is None or (clip.get("bytes") is None and not clip.get("path")):
        raise BadClipError("holds neither bytes nor a path")
    if clip.get("bytes") is not None:
        yield io.BytesIO(clip["bytes"])
    else:
        with fsspec.open(clip["path"], "rb") as file:
            yield file


def _decode_with_soundfile(content: BinaryIO, choose) -> tuple[np.ndarray, int]:
    """Decode the part that `choose(samples, rate)` gives as (start, length): ((samples,) float32, rate).

    Block by block: memory follows what is there, not what the header declares.
    """
    with soundfile.SoundFile(content) as file:
        start, length = choose(file.frames, file.samplerate)
        file.seek(start)
        frames = max(1, min(length, BLOCK_SAMPLES // file.channels))
        blocks = (file.read(frames, dtype="float32", always_2d=True).mean(axis=1) for _ in count())
        return _collect(blocks, 0, length), file.samplerate


def _collect(blocks: Iterator[np.ndarray], start: int, length: int) -> np.ndarray:
    """Samples `start` to `start + length` of a waveform that comes in blocks; less where it ends before.

    Raises:
        BadClipError: more than `MAX_SAMPLES` are asked for and there.
    """
    kept, seen, total = [np.empty(0, np.float32)], 0, 0
    for block in blocks:
        part = block[max(0, start - seen) : start + length - seen]
        kept.append(part)
        seen, total = seen + len(block), total + len(part)
        if total > MAX_SAMPLES:
            raise BadClipError(f"is longer than {MAX_SAMPLES} samples, too long to be decoded as a whole")
        if len(block) == 0 or seen >= start + length:
            break
    return np.concatenate(kept)


def _decode_with_av(content: BinaryIO, reason: str, choose) -> tuple[np.ndarray, int]:
    """As `_decode_with_soundfile`, the first audio stream of any container FFmpeg reads."""
    try:
        import av
    except ImportError:
        raise BadClipError(
            f"cannot be decoded by soundfile ({reason}); for more formats `pip install bridle-hf[av]`"
        ) from None
    try:
        with av.open(content) as container:
            stream, resampler = container.streams.audio[0], av.AudioResampler(format="fltp")  # changes the format only
            rate = stream.rate
            if not rate:
                raise BadClipError("cannot be decoded: it declares no sampling rate")
            seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
            frames = (frame for raw in chain(container.decode(stream), [None]) for frame in resampler.resample(raw))
            total = round(seconds * rate)
            start, length = choose(total, rate)
            if length == total:  # all of it, whatever length was declared
                length = MAX_SAMPLES + 1
            return _collect((frame.to_ndarray().mean(axis=0) for frame in frames), start, length), rate
    except (av.FFmpegError, IndexError, ValueError) as error:  # no audio stream, or no frame in it
        raise BadClipError(f"cannot be decoded: {error}") from error


def clip_features(
    audio,
    feature_extractor,
    min_seconds: float = 0.0,
    max_frames: int | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Decode one clip into normalised, unpadded log-mel features (frames, mel bins).

    With a generator no more of a long clip is decoded than the `max_frames` frames at a place that it draws.

    Raises:
        BadClipError: where `decode_audio` or the feature extractor refuses the clip.
    """
    part = max_frames * HOP_SECONDS + WINDOW_SECONDS - HOP_SECONDS if max_frames and rng is not None else None
    waveform = decode_audio(audio, feature_extractor.sampling_rate, min_seconds, part, rng)
    try:
        features = feature_extractor(
            waveform,
            sampling_rate=feature_extractor.sampling_rate,
            padding=False,
            truncation=False,
            return_tensors="np",
        )
    except ValueError as error:
        raise BadClipError(str(error)) from error
    return features["input_values"][0]
