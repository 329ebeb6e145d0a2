"""Kaldi's log-mel filter banks twice: written out from their definition, and recorded from torchaudio 2.11.

    python tests/reference/kaldi.py

records `kaldi.safetensors` anew where torchaudio is installed: for each sampling rate and number of filters
`signal.RATE.BINS` (samples,), float32, of odd length, and `fbank.RATE.BINS` (frames, bins), computed in float64; and
for each of `VARIANTS` `fbank.NAME` of `signal(RATE)`. In float32, bins far below the loudest one are rounding errors of
the FFT, which differ between processors.
"""

from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_suffix(".safetensors")
SETTINGS = [(8000, 23), (11025, 40), (16000, 40), (16000, 128), (22050, 64), (44100, 128), (48000, 80)]
# Name -> rate, bins, and what differs, in our words.
VARIANTS = {
    "32 kHz, all frequencies": (32000, 64, {"fmax": 16000}),
    "32 kHz, a band": (32000, 64, {"fmin": 50, "fmax": 14000}),
    "from 0 Hz": (22050, 40, {"fmin": 0}),
    "a short window at 22.05 kHz": (22050, 40, {"frame_ms": 20, "hop_ms": 7.5}),
    "a long window": (8000, 40, {"frame_ms": 64, "hop_ms": 16, "fmax": 3800.5}),
    "a hop beyond the window at 44.1 kHz": (44100, 32, {"frame_ms": 12.5, "hop_ms": 20, "fmin": 1000}),
}
THEIR_WORDS = {"fmin": "low_freq", "fmax": "high_freq", "frame_ms": "frame_length", "hop_ms": "frame_shift"}
TORCHAUDIO = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0, "frame_shift": 10}


def fbank(
    waveform: np.ndarray, rate: int = 16000, bins: int = 128, fmin=20, fmax=None, frame_ms=25, hop_ms=10
) -> np.ndarray:
    """The definition in float64: (samples,) -> (frames, bins)."""
    size, hop = int(rate * frame_ms // 1000), int(rate * hop_ms // 1000)
    length = 1 << (size - 1).bit_length()
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(waveform, np.float64), size)[::hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - 0.97 * before) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1)))
    dft = np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(length // 2)) / length)
    power = np.abs(frames @ dft) ** 2
    edges = np.linspace(mel(fmin), mel(fmax or rate / 2), bins + 2)
    at = mel(np.arange(length // 2) * rate / length)
    filters = [
        np.maximum(0, np.minimum((at - low) / (middle - low), (high - at) / (high - middle)))
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    return np.log(np.maximum(power @ np.transpose(filters), 2**-23))


def mel(hertz):
    return 1127 * np.log1p(hertz / 700)


def signal(rate: int) -> np.ndarray:
    """Loud noise, faint noise, a chirp, an offset, a click, silence: a third of a second in all, of odd length."""
    rng, part = np.random.default_rng(rate), rate // 18
    time = np.arange(part) / rate
    parts = [
        0.3 * rng.standard_normal(part),
        1e-4 * rng.standard_normal(part),
        0.5 * np.sin(2 * np.pi * (50 + rate * time) * time),
        0.7 + 0.1 * rng.standard_normal(part),
        np.arange(part) == part // 2,
        np.zeros(part + 1),
    ]
    return np.concatenate(parts).astype(np.float32)


if __name__ == "__main__":
    import torch
    import torchaudio
    from safetensors.torch import save_file

    recorded = {}
    for rate, bins in SETTINGS:
        clip = torch.from_numpy(signal(rate))
        options = TORCHAUDIO | {"sample_frequency": rate, "num_mel_bins": bins}
        recorded[f"signal.{rate}.{bins}"] = clip
        recorded[f"fbank.{rate}.{bins}"] = torchaudio.compliance.kaldi.fbank(clip[None].double(), **options)
    for name, (rate, bins, changes) in VARIANTS.items():
        options = TORCHAUDIO | {"sample_frequency": rate, "num_mel_bins": bins}
        options |= {THEIR_WORDS[key]: float(value) for key, value in changes.items()}
        clip = torch.from_numpy(signal(rate))
        recorded[f"fbank.{name}"] = torchaudio.compliance.kaldi.fbank(clip[None].double(), **options)
    save_file(recorded, RECORDED, {"torchaudio": torchaudio.__version__})
