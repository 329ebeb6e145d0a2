"""Audio: batches of log-mel features, and the modality."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import datasets
import numpy as np

from ..configuration_bridle import BridleConfig
from ..demo_data import write_sound_set
from ..feature_extraction_bridle import BridleFeatureExtractor, measure_mean_std
from .arguments import DataArguments
from .audio_augmentation import roll_magnitude, spec_augment
from .audio_decoding import Channels, LongerError, average, decode_audio, random_start, sound_header, stream_audio
from .extensions import sound_extensions
from .media import BadClipError
from .modality import Modality

PADDING_KEYS = ("max_length", "padding_side", "padding_value", "return_attention_mask", "auto_map", "processor_class")
# A recording of more seconds is read block by block where that will do, and features are made of so many samples.
LONG_SECONDS, PART_SAMPLES = 600, 2**20
# Settings newer than some caches, with the values that those caches were made with: they stay valid.
LATER = {
    "pad_short": False,
    "fmin": 20.0,
    "fmax": None,
    "frame_ms": 25.0,
    "hop_ms": 10.0,
    "num_channels": 1,
    "channel": None,
}


def window_frames(data: DataArguments, processor) -> int:
    """`Modality.window` of audio: frames that a training sample or a window of a long recording has."""
    return data.max_frames or processor.max_length


def channels_of(processor) -> Channels:
    """How `decode_audio` combines channels for a feature extractor."""
    mixes = processor.num_channels == 1 and processor.channel is None
    return average if mixes else processor.choose_channels


def audio_features(
    raw, data: DataArguments, processor, rng: np.random.Generator | None = None, longest: float | None = None
) -> np.ndarray:
    """`Modality.decode` of audio: normalised, unpadded log-mel features (frames, mel bins), or
    (frames, channels, mel bins) where the feature extractor keeps several channels.

    With `rng`, only a window of `window_frames` frames is decoded, at a random place.

    Raises:
        BadClipError: where `decode_audio` or the feature extractor refuses the recording.
        LongerError: where it is longer than `longest` seconds.
    """
    part = None if rng is None else processor.seconds(window_frames(data, processor))
    how = processor.hop_seconds, channels_of(processor), longest
    return _log_mel(decode_audio(raw, processor.sampling_rate, data.min_seconds, part, rng, *how), processor)


def _log_mel(waveform: np.ndarray, processor) -> np.ndarray:
    """Features of samples at the processor's rate."""
    settings = {"padding": False, "truncation": False, "return_attention_mask": False}
    try:
        return processor(waveform, sampling_rate=processor.sampling_rate, **settings)["input_values"][0]
    except ValueError as error:
        raise BadClipError(str(error)) from error


@dataclass
class LongSound:
    """Features of a long recording, computed part by part while one iterates; each iteration begins anew.

    A part holds the frames of `PART_SAMPLES` samples, the last part the rest. Concatenated, the parts equal what
    `audio_features` returns, up to rounding.
    """

    raw: Any
    data: DataArguments
    processor: BridleFeatureExtractor

    def __iter__(self) -> Iterator[np.ndarray]:
        window, hop, unit = self.processor.window, self.processor.hop, self.processor.pad_to_multiple_of
        frames = max(unit, PART_SAMPLES // hop)
        enough = window + (frames + unit - 1) * hop  # the last part is a patch or more: the extractor asks for it
        blocks, there = [], 0
        settings = self.processor.sampling_rate, self.data.min_seconds, channels_of(self.processor)
        for block in stream_audio(self.raw, *settings):
            blocks.append(block)
            there += len(block)
            if there < enough:
                continue
            samples = np.concatenate(blocks)
            while len(samples) >= enough:
                yield _log_mel(samples[: window + (frames - 1) * hop], self.processor)
                samples = samples[frames * hop :]
            blocks, there = [samples], len(samples)
        yield _log_mel(np.concatenate(blocks), self.processor)


def streamed_features(raw, data: DataArguments, processor) -> np.ndarray | LongSound:
    """`Modality.stream` of audio: `audio_features`, or a `LongSound` beyond `LONG_SECONDS`."""
    try:
        return audio_features(raw, data, processor, longest=LONG_SECONDS)
    except LongerError:
        return LongSound(raw, data, processor)


def sound_facts(raw, data: DataArguments, processor, decoded: np.ndarray) -> dict[str, float]:
    """`Modality.facts` of audio, from the file's header."""
    samples, rate, channels = sound_header(raw, processor.sampling_rate)
    frames = processor.frame_count(round(samples * processor.sampling_rate / rate))
    facts = {"seconds": samples / rate, "rate": rate, "channels": channels}
    return facts | {"frames": max(frames, len(decoded))}  # a header may say less than there is


def audio_waveform(raw, processor) -> np.ndarray:
    """`Modality.waveform` of audio: float32 (samples,) at the processor's rate; of several channels their mean."""
    waveform = decode_audio(raw, processor.sampling_rate, channels=channels_of(processor))
    return waveform if waveform.ndim == 1 else waveform.mean(axis=1)


def audio_cache_key(data: DataArguments, processor) -> dict:
    """`Modality.cache_key` of audio."""
    settings = {key: value for key, value in processor.to_dict().items() if key not in PADDING_KEYS}
    settings = {key: value for key, value in settings.items() if key not in LATER or value != LATER[key]}
    return settings | {"min_seconds": data.min_seconds}


def pad_features(
    features: list[np.ndarray], max_frames: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pad or crop clips to one length.

    Args:
        features: clips of (frames, ...).
        max_frames: frames T of the result.
        rng: draws the start of the crop of a longer clip; without it the crop is the clip's beginning.

    Returns:
        (B, T, ...) float32, 0 where padded, and the valid frames (B,) int64.
    """
    batch = np.empty((len(features), max_frames, *features[0].shape[1:]), dtype=np.float32)
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
    """Collates log-mel features of clips, (frames, mel bins) or (frames, channels, mel bins), into model inputs.

    Both kinds hold `input_values` (B, T, ...) float32 and `attention_mask` (B, T) int64.
    """

    def __init__(self, data: DataArguments, feature_extractor):
        self.data = data
        self.max_frames = window_frames(data, feature_extractor)
        self.unit = feature_extractor.pad_to_multiple_of
        self.sampling_rate, self.hop_seconds = feature_extractor.sampling_rate, feature_extractor.hop_seconds
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
    sizes = {"max_length": max_length, "num_mel_bins": num_mel_bins, "pad_to_multiple_of": config.patch_size[0]}
    return sizes | {"num_channels": config.num_channels}


def audio_hop_seconds(processor) -> float:
    """`Modality.hop_seconds` of audio."""
    return processor.hop_seconds


def spectrogram_picture(values: np.ndarray, codes: np.ndarray, valid: np.ndarray, grid: tuple[int, ...]) -> tuple:
    """`Modality.picture` of audio: the log-mel features, averaged over channels, and the rest unchanged."""
    return values if values.ndim == 2 else values.mean(axis=1), codes, valid, grid


def logmel_statistics(spectrogram: np.ndarray) -> np.ndarray:
    """Baseline: (T, F) log-mel frames -> (2 F,), mean and standard deviation of every mel bin; of every channel."""
    spectrogram = spectrogram.reshape(len(spectrogram), -1)
    return np.concatenate([spectrogram.mean(axis=0), spectrogram.std(axis=0)])


def logmel_deltas(spectrogram: np.ndarray) -> np.ndarray:
    """Baseline: (T, F) -> (3 F,), the same and the mean absolute difference of neighbouring frames."""
    spectrogram = spectrogram.reshape(len(spectrogram), -1)
    deltas = np.abs(np.diff(spectrogram, axis=0, prepend=spectrogram[:1])).sum(axis=0) / max(1, len(spectrogram) - 1)
    return np.concatenate([logmel_statistics(spectrogram), deltas])


def measure_sounds(features: Iterable[np.ndarray], processor) -> dict[str, float]:
    """`Modality.measure` of audio, of log-mel values."""
    mean, std = measure_mean_std(features, processor)
    return {"mean": round(mean, 5), "std": round(std, 5)}


AUDIO = Modality(
    name="audio",
    column_type=datasets.Audio,
    column_names=("audio",),
    extensions=sound_extensions,
    decode=audio_features,
    stream=streamed_features,
    facts=sound_facts,
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
    measure=measure_sounds,
    unnormalised={"do_normalize": False},
    picture=spectrogram_picture,
    classifier="BridleForAudioClassification",
    auto_classifier="AutoModelForAudioClassification",
    feature_pipeline="BridleAudioFeatureExtractionPipeline",
    task="audio-classification",
    baselines={"logmel": logmel_statistics, "logmel-delta": logmel_deltas},
)
