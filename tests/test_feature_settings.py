"""Bands, windows, hops and channels of the audio front-end, beside its defaults."""

import math

import pytest
import torch

from bridle_hf import filter_bank_bridle
from bridle_hf.feature_extraction_bridle import BridleFeatureExtractor, kaldi_fbank, measure_mean_std

RATE = 16000


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmin": -1}, "fmin is -1; it takes 0 Hz or more and less than fmax, .* half of the sampling rate, 8000"),
        ({"fmin": 8000}, "fmin is 8000; it takes"),
        ({"fmin": 4000, "fmax": 4000}, "fmin is 4000; it takes 0 Hz or more and less than fmax"),
        ({"fmax": 16000}, "fmax is 16000; it takes a number of Hz up to half of the sampling rate, 8000"),
        ({"fmax": 0}, "fmax is 0; it takes"),
        ({"frame_ms": 0.1}, "frame_ms is 0.1; it takes 2 to 262144 samples in ms, at 16000 Hz 0.125 or more"),
        ({"frame_ms": 1e9}, "frame_ms is 1000000000.0; it takes 2 to 262144 samples"),
        ({"hop_ms": 0}, "hop_ms is 0; it takes 1 to 262144 samples in ms, at 16000 Hz 0.0625 or more"),
        ({"hop_ms": math.nan}, "hop_ms is nan; it takes"),
        ({"num_channels": 0}, "num_channels is 0; it takes 1 to 64 channels"),
        ({"channel": -1}, "channel is -1; it takes the number of a channel, from 0 on"),
        ({"channel": 1, "num_channels": 2}, "channel is 1 and num_channels 2; a chosen channel is one"),
    ],
)
def test_settings_out_of_their_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        BridleFeatureExtractor(**settings)


def test_filters_that_hold_nothing_are_warned_of(monkeypatch):
    warnings = []
    monkeypatch.setattr(filter_bank_bridle.logger, "warning", warnings.append)
    for rate in (8000, 11025, 16000, 22050, 32000, 44100, 48000):
        kaldi_fbank(noise(rate), rate, 128)
    assert warnings == []
    kaldi_fbank(noise(8000), 8000, 128, frame_ms=10.0)
    (warning,) = warnings
    values = kaldi_fbank(noise(8000), 8000, 128, frame_ms=10.0)
    constant = int((values == values[0]).all(0).sum())
    assert f"{constant} of the 128 mel filters are too narrow" in warning and constant > 6


def test_channels_are_kept_in_every_form():
    left, right = noise(16000), noise(16000, seed=1) + 0.2
    stereo, mono = BridleFeatureExtractor(max_length=128, num_channels=2), BridleFeatureExtractor(max_length=128)
    one, other = mono([left, right], sampling_rate=RATE, return_tensors="pt").input_values
    expected = torch.stack([one, other], dim=1)  # (frames, channels, mel bins)
    both = torch.stack([left, right])
    for form in (both, both.T, both.numpy(), [both], [both.T.numpy()], both[None], both.T[None]):
        out = stereo(form, sampling_rate=RATE, return_tensors="pt")
        torch.testing.assert_close(out.input_values, expected[None], atol=1e-4, rtol=0)
        assert out.attention_mask.sum() == 98
    single = stereo(left, sampling_rate=RATE, return_tensors="pt").input_values[0]
    torch.testing.assert_close(single, torch.stack([one, one], dim=1), atol=1e-4, rtol=0)  # a mono clip is repeated
    shorter = stereo([both, both[:, :8000]], sampling_rate=RATE, padding="longest", return_tensors="pt")
    assert shorter.input_values.shape == (2, 112, 2, 128) and not shorter.input_values[1, 48:].any()
    with pytest.raises(ValueError, match="raw_speech has 3 channels; the feature extractor takes 1 or 2 channels"):
        stereo(torch.zeros(3, 16000), sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"raw_speech has shape \(100, 16000\); a clip is of 2 channels"):
        stereo(torch.zeros(100, 16000), sampling_rate=RATE)
    mean, std = measure_mean_std([both, both.T], BridleFeatureExtractor(num_channels=2, do_normalize=False))
    plain = BridleFeatureExtractor(do_normalize=False)
    assert (mean, std) == pytest.approx(measure_mean_std([left, right], plain))
    raw = BridleFeatureExtractor(num_channels=2, do_normalize=False)
    features = [raw(both, sampling_rate=RATE, padding=False)["input_values"][0]]
    assert measure_mean_std(features, raw) == pytest.approx((mean, std))


def test_a_channel_is_chosen():
    samples = torch.stack([noise(100), noise(100, seed=1), noise(100, seed=2)], dim=1)
    assert torch.equal(BridleFeatureExtractor(channel=2).choose_channels(samples), samples[:, 2])
    assert torch.equal(BridleFeatureExtractor().choose_channels(samples), samples.mean(1))
    with pytest.raises(ValueError, match="has 3 channels; the feature extractor takes channel 3"):
        BridleFeatureExtractor(channel=3).choose_channels(samples)
    with pytest.raises(ValueError, match="has 1 channel; the feature extractor takes channel 1"):
        BridleFeatureExtractor(channel=1).choose_channels(samples[:, :1])
