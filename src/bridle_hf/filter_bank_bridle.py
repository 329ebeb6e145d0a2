"""Log-mel filter banks as Kaldi computes them."""

import math
from functools import lru_cache

import torch
from transformers.utils import logging

from .checks_bridle import TINY, check_number

logger = logging.get_logger(__name__)

FRAME_MS, HOP_MS, FMIN = 25.0, 10.0, 20.0  # defaults, Kaldi's
PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps  # Kaldi's floor under the logarithm, in every dtype
MAX_WINDOW = 2**18  # samples of a window, of settings: 25 ms at 10 MHz
FRAMES_AT_ONCE = 8192  # 82 s: a filter bank of hours takes no more memory than its result beside that of these frames
EMPTY_SHARE = 0.05  # of the filters that may hold no frequency without a warning; at 16 kHz one of 128 does


def frame_count(
    num_samples: int, sampling_rate: int = 16000, frame_ms: float = FRAME_MS, hop_ms: float = HOP_MS
) -> int:
    """Number of whole windows of `frame_ms`, `hop_ms` apart, in `num_samples` samples; 0 where not one fits."""
    window, hop = window_and_hop(sampling_rate, frame_ms, hop_ms)
    return 0 if num_samples < window else 1 + (num_samples - window) // hop


def kaldi_fbank(
    waveforms: torch.Tensor,
    sampling_rate: int = 16000,
    num_mel_bins: int = 128,
    fmin: float = FMIN,
    fmax: float | None = None,
    frame_ms: float = FRAME_MS,
    hop_ms: float = HOP_MS,
) -> torch.Tensor:
    """Log-mel filter bank energies as Kaldi computes them.

    Equal to `torchaudio.compliance.kaldi.fbank(..., htk_compat=True, use_energy=False, window_type="hanning",
    dither=0.0)`: 25 ms symmetric Hanning window every 10 ms, only windows that fit (snip_edges), the mean of each
    window removed, pre-emphasis 0.97, power spectrum, triangular filters from 20 Hz to the Nyquist frequency, natural
    logarithm above a floor of 1.19e-7. At 16 kHz, the lowest of 128 filters are narrower than the 31.25 Hz between
    two DFT bins, and the fourth holds no bin at all: it stays at the floor, -15.94, as in Kaldi.

    Args:
        waveforms: (..., samples), float32 or float64, any device; BRIDLE's scale is [-1, 1].
        sampling_rate: in Hz.
        num_mel_bins: number of filters.
        fmin, fmax: where the lowest filter begins and the highest ends, in Hz; half of the rate without `fmax`. Kaldi's
            low_freq and high_freq.
        frame_ms, hop_ms: length of a window and distance of two, in ms, cut to whole samples. Kaldi's frame_length and
            frame_shift.

    Returns:
        (..., frames, num_mel_bins), dtype and device of `waveforms`; frames as of `frame_count`.

    Raises:
        ValueError: `waveforms` is neither float32 nor float64, or shorter than one window.
    """
    if waveforms.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"waveforms has dtype {waveforms.dtype}; kaldi_fbank takes float32 or float64.")
    size, hop = window_and_hop(sampling_rate, frame_ms, hop_ms)
    if waveforms.shape[-1] < size:
        raise ValueError(f"waveforms has {waveforms.shape[-1]} samples; one window takes {size}.")
    band = fmin, sampling_rate / 2 if fmax is None else fmax
    window, filters = window_and_filters(sampling_rate, num_mel_bins, size, band, waveforms.dtype, waveforms.device)

    # The order of the next operations is Kaldi's and torchaudio's: bins far below the loudest one consist of rounding
    # errors, and algebraically equal shortcuts (one pre-emphasis for the whole clip) end up 5e-3 apart on real clips.
    def log_mel(frames: torch.Tensor) -> torch.Tensor:
        frames = frames - frames.mean(-1, keepdim=True)
        frames = frames[..., 1:] - PREEMPHASIS * frames[..., :-1]  # the first sample is dropped: its window weight is 0
        fft_size = 2 * (filters.shape[0] - 1)
        # in place from here on: on a CPU, memory that is new costs as much as what is computed into it
        frames = torch.nn.functional.pad(frames.mul_(window[1:]), (1, fft_size - size))  # (..., t, fft_size)
        spectrum = torch.fft.rfft(frames)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # (..., t, fft_size / 2 + 1)
        return (power @ filters).clamp_(min=FLOOR).log_()  # (..., t, num_mel_bins)

    frames = waveforms.unfold(-1, size, hop)  # (..., T, size), a view
    parts = [log_mel(part) for part in frames.split(FRAMES_AT_ONCE, dim=-2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def window_and_hop(sampling_rate: int, frame_ms: float, hop_ms: float) -> tuple[int, int]:
    """Samples of a window, and from one to the next."""
    return int(sampling_rate * frame_ms * 0.001), int(sampling_rate * hop_ms * 0.001)  # in torchaudio's order


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # tables made inside inference mode could not be used by autograd later
def window_and_filters(
    sampling_rate: int,
    num_mel_bins: int,
    size: int,
    band: tuple[float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hanning window (size,) and mel filters (fft_size / 2 + 1, num_mel_bins), triangles on the mel axis over `band`.

    The filters are computed in float32 as in Kaldi: a weight near zero is mostly rounding, and the logarithm shows it.
    """
    window = torch.hann_window(size, periodic=False, dtype=dtype, device=device)

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    fft_size = 1 << (size - 1).bit_length()
    hertz = (sampling_rate / fft_size) * torch.arange(fft_size // 2, dtype=torch.float32, device="cpu")
    bins = 1127.0 * (1.0 + hertz / 700.0).log()  # (fft_size / 2,)
    lowest, highest = map(mel, band)
    width = (highest - lowest) / (num_mel_bins + 1)
    index = torch.arange(num_mel_bins, device="cpu")[:, None]
    left, centre, right = (lowest + (index + shift) * width for shift in (0.0, 1.0, 2.0))  # (mel, 1)
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0.0)
    empty = int((filters == 0).all(dim=1).sum())
    if empty > EMPTY_SHARE * num_mel_bins:
        logger.warning(
            f"{empty} of the {num_mel_bins} mel filters are too narrow to hold a frequency at {sampling_rate} Hz with "
            f"windows of {size} samples: their values never change. Take fewer num_mel_bins or longer frame_ms."
        )
    filters = torch.nn.functional.pad(filters, (0, 1))  # Kaldi leaves the Nyquist bin out
    return window, filters.T.contiguous().to(device, dtype)


def check_band(fmin: float, fmax: float | None, sampling_rate: int) -> None:
    """Raise a `ValueError` for mel filters that do not lie between 0 and half of the sampling rate."""
    half = sampling_rate / 2
    takes = f"0 Hz or more and less than fmax, which is at most half of the sampling rate, {half:g}"
    check_number("fmin", fmin, 0, half, takes)
    if fmax is not None:
        check_number("fmax", fmax, TINY, half, f"a number of Hz up to half of the sampling rate, {half:g}")
    if fmin >= (half if fmax is None else fmax):
        raise ValueError(f"fmin is {fmin}; it takes {takes}.")


def check_frames(frame_ms: float, hop_ms: float, sampling_rate: int) -> None:
    """Raise a `ValueError` for frames of less than two samples or far too many, or a hop of less than one."""
    for name, value, least in (("frame_ms", frame_ms, 2), ("hop_ms", hop_ms, 1)):
        takes = f"{least} to {MAX_WINDOW} samples in ms, at {sampling_rate} Hz {1000 * least / sampling_rate:g} or more"
        check_number(name, value, 0, math.inf, takes)
        if not least <= window_and_hop(sampling_rate, value, value)[0] <= MAX_WINDOW:
            raise ValueError(f"{name} is {value}; it takes {takes}.")
