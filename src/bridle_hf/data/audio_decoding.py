"""Decoding of sounds: a clip, a part of it, or block by block.

soundfile decodes wav, flac, ogg and mp3; PyAV, which bundles FFmpeg, the rest (the extra `av`).
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from numbers import Real
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from ..feature_extraction_bridle import INT16_SCALE, MAX_SAMPLES, can_resample, channel_axis
from .media import BadClipError, is_array, open_file

logger = logging.getLogger(__name__)

# A file may ask for no more than MAX_SAMPLES, whatever its header declares: decoded as a whole, 35 minutes at 48 kHz or
# 104 at 16 kHz, before it is resampled and after. With its features, a thread takes 1.5 GB for that long a clip.
BLOCK_SAMPLES = 2**20  # over all channels, decoded at a time

Channels = Callable[[np.ndarray], np.ndarray]  # (n, channels) -> (n,) or (n, C)


class LongerError(Exception):
    """The recording is longer than the caller lets `decode_audio` decode."""


def average(samples: np.ndarray) -> np.ndarray:
    """Mix channels: (n, channels) -> (n,). That it happens is said once a process."""
    if samples.shape[1] > 1:
        _say_mixed()
    return samples.mean(axis=1)


@lru_cache(maxsize=1)  # once a process
def _say_mixed() -> None:
    logger.warning("there are sounds of several channels; they are averaged to mono.")


def decode_audio(
    audio,
    sampling_rate: int,
    min_seconds: float = 0.0,
    part_seconds: float | None = None,
    rng: np.random.Generator | None = None,
    hop_seconds: float = 0.01,
    channels: Channels = average,
    longest: float | None = None,
) -> np.ndarray:
    """Decode one clip or a part of it, combine its channels, and resample it.

    Args:
        audio: `{"bytes", "path"}` as an undecoded `datasets.Audio` column gives it, or a path or URL alone; or decoded
            already, `{"array", "sampling_rate"}` or a waveform at the rate of the result: (samples,), or with channels
            before or after the samples.
        sampling_rate: rate of the result in Hz.
        min_seconds: shortest clip that is accepted.
        part_seconds: of a longer clip only a part of this length is decoded; `None` decodes all.
        rng: draws where the part begins, in steps of `hop_seconds`; without it is the clip's beginning.
        channels: combines the channels, by default to their average.
        longest: seconds; a recording whose header says more is not decoded.

    Returns:
        float32 waveform (samples,), or (samples, C) where `channels` keeps several; full scale is 1.

    Raises:
        BadClipError: where the clip is missing, corrupt, empty, shorter than `min_seconds`, holds NaN or inf, is
            refused by `channels`, or asks for more memory than is sensible.
        LongerError: where the clip is longer than `longest`.
    """

    def choose(total: int, rate: int) -> tuple[int, int]:
        """First sample and number of samples of the part."""
        if longest is not None and total > longest * rate:
            raise LongerError
        length = total if part_seconds is None else min(total, round(part_seconds * rate))
        spare = int((total - length) / (hop_seconds * rate))
        return round(random_start(spare, rng) * hop_seconds * rate), length

    waveform, rate = _decoded_part(audio, sampling_rate, choose, channels)
    _check_length(len(waveform), rate, min_seconds)
    _check_samples(waveform, rate, sampling_rate, waveform.size)
    return waveform if rate == sampling_rate else soxr.resample(waveform, rate, sampling_rate)


def _decoded_part(audio, sampling_rate: int, choose, channels: Channels) -> tuple[np.ndarray, int]:
    """The part that `choose(samples, rate)` gives as (start, length), at the rate of the recording, and that rate."""
    try:
        if (held := _in_memory(audio, sampling_rate)) is not None:
            return _part_of_array(*held, choose, channels)
        with open_file(audio) as file:
            try:
                waveform, rate = _decode_with_soundfile(file, choose, channels)
                return (waveform, rate) if len(waveform) else _decode_stream(file, choose, channels, rate)
            except soundfile.LibsndfileError as error:
                file.seek(0)
                return _decode_with_av(file, str(error), choose, channels)
    except OSError as error:
        raise BadClipError(f"cannot be read: {error}") from error


def _in_memory(audio, sampling_rate: int) -> tuple | None:
    """(array, rate) of a clip that is decoded already; None for a file. `sampling_rate` is that of a bare array."""
    if is_array(audio):
        return audio, sampling_rate
    if not isinstance(audio, dict) or audio.get("array") is None:
        return None
    rate = audio.get("sampling_rate")
    if getattr(rate, "ndim", None) == 0:  # of a dataset in the format of numpy or torch
        rate = rate.item()
    if not isinstance(rate, Real) or not 0 < rate < math.inf:
        raise BadClipError(f"is an array with sampling_rate={rate!r}; it takes a positive number, in Hz")
    return audio["array"], rate


def stream_audio(
    audio, sampling_rate: int, min_seconds: float = 0.0, channels: Channels = average
) -> Iterator[np.ndarray]:
    """Yield the waveform that `decode_audio` returns block by block, with one block in memory at a time, for recordings
    of any length.

    The resampler keeps its state between blocks, so that the concatenated blocks equal the whole waveform, up to the
    decoder's rounding.

    Raises:
        BadClipError: as in `decode_audio`; the blocks before the damage have been yielded by then.
    """
    resampler, seen, block, rate = None, 0, np.empty(0, np.float32), sampling_rate
    try:
        for block, rate in _blocks(audio, sampling_rate, channels):
            _check_samples(block, rate, sampling_rate, 0)
            seen += len(block)
            if rate == sampling_rate:
                yield block
                continue
            if resampler is None:
                made = 1 if block.ndim == 1 else block.shape[1]
                resampler = soxr.ResampleStream(rate, sampling_rate, made, dtype="float32")
            yield resampler.resample_chunk(block)
    except OSError as error:
        raise BadClipError(f"cannot be read: {error}") from error
    _check_length(seen, rate, min_seconds)
    if resampler is not None:
        yield resampler.resample_chunk(block[:0], last=True)


def _blocks(audio, sampling_rate: int, channels: Channels) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (block of samples, rate) of a recording. Where soundfile fails, FFmpeg continues."""
    if (held := _in_memory(audio, sampling_rate)) is not None:
        for start in range(0, max(np.shape(held[0])), BLOCK_SAMPLES):
            yield _part_of_array(*held, lambda *_: (start, BLOCK_SAMPLES), channels)  # noqa: B023
        return
    with open_file(audio) as file:
        done = 0
        try:
            with soundfile.SoundFile(file) as opened:
                for block in _soundfile_blocks(opened, max(1, BLOCK_SAMPLES // opened.channels), channels):
                    done += len(block)
                    yield block, opened.samplerate
        except soundfile.LibsndfileError as error:
            file.seek(0)
            with _opened_with_av(file, str(error), channels) as (blocks, _, rate):
                for block in blocks:
                    skipped = min(done, len(block))
                    done -= skipped
                    yield block[skipped:], rate


def sound_header(audio, sampling_rate: int) -> tuple[int, int, int]:
    """Number of samples, sampling rate and number of channels of a clip, as its header declares them.

    Raises:
        BadClipError: it cannot be opened.
    """
    seen = []

    def look(samples: np.ndarray) -> np.ndarray:
        seen.append(samples.shape[1])
        return samples[:, 0]

    def choose(total: int, rate: int) -> tuple[int, int]:
        seen[:] = [total, rate]
        return 0, 1

    _decoded_part(audio, sampling_rate, choose, look)
    return tuple(seen[:3])


def _check_length(samples: int, rate: int, min_seconds: float) -> None:
    """Raise a `BadClipError` for a recording without samples or of too few."""
    if samples == 0 or samples < min_seconds * rate:
        needed = f"at least {min_seconds} s are needed" if min_seconds > 0 else "it holds no samples"
        raise BadClipError(f"too short: {samples / rate:.3f} s, {needed}")


def _check_samples(waveform: np.ndarray, rate: int, sampling_rate: int, size: int) -> None:
    """Raise a `BadClipError` for samples that are not finite, or `size` of them that cannot be resampled."""
    if not np.isfinite(waveform).all():
        raise BadClipError("holds NaN or infinite samples")
    if rate != sampling_rate and not can_resample(size, rate, sampling_rate):
        raise BadClipError(f"has a sampling rate of {rate} Hz, of which no {sampling_rate} Hz can be made")


def random_start(spare: int, rng: np.random.Generator | None) -> int:
    """Where a random crop begins, out of `spare` + 1 places; 0 without a generator.

    The only place that draws it: when a file is decoded in part, and when a batch is made. A recording decoded in part
    leaves the batch nothing to crop.
    """
    return rng.integers(spare + 1) if rng is not None and spare else 0


def _part_of_array(array, sampling_rate: int, choose, channels: Channels) -> tuple[np.ndarray, int]:
    """As `_decode_with_soundfile`, of a waveform of floats or int16, with or without channels."""
    samples = np.asarray(array)
    axis = channel_axis(samples.shape)
    if not (samples.ndim == 1 or axis is not None) or not (samples.dtype.kind == "f" or samples.dtype == np.int16):
        takes = "(samples,) of floats or int16, or channels before or after the samples"
        raise BadClipError(f"is an array {samples.shape} of {samples.dtype}; it takes {takes}")
    samples = samples[:, None] if axis is None else np.moveaxis(samples, axis, 1)  # (samples, channels)
    start, length = choose(len(samples), sampling_rate)
    part = samples[start : start + length].astype(np.float32)
    if samples.dtype == np.int16:
        part = part / INT16_SCALE
    return chosen(part, channels), sampling_rate


def chosen(samples: np.ndarray, channels: Channels) -> np.ndarray:
    """Samples (n, channels) after `channels` has combined them.

    Raises:
        BadClipError: `channels` refuses them.
    """
    try:
        return channels(samples)
    except ValueError as error:
        raise BadClipError(str(error)) from error


def _decode_with_soundfile(content: BinaryIO, choose, channels: Channels) -> tuple[np.ndarray, int]:
    """Decode the part that `choose(samples, rate)` gives as (start, length): ((samples,) float32, rate).

    Block by block: memory follows what is there, not what the header declares.
    """
    with soundfile.SoundFile(content) as file:
        start, length = choose(file.frames, file.samplerate)
        file.seek(start)
        frames = max(1, min(length, BLOCK_SAMPLES // file.channels))
        return _collect(_soundfile_blocks(file, frames, channels), 0, length), file.samplerate


def _soundfile_blocks(file: soundfile.SoundFile, frames: int, channels: Channels) -> Iterator[np.ndarray]:
    """The samples from where a file stands, `frames` at a time; the last block may be empty."""
    there = True
    while there:
        block = file.read(frames, dtype="float32", always_2d=True)
        there = len(block) > 0
        yield chosen(block, channels)


def _decode_stream(content: BinaryIO, choose, channels: Channels, rate: int) -> tuple[np.ndarray, int]:
    """As `_decode_with_soundfile`, of a file whose header says 0 samples, as of a stream that was never closed.

    FFmpeg reads it to its end. Empty where there is nothing, or no PyAV.
    """
    content.seek(0)
    with suppress(BadClipError):
        return _decode_with_av(content, "its header says that it holds no samples", choose, channels)
    return np.empty(0, np.float32), rate


def _collect(blocks: Iterator[np.ndarray], start: int, length: int) -> np.ndarray:
    """Samples `start` to `start + length` of a waveform that comes in blocks; less where it ends before.

    Raises:
        BadClipError: more than `MAX_SAMPLES` are asked for and there.
    """
    kept, seen, total = [], 0, 0
    for block in blocks:
        part = block[max(0, start - seen) : start + length - seen]
        kept.append(part)
        seen, total = seen + len(block), total + part.size
        if total > MAX_SAMPLES:
            raise BadClipError(f"is longer than {MAX_SAMPLES} samples, too long to be decoded as a whole")
        if len(block) == 0 or seen >= start + length:
            break
    return np.concatenate(kept or [np.empty(0, np.float32)])


def _decode_with_av(content: BinaryIO, reason: str, choose, channels: Channels) -> tuple[np.ndarray, int]:
    """As `_decode_with_soundfile`, the first audio stream of any container FFmpeg reads."""
    with _opened_with_av(content, reason, channels) as (blocks, total, rate):
        start, length = choose(total, rate)
        if length == total:  # all of it, whatever length was declared
            length = MAX_SAMPLES + 1
        return _collect(blocks, start, length), rate


@contextmanager
def _opened_with_av(content: BinaryIO, reason: str, channels: Channels) -> Iterator[tuple]:
    """(blocks of samples, number of samples that are declared, rate) of the first audio stream."""
    try:
        import av
    except ImportError:
        raise BadClipError(
            f"cannot be decoded by soundfile ({reason}); for more formats `pip install bridle-hf[av]`"
        ) from None
    try:
        with av.open(content) as container:
            if not container.streams.audio:
                kinds = sorted({stream.type for stream in container.streams})
                raise BadClipError(f"holds no sound, only {' and '.join(kinds) or 'nothing'}")
            stream, resampler = container.streams.audio[0], av.AudioResampler(format="fltp")  # changes the format only
            if not stream.rate:
                raise BadClipError("cannot be decoded: it declares no sampling rate")
            seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
            frames = (frame for raw in chain(container.decode(stream), [None]) for frame in resampler.resample(raw))
            blocks = (chosen(frame.to_ndarray().T, channels) for frame in frames)
            yield blocks, round(seconds * stream.rate), stream.rate
    except (av.FFmpegError, IndexError, ValueError) as error:  # what FFmpeg refuses, or a stream without a frame
        raise BadClipError(f"cannot be decoded: {error}") from error
