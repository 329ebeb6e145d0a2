"""Audio front-end of BRIDLE: Kaldi log-mel filter banks of clips, padded, masked and normalised."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType, logging

from .checks_bridle import TINY, check_kind, check_number
from .filter_bank_bridle import (
    FLOOR,
    FMIN,
    FRAME_MS,
    HOP_MS,
    PREEMPHASIS,
    check_band,
    check_frames,
    frame_count,
    kaldi_fbank,
    window_and_filters,
    window_and_hop,
)

logger = logging.get_logger(__name__)

INT16_SCALE = 32768.0
# What may be resampled. Beyond that ratio of the rates a header is broken; so many samples are 400 MB.
MAX_RATE_RATIO, MAX_SAMPLES = 1000, 100_000_000
MAX_CHANNELS = 64  # of a clip whose shorter axis is taken for its channels
FAR_ABOVE = 4  # times the extractor's own `max_length`: samples given for frames
LOUD = 256.0  # no recording scaled to [-1, 1] peaks here, but int16 samples cast to float do
ABSURD = 2.0**31  # nothing peaks beyond, not even int32 samples cast to float: the power of 1e18 is infinite in float32
MAX_MEL_BINS, MAX_RATE, MAX_FRAMES = 4096, 10_000_000, 10_000_000  # of settings; so many frames are 28 hours


def can_resample(num_samples: int, rate: float, sampling_rate: int) -> bool:
    """Whether a clip of so many samples at `rate` can be brought to `sampling_rate`, in Hz."""
    if not isinstance(rate, Real):
        return False
    in_range = sampling_rate / MAX_RATE_RATIO <= rate <= sampling_rate * MAX_RATE_RATIO
    return in_range and num_samples * (sampling_rate / rate) <= MAX_SAMPLES


def front_end(extractor: "BridleFeatureExtractor") -> dict[str, np.ndarray]:
    """Everything that log-mel frames are computed from, for programs without PyTorch.

    Returns:
        `window` (size,) float32, its first weight 0; `filters` (fft_size / 2 + 1, num_mel_bins) float32; and as numbers
        `sampling_rate` in Hz, `hop` in samples, `preemphasis`, `floor` under the logarithm, `mean` and `std`: a frame
        is (log-mel - mean) / (2 std), or left as it is where the extractor does not normalise (0 and 0.5).
    """
    window, filters = extractor.window_and_filters()
    mean, std = (extractor.mean, extractor.std) if extractor.do_normalize else (0.0, 0.5)
    numbers = {"sampling_rate": extractor.sampling_rate, "hop": extractor.hop}
    numbers |= {"preemphasis": PREEMPHASIS, "floor": FLOOR, "mean": mean, "std": std}
    tables = {"window": window.numpy(), "filters": filters.numpy()}
    return tables | {name: np.array(value) for name, value in numbers.items()}


class BridleFeatureExtractor(SequenceFeatureExtractor):
    """Turns clips into normalised log-mel frames: `input_values` and `attention_mask`.

    Per clip: mean of the waveform removed, `kaldi_fbank`, (x - mean) / (2 std), padding with zeros after the
    normalisation. A clip gives the same frames alone and in a padded batch.

    Args:
        num_mel_bins: mel filters, the width of `input_values`.
        sampling_rate: the rate in Hz that clips must have; nothing is resampled.
        max_length: frames (of `hop_ms` each) that `padding="max_length"` pads to and truncation cuts to. The reference
            code takes 1024 for 10 s clips and 512 for ESC-50.
        mean, std: of the log-mel values of the data; the defaults are AudioSet's, and for ESC-50 the paper has
            -6.6268077 and 5.358466 (table 5). `measure_mean_std` measures them.
        do_normalize: False leaves the log-mel values as they are.
        pad_to_multiple_of: frames of one patch. Padded lengths are multiples of it, and shorter clips are refused.
        pad_short: take clips shorter than a patch, too, padded; otherwise they are refused.
        padding_value: what fills padded frames.
        return_attention_mask: whether calls return `attention_mask` unless they say otherwise.
        fmin, fmax: where the lowest mel filter begins and the highest ends, in Hz; half of `sampling_rate` without.
        frame_ms, hop_ms: length of the window of a frame and distance of two frames, in ms, cut to whole samples.
        num_channels: channels of `input_values`. With more than one, clips are (channels, samples) or (samples,
            channels), and a mono clip is repeated.
        channel: of `num_channels` 1: which channel of a file is taken, from 0 on; without, all of them are averaged.
            Whoever reads files asks `choose_channels`; the clips of a call are mono.

    Raises:
        ValueError: a number that is not finite or out of its range, such as an `std` that is not positive or a
            `max_length` shorter than one patch; `padding_side` is not "right"; a `channel` of several `num_channels`.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        num_mel_bins: int = 128,
        sampling_rate: int = 16000,
        max_length: int = 1024,
        mean: float = -4.4446096,
        std: float = 3.3216383,
        do_normalize: bool = True,
        pad_to_multiple_of: int = 16,
        padding_value: float = 0.0,
        return_attention_mask: bool = True,
        pad_short: bool = False,
        fmin: float = FMIN,
        fmax: float | None = None,
        frame_ms: float = FRAME_MS,
        hop_ms: float = HOP_MS,
        num_channels: int = 1,
        channel: int | None = None,
        **kwargs,
    ):
        kwargs.pop("feature_size", None)  # written by `to_dict`; always `num_mel_bins`
        check_number("num_mel_bins", num_mel_bins, 1, MAX_MEL_BINS, f"1 to {MAX_MEL_BINS} filters", whole=True)
        takes = f"100 Hz or more, a sample a frame of 10 ms, and at most {MAX_RATE}"
        check_number("sampling_rate", sampling_rate, 100, MAX_RATE, takes, whole=True)
        check_band(fmin, fmax, sampling_rate)
        check_frames(frame_ms, hop_ms, sampling_rate)
        check_number("num_channels", num_channels, 1, MAX_CHANNELS, f"1 to {MAX_CHANNELS} channels", whole=True)
        if channel is not None:
            check_number("channel", channel, 0, MAX_CHANNELS - 1, "the number of a channel, from 0 on", whole=True)
            if num_channels > 1:
                raise ValueError(f"channel is {channel} and num_channels {num_channels}; a chosen channel is one.")
        check_number("mean", mean, -math.inf, math.inf, "a finite number, the mean of the data's log-mel values")
        check_number("std", std, TINY, math.inf, "a positive number, the deviation of the data's log-mel values")
        check_number("padding_value", padding_value, -math.inf, math.inf, "a finite number")
        check_number("pad_to_multiple_of", pad_to_multiple_of, 1, MAX_FRAMES, "the frames of one patch", whole=True)
        super().__init__(feature_size=num_mel_bins, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if self.padding_side != "right":
            raise ValueError(f"padding_side is {self.padding_side!r}; clips are only padded on the 'right'.")
        self.num_mel_bins = num_mel_bins
        self.mean = float(mean)
        self.std = float(std)
        self.do_normalize = do_normalize
        self.pad_to_multiple_of = pad_to_multiple_of
        self.max_length = self._checked_max_length(max_length)
        self.return_attention_mask = return_attention_mask
        self.pad_short = pad_short
        self.fmin, self.fmax, self.frame_ms, self.hop_ms = fmin, fmax, frame_ms, hop_ms
        self.num_channels, self.channel = num_channels, channel

    @property
    def window(self) -> int:
        """Samples that a frame sees."""
        return window_and_hop(self.sampling_rate, self.frame_ms, self.hop_ms)[0]

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return window_and_hop(self.sampling_rate, self.frame_ms, self.hop_ms)[1]

    @property
    def hop_seconds(self) -> float:
        """Seconds from frame to frame: 10 ms, or less where that is no whole number of samples: 9.977 at 22.05 kHz."""
        return self.hop / self.sampling_rate

    def seconds(self, frames: int) -> float:
        """Length in seconds of what `frames` frames see."""
        return frames * self.hop_seconds + self.window / self.sampling_rate - self.hop_seconds

    def frame_count(self, num_samples: int) -> int:
        """Frames of a clip of so many samples, see `frame_count`."""
        return frame_count(num_samples, self.sampling_rate, self.frame_ms, self.hop_ms)

    def window_and_filters(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of a frame (`window`,) and mel filters (frequencies, num_mel_bins), float32."""
        band = self.fmin, self.sampling_rate / 2 if self.fmax is None else self.fmax
        where = torch.float32, torch.device("cpu")
        found = window_and_filters(self.sampling_rate, self.num_mel_bins, self.window, band, *where)
        return tuple(table.clone() for table in found)  # the originals are shared by all extractors

    def choose_channels(self, samples):
        """Samples (n, channels) of a recording, an array or tensor, as the extractor takes them: (n,), or with
        `num_channels` above 1 (n, num_channels).

        Raises:
            ValueError: the recording lacks the channel, or has another number of them.
        """
        there = samples.shape[1]
        if self.num_channels == 1 and self.channel is None:
            return samples.mean(1)
        if self.num_channels == 1 and self.channel < there:
            return samples[:, self.channel]
        if self.num_channels > 1 and there in (1, self.num_channels):
            return samples[:, [0] * self.num_channels] if there == 1 else samples
        takes = f"channel {self.channel}" if self.num_channels == 1 else f"1 or {self.num_channels} channels"
        raise ValueError(f"has {there} channel{'s' * (there > 1)}; the feature extractor takes {takes}")

    @classmethod
    def from_dict(cls, feature_extractor_dict, **kwargs):
        check_kind(feature_extractor_dict, "feature_extractor")
        return super().from_dict(feature_extractor_dict, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = "max_length",
        max_length: int | None = None,
        truncation: bool = True,
        return_tensors: str | TensorType | None = None,
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Features of one clip or a batch of clips; the result always has a batch dimension.

        Args:
            raw_speech: one mono clip (array, tensor or list of floats), a list of clips, or an array or tensor
                (B, samples). Scale: floats are samples in [-1, 1]; int16 is divided by 32768. Tensors are processed on
                their own device. An array of shape (2, samples) is refused, since it may be a stereo clip; pass two
                clips as a list. With `num_channels` above 1, a clip is (channels, samples) or (samples, channels), or
                mono, and a batch in one array has an axis more.
            sampling_rate: of `raw_speech` in Hz, to be checked against the extractor's.
            padding: "max_length" pads to `max_length` frames; "longest" or True to the longest clip of the batch; both
                then up to a multiple of `pad_to_multiple_of`. False or "do_not_pad" pads nothing.
            max_length: frames; the extractor's `max_length` by default.
            truncation: cut clips to their first `max_length` frames.
            return_tensors: "pt", "np", or None for a list of numpy arrays, one a clip.
            return_attention_mask: overrides the extractor's setting.

        Returns:
            `input_values` (B, frames, num_mel_bins) float32, with several channels (B, frames, num_channels,
            num_mel_bins); and, if asked for, `attention_mask` (B, frames) int64: 1 for the 1 + (samples - 400) // 160
            frames (at 16 kHz) a clip really has, 0 for padding.

        Raises:
            ValueError: wrong sampling rate or channels; NaN, inf or samples beyond 2^31, as of a damaged file;
                samples that are neither int16 nor floats; an empty clip or one shorter than a patch; unknown `padding`;
                a clip longer than `max_length` with `padding="max_length"` and `truncation=False`; unequal lengths that
                cannot become one tensor.
        """
        self._check_sampling_rate(sampling_rate)
        max_length = self.max_length if max_length is None else self._checked_max_length(max_length)
        clips = _split(raw_speech, self.num_channels)
        names = ["raw_speech"] if len(clips) == 1 else [f"raw_speech[{i}]" for i in range(len(clips))]
        # Clip by clip: no work is spent on padding, a clip's frames stay in the processor's cache, and a clip cannot
        # depend on its neighbours.
        features = [self._log_mel(c, n, max_length if truncation else None) for c, n in zip(clips, names, strict=True)]
        lengths = [len(x) for x in features]
        padded = self._padded_lengths(lengths, padding, max_length)
        if return_tensors is not None and len(set(padded)) > 1:
            raise ValueError(
                f"padding is {padding!r} and the clips have {min(lengths)} to {max(lengths)} frames, so return_tensors="
                f"{return_tensors!r} cannot stack them; use padding='longest' or return_tensors=None."
            )

        input_values, attention_mask = [], []
        for x, length, total in zip(features, lengths, padded, strict=True):
            if self.do_normalize:
                x = x.sub_(self.mean).div_(2 * self.std)  # (frames, ...), of this call alone: hours need no copies
            values = x
            if total > length:
                values = x.new_full((total, *x.shape[1:]), self.padding_value)
                values[:length] = x
            mask = torch.zeros(total, dtype=torch.int64, device=x.device)
            mask[:length] = 1
            input_values.append(values)
            attention_mask.append(mask)
        data = {"input_values": input_values}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            data["attention_mask"] = attention_mask
        if return_tensors == "pt":
            data = {key: torch.stack(rows) for key, rows in data.items()}
        else:
            data = {key: [row.cpu().numpy() for row in rows] for key, rows in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def pad(
        self,
        processed_features: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Pad features that `padding=False` gave to one length, as `DataCollatorWithPadding` asks for.

        As of any feature extractor of transformers, but `pad_to_multiple_of` is the extractor's by default, so that the
        model finds whole patches.
        """
        if pad_to_multiple_of is None:
            pad_to_multiple_of = self.pad_to_multiple_of
        settings = padding, max_length, truncation, pad_to_multiple_of
        name = self.model_input_names[0]
        if isinstance(processed_features, list | tuple):
            self._check_rows(processed_features, name)
        if self.num_channels == 1:
            return super().pad(processed_features, *settings, **options)
        if isinstance(processed_features, list | tuple):
            processed_features = {key: [row[key] for row in processed_features] for key in processed_features[0]}
        arrays = [x if hasattr(x, "reshape") else np.asarray(x) for x in processed_features[name]]
        flat = {name: [x.reshape(len(x), -1) for x in arrays]}  # the library pads two axes and no more
        padded = super().pad(processed_features | flat, *settings, **options)
        whole = hasattr(padded[name], "ndim") and padded[name].ndim > 1  # and no list or array of arrays
        rows = [x.reshape(*x.shape[:-1], self.num_channels, -1) for x in ([padded[name]] if whole else padded[name])]
        padded[name] = rows[0] if whole else rows
        return padded

    def _check_rows(self, rows: Sequence[Mapping], name: str) -> None:
        """Raise a `ValueError` if there are no rows, or a row does not have the shape of the features of one clip."""
        if not rows:
            raise ValueError("processed_features is empty; it takes the features of one clip or more.")
        channels = () if self.num_channels == 1 else (self.num_channels,)
        for row in rows:
            if not isinstance(row, Mapping) or name not in row or row.keys() != rows[0].keys():
                got = f"keys {list(row)}" if isinstance(row, Mapping) else type(row).__name__
                raise ValueError(f"processed_features has a row of {got}; it takes mappings of {name} and equal keys.")
        for shape in (np.shape(row[name]) for row in rows):
            if shape[1:] != (*channels, self.num_mel_bins):
                takes = ", ".join(map(str, ("frames", *channels, self.num_mel_bins)))
                first = "; take [0] of what the extractor gives of one clip" if shape[:1] == (1,) else ""
                raise ValueError(f"processed_features has {name} of shape {shape}; it takes ({takes}) of each{first}.")

    def _log_mel(self, raw_clip: Any, name: str, max_frames: int | None) -> torch.Tensor:
        """Log-mel values (frames, mel) or (frames, channels, mel) of one clip, before normalisation."""
        clip = self.waveform(raw_clip, name)  # (samples,) or (channels, samples)
        samples, window, hop = clip.shape[-1], self.window, self.hop
        frames = self.frame_count(samples)
        if frames < self.pad_to_multiple_of and not self.pad_short:
            raise ValueError(
                f"{name} has {samples} samples; a clip takes at least "
                f"{window + (self.pad_to_multiple_of - 1) * hop} samples at {self.sampling_rate} Hz, the "
                f"{self.pad_to_multiple_of} frames of one patch; an extractor with pad_short=True pads it."
            )
        low, high = (bound.item() for bound in clip.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} contains NaN or inf; a clip takes finite samples only.")
        if max(-low, high) > ABSURD:
            raise ValueError(
                f"{name} peaks at {max(-low, high):.3g}, where no recording does: it is damaged. A clip takes floats "
                "in [-1, 1]."
            )
        if max(-low, high) > LOUD:
            logger.warning_once(
                f"raw_speech has a clip of floats that peaks above {LOUD:.0f}; floats are taken to be in [-1, 1]: pass "
                "int16 samples as int16, or divide them by 32768."
            )
        if frames == 0:  # less than one window
            clip = torch.nn.functional.pad(clip, (0, window - samples))
        clip = clip - clip.mean(
            -1, keepdim=True
        )  # reference code; only rounding differs, each window loses its own mean too
        if max_frames is not None and frames > max_frames:
            clip = clip[..., : window + (max_frames - 1) * hop]
        settings = self.fmin, self.fmax, self.frame_ms, self.hop_ms
        values = kaldi_fbank(clip, self.sampling_rate, self.num_mel_bins, *settings)
        return values if values.ndim == 2 else values.transpose(0, 1).contiguous()

    def waveform(self, clip: Any, name: str, mix: bool = False) -> torch.Tensor:
        """One clip as a float32 tensor in [-1, 1]: (samples,), or with `num_channels` above 1 (channels, samples).

        Args:
            clip: array, tensor or numbers, floats or int16.
            name: of the clip in errors.
            mix: make one channel of a clip of two axes as `choose_channels` does, the shorter axis being that of
                channels; otherwise it is refused.

        Raises:
            ValueError: another shape, dtype or number of channels, or nothing in it.
        """
        clip = _as_floats(clip, name)
        axis = channel_axis(clip.shape) if mix or self.num_channels > 1 else None
        if axis is None and clip.ndim == 2 and clip.shape[0] == 1:
            clip = clip[0]
        if clip.ndim == 1 and self.num_channels > 1:
            axis, clip = 0, clip[None]
        if clip.ndim != 1 and axis is None:
            takes = "channels before or after samples" if mix or self.num_channels > 1 else "average the channels"
            kind = "mono, (samples,)" if self.num_channels == 1 else f"of {self.num_channels} channels"
            raise ValueError(f"{name} has shape {tuple(clip.shape)}; a clip is {kind}: {takes}.")
        if axis is None:
            return clip
        try:
            chosen = self.choose_channels(clip.movedim(axis, 1))  # (samples,) or (samples, channels)
        except ValueError as error:
            raise ValueError(f"{name} {error}.") from error
        return chosen if chosen.ndim == 1 else chosen.T

    def _padded_lengths(self, lengths: list[int], padding: bool | str, max_length: int) -> list[int]:
        if padding is False or padding == "do_not_pad":
            return lengths
        if padding is True or padding == "longest":
            total = max(lengths)
        elif padding == "max_length":
            total = max_length
            if max(lengths) > total:
                raise ValueError(
                    f"raw_speech has a clip of {max(lengths)} frames, more than max_length={total}; use "
                    "truncation=True or padding='longest'."
                )
            if total > FAR_ABOVE * self.max_length and total > 2 * max(lengths):
                logger.warning_once(
                    f"max_length={total} counts frames of {1000 * self.hop_seconds:.3g} ms, not samples, and this "
                    f"extractor's own is {self.max_length}: clips of at most {max(lengths)} frames are padded to "
                    f"{total}."
                )
        else:
            raise ValueError(
                f"padding is {padding!r}; it takes 'max_length', 'longest' (or True) or 'do_not_pad' (or False)."
            )
        return [math.ceil(total / self.pad_to_multiple_of) * self.pad_to_multiple_of] * len(lengths)

    def _checked_max_length(self, max_length: int) -> int:
        least = self.pad_to_multiple_of
        takes = f"at least {least} frames, one patch, and at most {MAX_FRAMES}"
        check_number("max_length", max_length, least, MAX_FRAMES, takes, whole=True)
        return max_length

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning(
                f"It is strongly recommended to pass the `sampling_rate` argument to `{type(self).__name__}()`. "
                "Failing to do so can result in silent errors that might be hard to debug."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate is {sampling_rate!r}; this extractor takes clips at {self.sampling_rate} Hz: resample "
                "them first."
            )


def _split(raw_speech: Any, num_channels: int) -> list:
    """The clips of what a user may pass: one clip, a list of clips, an array (B, samples) or of an axis more."""
    if isinstance(raw_speech, list | tuple):
        if len(raw_speech) == 0:
            raise ValueError("raw_speech is an empty list; it takes a clip or a list of clips.")
        first = raw_speech[0]
        is_sample = isinstance(first, Real) or getattr(first, "ndim", 1) == 0
        return [raw_speech] if is_sample else list(raw_speech)
    if not isinstance(raw_speech, np.ndarray | torch.Tensor):
        raise ValueError(
            f"raw_speech is of type {type(raw_speech).__name__}; it takes an array, a tensor, a list of floats or a "
            "list of clips."
        )
    if raw_speech.ndim < (2 if num_channels == 1 else 3):
        return [raw_speech]
    shape = tuple(raw_speech.shape)
    if raw_speech.ndim == 2 and (shape[0] == 2 or 0 < shape[1] <= 8):
        raise ValueError(
            f"raw_speech has shape {shape}, which looks like a stereo clip; it takes mono: average the channels, or "
            "pass several clips as a list."
        )
    if shape[0] == 0:
        raise ValueError(f"raw_speech has shape {shape}, an empty batch; it takes at least one clip.")
    return list(raw_speech)


def _as_floats(clip: Any, name: str) -> torch.Tensor:
    """A clip of whatever shape as a float32 tensor in [-1, 1]."""
    if not isinstance(clip, torch.Tensor):
        try:
            array = np.asarray(clip)
        except ValueError as error:  # numbers and arrays side by side
            raise ValueError(f"{name} is of type {type(clip).__name__}; a clip takes an array of samples.") from error
        if array.dtype.kind == "f" or array.size == 0:
            array = np.require(array, np.float32, ["C", "W"])  # torch takes no reversed, foreign or read-only memory
        elif array.dtype.kind == "i" and array.dtype.itemsize == 2:
            array = np.require(array, np.int16, ["C", "W"])
        else:
            raise ValueError(f"{name} has dtype {array.dtype}; a clip takes int16 samples or floats in [-1, 1].")
        clip = torch.from_numpy(array)
    if clip.numel() == 0:
        raise ValueError(f"{name} is empty; a clip takes samples.")
    if clip.dtype == torch.int16:
        clip = clip.float() / INT16_SCALE
    if not clip.dtype.is_floating_point:
        raise ValueError(f"{name} has dtype {clip.dtype}; a clip takes int16 samples or floats in [-1, 1].")
    return clip.float()


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of a clip's channels, the shorter one of two; None where neither can be."""
    if len(shape) != 2 or min(shape) > MAX_CHANNELS:
        return None
    return 0 if shape[0] <= shape[1] else 1


@torch.no_grad()
def measure_mean_std(
    clips: Iterable,
    feature_extractor: BridleFeatureExtractor | None = None,
    sampling_rate: int | None = None,
    progress: bool = False,
) -> tuple[float, float]:
    """Mean and (population) standard deviation of the log-mel values of a dataset, one clip in memory at a time.

    Every valid bin of every clip counts once; padding never does, and frames past the extractor's `max_length` do not.

    Args:
        clips: waveforms as `BridleFeatureExtractor` takes them, or log-mel features (frames, num_mel_bins), with
            several channels (frames, channels, num_mel_bins), that were not normalised and hold no padding.
        feature_extractor: supplies everything but mean and std; the default one otherwise.
        sampling_rate: of the waveforms in Hz.
        progress: show a bar.

    Returns:
        (mean, std), for `BridleFeatureExtractor(mean=mean, std=std)`.

    Raises:
        ValueError: `clips` is empty, or a clip is not what the extractor takes.
    """
    extractor = BridleFeatureExtractor() if feature_extractor is None else feature_extractor
    if sampling_rate is not None:
        extractor._check_sampling_rate(sampling_rate)
    count, total, squares = 0, 0.0, 0.0
    for i, clip in enumerate(logging.tqdm(clips, disable=not progress, unit="clip")):
        axes = 2 if extractor.num_channels == 1 else 3
        if getattr(clip, "ndim", 1) == axes and clip.shape[-1] == extractor.num_mel_bins:
            features = torch.as_tensor(clip)[: extractor.max_length]
            if not torch.isfinite(features).all():
                raise ValueError(f"clips[{i}] contains NaN or inf; it takes finite features only.")
        else:
            features = extractor._log_mel(clip, f"clips[{i}]", extractor.max_length)
        features = features.double()
        count += features.numel()
        total += features.sum().item()
        squares += features.square().sum().item()
    if count == 0:
        raise ValueError("clips is empty; it takes at least one clip.")
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean**2, 0.0))


__all__ = ["BridleFeatureExtractor", "frame_count", "kaldi_fbank", "measure_mean_std"]
