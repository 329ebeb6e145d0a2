"""Audio: decoding and batches of log-mel features, and the modality.

soundfile decodes wav, flac, ogg and mp3; PyAV, which bundles FFmpeg, the rest (the extra `av`).
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, count
from math import ceil
from typing import BinaryIO

import datasets
import numpy as np
import soundfile
import soxr

from ..configuration_bridle import BridleConfig
from ..demo_data import write_sound_set
from ..feature_extraction_bridle import (
    INT16_SCALE,
    MAX_SAMPLES,
    BridleFeatureExtractor,
    can_resample,
    channel_axis,
    hop_seconds,
    window_seconds,
)
from .arguments import DataArguments
from .audio_augmentation import roll_magnitude, spec_augment
from .extensions import sound_extensions
from .media import BadClipError, is_array, open_file
from .modality import Modality

logger = logging.getLogger(__name__)

# A file may ask for no more than MAX_SAMPLES, whatever its header declares: decoded as a whole, 35 minutes at 48 kHz or
# 104 at 16 kHz, before it is resampled and after. With its features, a thread takes 1.5 GB for that long a clip.
BLOCK_SAMPLES = 2**20  # over all channels, decoded at a time

PADDING_KEYS = ("max_length", "padding_side", "padding_value", "return_attention_mask", "auto_map", "processor_class")


def decode_audio(
    audio,
    sampling_rate: int,
    min_seconds: float = 0.0,
    part_seconds: float | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Decode one clip or a part of it, mix it to mono and resample it.

    Args:
        audio: `{"bytes", "path"}` as an undecoded `datasets.Audio` column gives it, or a path or URL alone; or decoded
            already, `{"array", "sampling_rate"}` or a waveform at the rate of the result: (samples,), or with channels
            before or after the samples.
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
        hop = hop_seconds(sampling_rate)
        spare = int((total - length) / (hop * rate))
        return round(random_start(spare, rng) * hop * rate), length

    if is_array(audio):
        audio = {"array": audio, "sampling_rate": sampling_rate}
    try:
        if isinstance(audio, dict) and audio.get("array") is not None:
            waveform, rate = _part_of_array(audio["array"], audio["sampling_rate"], choose)
        else:
            with open_file(audio) as file:
                try:
                    waveform, rate = _decode_with_soundfile(file, choose)
                    if len(waveform) == 0:
                        waveform, rate = _decode_stream(file, choose, rate)
                except soundfile.LibsndfileError as error:
                    file.seek(0)
                    waveform, rate = _decode_with_av(file, str(error), choose)
    except OSError as error:
        raise BadClipError(f"cannot be read: {error}") from error
    if len(waveform) == 0 or len(waveform) < min_seconds * rate:
        needed = f"at least {min_seconds} s are needed" if min_seconds > 0 else "it holds no samples"
        raise BadClipError(f"too short: {len(waveform) / rate:.3f} s, {needed}")
    if not np.isfinite(waveform).all():
        raise BadClipError("holds NaN or infinite samples")
    if rate != sampling_rate:
        if not can_resample(len(waveform), rate, sampling_rate):
            raise BadClipError(f"has a sampling rate of {rate} Hz, of which no {sampling_rate} Hz can be made")
        waveform = soxr.resample(waveform, rate, sampling_rate)
    return waveform


def _part_of_array(array, sampling_rate: int, choose) -> tuple[np.ndarray, int]:
    """As `_decode_with_soundfile`, of a waveform of floats or int16, with or without channels."""
    samples = np.asarray(array)
    channels = channel_axis(samples.shape)
    if not (samples.ndim == 1 or channels is not None) or not (samples.dtype.kind == "f" or samples.dtype == np.int16):
        takes = "(samples,) of floats or int16, or channels before or after the samples"
        raise BadClipError(f"is an array {samples.shape} of {samples.dtype}; it takes {takes}")
    if channels == 0:
        samples = samples.T  # (samples, channels)
    if channels is not None and samples.shape[1] > 1:
        _say_mixed()
    start, length = choose(len(samples), sampling_rate)
    part = samples[start : start + length].astype(np.float32)
    if samples.dtype == np.int16:
        part = part / INT16_SCALE
    return (part if part.ndim == 1 else part.mean(axis=1)), sampling_rate


def _decode_with_soundfile(content: BinaryIO, choose) -> tuple[np.ndarray, int]:
    """Decode the part that `choose(samples, rate)` gives as (start, length): ((samples,) float32, rate).

    Block by block: memory follows what is there, not what the header declares.
    """
    with soundfile.SoundFile(content) as file:
        start, length = choose(file.frames, file.samplerate)
        if file.channels > 1:
            _say_mixed()
        file.seek(start)
        frames = max(1, min(length, BLOCK_SAMPLES // file.channels))
        blocks = (file.read(frames, dtype="float32", always_2d=True).mean(axis=1) for _ in count())
        return _collect(blocks, 0, length), file.samplerate


def _decode_stream(content: BinaryIO, choose, rate: int) -> tuple[np.ndarray, int]:
    """As `_decode_with_soundfile`, of a file whose header says 0 samples, as of a stream that was never closed.

    FFmpeg reads it to its end. Empty where there is nothing, or no PyAV.
    """
    content.seek(0)
    with suppress(BadClipError):
        return _decode_with_av(content, "its header says that it holds no samples", choose)
    return np.empty(0, np.float32), rate


@lru_cache(maxsize=1)  # once a process
def _say_mixed() -> None:
    logger.warning("there are sounds of several channels; they are averaged to mono.")


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
            if not container.streams.audio:
                kinds = sorted({stream.type for stream in container.streams})
                raise BadClipError(f"holds no sound, only {' and '.join(kinds) or 'nothing'}")
            stream, resampler = container.streams.audio[0], av.AudioResampler(format="fltp")  # changes the format only
            rate = stream.rate
            if stream.channels > 1:
                _say_mixed()
            if not rate:
                raise BadClipError("cannot be decoded: it declares no sampling rate")
            seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
            frames = (frame for raw in chain(container.decode(stream), [None]) for frame in resampler.resample(raw))
            total = round(seconds * rate)
            start, length = choose(total, rate)
            if length == total:  # all of it, whatever length was declared
                length = MAX_SAMPLES + 1
            return _collect((frame.to_ndarray().mean(axis=0) for frame in frames), start, length), rate
    except (av.FFmpegError, IndexError, ValueError) as error:  # what FFmpeg refuses, or a stream without a frame
        raise BadClipError(f"cannot be decoded: {error}") from error


def window_frames(data: DataArguments, processor) -> int:
    """`Modality.window` of audio: frames that a training sample or a window of a long recording has."""
    return data.max_frames or processor.max_length


def random_start(spare: int, rng: np.random.Generator | None) -> int:
    """Where a random crop begins, out of `spare` + 1 places; 0 without a generator.

    The only place that draws it: when a file is decoded in part, and when a batch is made. A recording decoded in part
    leaves the batch nothing to crop.
    """
    return rng.integers(spare + 1) if rng is not None and spare else 0


def audio_features(raw, data: DataArguments, processor, rng: np.random.Generator | None = None) -> np.ndarray:
    """`Modality.decode` of audio: normalised, unpadded log-mel features (frames, mel bins).

    With `rng`, only a window of `window_frames` frames is decoded, at a random place.

    Raises:
        BadClipError: where `decode_audio` or the feature extractor refuses the recording.
    """
    rate = processor.sampling_rate
    part = None if rng is None else window_seconds(rate, window_frames(data, processor))
    waveform = decode_audio(raw, rate, data.min_seconds, part, rng)
    try:
        features = processor(waveform, sampling_rate=rate, padding=False, truncation=False, return_attention_mask=False)
    except ValueError as error:
        raise BadClipError(str(error)) from error
    return features["input_values"][0]


def audio_waveform(raw, processor) -> np.ndarray:
    """`Modality.waveform` of audio: float32 (samples,) at the processor's rate."""
    return decode_audio(raw, processor.sampling_rate)


def audio_cache_key(data: DataArguments, processor) -> dict:
    """`Modality.cache_key` of audio."""
    settings = {key: value for key, value in processor.to_dict().items() if key not in PADDING_KEYS}
    if not settings["pad_short"]:  # caches of before it was an option stay good
        del settings["pad_short"]
    return settings | {"min_seconds": data.min_seconds}


def pad_features(
    features: list[np.ndarray], max_frames: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pad or crop clips to one length.

    Args:
        features: clips of (frames, mel bins).
        max_frames: frames T of the result.
        rng: draws the start of the crop of a longer clip; without it the crop is the clip's beginning.

    Returns:
        (B, T, mel bins) float32, 0 where padded, and the valid frames (B,) int64.
    """
    batch = np.empty((len(features), max_frames, features[0].shape[1]), dtype=np.float32)
    lengths = np.array([min(len(clip), max_frames) for clip in features], dtype=np.int64)
    for row, clip, length in zip(batch, features, lengths, strict=True):
        start = random_start(len(clip) - length, rng)
        row[:length] = clip[start : start + length]
        row[length:] = 0
    return batch, lengths


def frame_mask(lengths: np.ndarray, max_frames: int) -> np.ndarray:
    """(B, T) int64: 1 for a frame of the clip, 0 for padding."""
    return (np.arange(max_frames) < lengths[:, None]).astype(np.int64)


class AudioCollator:
    """Log-mel features of clips, (frames, mel bins) each, to batches of a model's inputs.

    Both kinds hold `input_values` (B, T, mel bins) float32 and `attention_mask` (B, T) int64.
    """

    def __init__(self, data: DataArguments, feature_extractor):
        self.data = data
        self.max_frames = window_frames(data, feature_extractor)
        self.unit = feature_extractor.pad_to_multiple_of
        self.sampling_rate = feature_extractor.sampling_rate
        normalized = feature_extractor.do_normalize
        self.mean = feature_extractor.mean if normalized else 0.0
        self.scale = 2 * feature_extractor.std if normalized else 1.0

    def __call__(self, clips: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A training batch, cropped at random and augmented; all randomness comes from `rng`."""
        data = self.data
        values, lengths = pad_features(clips, self.max_frames, rng)
        roll_magnitude(values, lengths, rng, mean=self.mean, scale=self.scale, roll=data.roll, gain=data.gain)
        if data.frequency_mask or data.time_mask:
            spec_augment(values, lengths, rng, frequency_mask=data.frequency_mask, time_mask=data.time_mask)
        return {"input_values": values, "attention_mask": frame_mask(lengths, self.max_frames)}

    def plain(self, clips: list[np.ndarray], whole: bool = False) -> dict[str, np.ndarray]:
        """A batch without augmentation, cropped from the beginning; or `whole`, padded to the longest clip."""
        frames = self.max_frames
        if whole and (longest := max(map(len, clips))) > frames:
            frames = ceil(longest / self.unit) * self.unit
        values, lengths = pad_features(clips, frames)
        return {"input_values": values, "attention_mask": frame_mask(lengths, frames)}


def audio_sizes(config: BridleConfig) -> dict:
    """`Modality.sizes` of audio."""
    max_length, num_mel_bins = config.input_size
    return {"max_length": max_length, "num_mel_bins": num_mel_bins, "pad_to_multiple_of": config.patch_size[0]}


def audio_hop_seconds(processor) -> float:
    """`Modality.hop_seconds` of audio."""
    return hop_seconds(processor.sampling_rate)


def spectrogram_picture(values: np.ndarray, codes: np.ndarray, valid: np.ndarray, grid: tuple[int, ...]) -> tuple:
    """`Modality.picture` of audio: everything as it is."""
    return values, codes, valid, grid


def logmel_statistics(spectrogram: np.ndarray) -> np.ndarray:
    """Baseline: (T, F) log-mel frames -> (2 F,), mean and standard deviation of every mel bin."""
    return np.concatenate([spectrogram.mean(axis=0), spectrogram.std(axis=0)])


def logmel_deltas(spectrogram: np.ndarray) -> np.ndarray:
    """Baseline: (T, F) -> (3 F,), the same and the mean absolute difference of neighbouring frames."""
    deltas = np.abs(np.diff(spectrogram, axis=0, prepend=spectrogram[:1])).sum(axis=0) / max(1, len(spectrogram) - 1)
    return np.concatenate([logmel_statistics(spectrogram), deltas])


AUDIO = Modality(
    name="audio",
    column_type=datasets.Audio,
    column_names=("audio",),
    extensions=sound_extensions,
    decode=audio_features,
    cache_key=audio_cache_key,
    window=window_frames,
    collator=AudioCollator,
    waveform=audio_waveform,
    write_demo_set=write_sound_set,
    axes=("time", "frequency"),
    hop_seconds=audio_hop_seconds,
    processor=BridleFeatureExtractor,
    auto_processor="AutoFeatureExtractor",
    sizes=audio_sizes,
    picture=spectrogram_picture,
    classifier="BridleForAudioClassification",
    auto_classifier="AutoModelForAudioClassification",
    feature_pipeline="BridleAudioFeatureExtractionPipeline",
    task="audio-classification",
    baselines={"logmel": logmel_statistics, "logmel-delta": logmel_deltas},
)
