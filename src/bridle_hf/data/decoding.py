"""Bytes of audio files, images and videos to arrays, without a system FFmpeg.

Audio: soundfile decodes wav, flac, ogg and mp3; PyAV, which bundles FFmpeg, the rest (the extra `av`).
"""

import io
from functools import lru_cache

import fsspec
import numpy as np
import soundfile
import torch
import torchaudio


class BadClipError(ValueError):
    """A clip that cannot be used: corrupt, empty, too short, or not finite. Loaders skip it, count it and name it."""


def decode_audio(audio: dict | str | None, sampling_rate: int, min_seconds: float = 0.0) -> np.ndarray:
    """Decode one clip, mix it to mono and resample it.

    Args:
        audio: `{"bytes", "path"}` as an undecoded `datasets.Audio` column gives it, or a path or URL alone.
        sampling_rate: rate of the result in Hz.
        min_seconds: shortest clip that is accepted.

    Returns:
        float32 waveform (samples,); full scale is 1.

    Raises:
        BadClipError: where the clip is missing, corrupt, empty, shorter than `min_seconds` or holds NaN or inf.
    """
    try:
        content = read_bytes(audio)
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)  # (samples, channels)
    except soundfile.LibsndfileError as error:
        samples, rate = _decode_with_av(content, str(error))
    except OSError as error:
        raise BadClipError(f"cannot be read: {error}") from error
    waveform = samples.mean(axis=1)
    if len(waveform) == 0 or len(waveform) < min_seconds * rate:
        raise BadClipError(f"too short: {len(waveform) / rate:.3f} s, at least {min_seconds} s are needed")
    if not np.isfinite(waveform).all():
        raise BadClipError("holds NaN or infinite samples")
    if rate != sampling_rate:
        waveform = _resampler(rate, sampling_rate)(torch.from_numpy(waveform)).numpy()
    return waveform


def read_bytes(audio: dict | str | None) -> bytes:
    """What an undecoded column of `datasets` holds, or the file at a path or URL.

    Raises:
        BadClipError: neither is there.
    """
    if isinstance(audio, str):
        audio = {"bytes": None, "path": audio}
    if audio is None or (audio.get("bytes") is None and not audio.get("path")):
        raise BadClipError("holds neither bytes nor a path")
    if audio.get("bytes") is not None:
        return audio["bytes"]
    with fsspec.open(audio["path"], "rb") as file:
        return file.read()


def _decode_with_av(content: bytes, reason: str) -> tuple[np.ndarray, int]:
    """Decode the first audio stream of any container FFmpeg reads: ((samples, channels) float32, rate)."""
    try:
        import av
    except ImportError:
        raise BadClipError(
            f"cannot be decoded by soundfile ({reason}); for more formats `pip install bridle-hf[av]`"
        ) from None
    try:
        with av.open(io.BytesIO(content)) as container:
            resampler = av.AudioResampler(format="fltp")  # changes the sample format only, neither rate nor channels
            frames = [frame for raw in container.decode(audio=0) for frame in resampler.resample(raw)]
            frames += resampler.resample(None)
            return np.concatenate([frame.to_ndarray() for frame in frames], axis=1).T, frames[0].sample_rate
    except (av.FFmpegError, IndexError, ValueError) as error:  # no audio stream, or no frame in it
        raise BadClipError(f"cannot be decoded: {error}") from error


@lru_cache(maxsize=16)
def _resampler(rate: int, sampling_rate: int) -> torchaudio.transforms.Resample:
    """One resampler a pair of rates: it keeps its kernel, which takes longer to compute than to apply."""
    return torchaudio.transforms.Resample(rate, sampling_rate)


def clip_features(audio, feature_extractor, min_seconds: float = 0.0) -> np.ndarray:
    """Decode one clip into normalised, unpadded log-mel features (frames, mel bins).

    Raises:
        BadClipError: where `decode_audio` or the feature extractor refuses the clip.
    """
    waveform = decode_audio(audio, feature_extractor.sampling_rate, min_seconds)
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
