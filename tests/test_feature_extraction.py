"""The audio front-end against Kaldi features of torchaudio and of float64 numpy, and its own promises about inputs."""

import json
import math

import kaldi
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor

from bridle_hf import feature_extraction_bridle as front_end
from bridle_hf import filter_bank_bridle
from bridle_hf.configuration_bridle import BridleConfig
from bridle_hf.data import decode_audio
from bridle_hf.feature_extraction_bridle import BridleFeatureExtractor, frame_count, kaldi_fbank, measure_mean_std

RATE = 16000
FLOOR = math.log(2**-23)


def float64_fbank(waveform: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(kaldi.fbank(waveform.numpy()))


@pytest.fixture(scope="session")
def torchaudio_fbank(torchaudio):
    """(samples,) -> (frames, bins)."""

    def fbank(waveform: torch.Tensor, rate: int = RATE, bins: int = 128) -> torch.Tensor:
        options = kaldi.TORCHAUDIO | {"sample_frequency": rate, "num_mel_bins": bins}
        return torchaudio.compliance.kaldi.fbank(waveform[None], **options)

    return fbank


def noise(samples: int, seed: int = 0, amplitude: float = 0.1) -> torch.Tensor:
    return amplitude * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def extractor() -> BridleFeatureExtractor:
    return BridleFeatureExtractor(max_length=128)


@pytest.fixture(scope="module")
def real_clips(esc10_dir) -> list[torch.Tensor]:
    """Every tenth clip of ESC-10 at 16 kHz."""
    parquet = pytest.importorskip("pyarrow.parquet")
    clips = []
    for path in sorted(esc10_dir.rglob("*.parquet")):
        for audio in parquet.read_table(path, columns=["audio"])["audio"].to_pylist()[::10]:
            clips.append(torch.from_numpy(decode_audio(audio, RATE)))
    return clips


# --- the filter banks


@pytest.mark.parametrize(("rate", "bins"), kaldi.SETTINGS)
def test_fbank_equals_what_torchaudio_gave(rate, bins):
    recorded = load_file(kaldi.RECORDED)
    clip, expected = recorded[f"signal.{rate}.{bins}"], recorded[f"fbank.{rate}.{bins}"]
    assert len(clip) % 2 and expected.shape[1] == bins
    torch.testing.assert_close(kaldi_fbank(clip.double(), rate, bins), expected, atol=1e-4, rtol=0)
    single, power = kaldi_fbank(clip, rate, bins).double().exp(), expected.exp()
    loudest = power.amax(-1, keepdim=True)
    torch.testing.assert_close(single / loudest, power / loudest, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rate", "bins"), kaldi.SETTINGS)
def test_what_torchaudio_gave_is_what_it_gives(rate, bins, torchaudio_fbank):
    recorded = load_file(kaldi.RECORDED)
    again = torchaudio_fbank(recorded[f"signal.{rate}.{bins}"].double(), rate, bins)
    torch.testing.assert_close(again, recorded[f"fbank.{rate}.{bins}"], atol=1e-4, rtol=0)


def test_fbank_equals_torchaudio_on_real_clips(real_clips, torchaudio_fbank):
    assert len(real_clips) == 40
    for clip in real_clips:
        clip = clip - clip.mean()
        expected = torchaudio_fbank(clip)
        assert expected.std() > 1  # a clip of silence would compare nothing
        torch.testing.assert_close(kaldi_fbank(clip), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("rate", "bins"), [(16000, 128), (16000, 40), (44100, 128), (8000, 23)])
def test_fbank_equals_torchaudio_on_synthetic_signals(rate, bins, torchaudio_fbank):
    time = torch.arange(rate) / rate
    signals = {
        "noise": noise(rate),
        "chirp": 0.5 * torch.sin(2 * math.pi * (50 + 1500 * time) * time),
        "offset": noise(rate) + 0.7,
        "faint": noise(rate, amplitude=1e-4),
        "impulse": torch.nn.functional.one_hot(torch.tensor(rate // 2), rate).float(),
        "silence": torch.zeros(rate),
    }
    batch = kaldi_fbank(torch.stack(list(signals.values())), rate, bins)
    for values, (name, signal) in zip(batch, signals.items(), strict=True):
        expected = torchaudio_fbank(signal, rate, bins)
        torch.testing.assert_close(values, expected, atol=1e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.all((batch[-1] - FLOOR).abs() < 1e-5)


@pytest.mark.parametrize(("rate", "bins"), kaldi.SETTINGS)
def test_fbank_equals_the_definition_in_float64(rate, bins):
    clip = kaldi.signal(rate).astype(np.float64)
    actual = kaldi_fbank(torch.from_numpy(clip), rate, bins)
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.numpy(), kaldi.fbank(clip, rate, bins), atol=1e-3)  # our filters are float32


@pytest.mark.parametrize(("samples", "frames"), [(399, 0), (400, 1), (559, 1), (560, 2), (160000, 998), (80000, 498)])
def test_frame_count(samples, frames):
    assert frame_count(samples) == frames
    if frames:
        assert kaldi_fbank(torch.zeros(samples)).shape == (frames, 128)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("settings", [{}, {"frame_ms": 20.0, "hop_ms": 7.3}])
def test_times_are_those_of_the_frames(rate, settings):
    extractor = BridleFeatureExtractor(num_mel_bins=16, sampling_rate=rate, **settings)
    seconds, frame = 20, 1200
    clicks = torch.full((rate * seconds,), 1e-3)
    at = frame * extractor.hop_seconds + extractor.frame_ms / 2000  # the middle of a window
    clicks[round(at * rate)] = 1.0
    assert kaldi_fbank(clicks, rate, 16, **settings).mean(-1).argmax() == frame
    samples = round(extractor.seconds(frame) * rate)
    assert [extractor.frame_count(n) for n in (samples - 1, samples)] == [frame - 1, frame]
    assert extractor.hop_seconds == int(rate * settings.get("hop_ms", 10) / 1000) / rate


@pytest.mark.parametrize("name", kaldi.VARIANTS)
def test_other_bands_windows_and_hops_equal_what_torchaudio_gave(name):
    rate, bins, settings = kaldi.VARIANTS[name]
    clip, expected = torch.from_numpy(kaldi.signal(rate)), load_file(kaldi.RECORDED)[f"fbank.{name}"]
    actual = kaldi_fbank(clip.double(), rate, bins, **settings)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(actual.numpy(), kaldi.fbank(clip.numpy(), rate, bins, **settings), atol=1e-3)
    plain = kaldi_fbank(clip.double(), rate, bins)
    if name == "32 kHz, all frequencies":  # half of the rate, which is what it is without
        assert torch.equal(actual, plain)
    else:
        assert actual.shape != plain.shape or (actual - plain).abs().max() > 0.5
    extractor = BridleFeatureExtractor(bins, rate, do_normalize=False, **settings)
    values = extractor(clip, sampling_rate=rate, padding=False, return_tensors="pt").input_values[0]
    centred = kaldi_fbank((clip - clip.mean()), rate, bins, **settings)
    assert torch.equal(values, centred) and extractor.frame_count(len(clip)) == len(expected)


def test_a_long_clip_is_transformed_in_parts(monkeypatch):
    clip, spectra, rfft = torch.stack([noise(16000), noise(16000, seed=1)]), [], torch.fft.rfft
    whole = kaldi_fbank(clip)
    monkeypatch.setattr(filter_bank_bridle, "FRAMES_AT_ONCE", 40)
    monkeypatch.setattr(torch.fft, "rfft", lambda frames: spectra.append(frames.shape[-2]) or rfft(frames))
    torch.testing.assert_close(kaldi_fbank(clip), whole, atol=1e-4, rtol=0)
    assert spectra == [40, 40, 18]


def test_fbank_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="waveforms has 399 samples; one window takes 400"):
        kaldi_fbank(torch.zeros(3, 399))
    with pytest.raises(ValueError, match="waveforms has dtype torch.int16; kaldi_fbank takes float32 or float64"):
        kaldi_fbank(torch.zeros(800, dtype=torch.int16))


def test_who_changes_the_tables_of_a_front_end_changes_no_features():
    waveform = noise(800)
    before = kaldi_fbank(waveform)
    for table in front_end.front_end(BridleFeatureExtractor()).values():
        table[...] = 0
    assert torch.equal(kaldi_fbank(waveform), before)


def test_fbank_can_be_differentiated_even_after_inference_mode():
    filter_bank_bridle.window_and_filters.cache_clear()
    with torch.inference_mode():
        kaldi_fbank(noise(800))
    waveform = noise(800).requires_grad_()
    kaldi_fbank(waveform).sum().backward()
    assert waveform.grad.abs().sum() > 0


# --- the extractor


def test_values_are_normalised_log_mels(extractor):
    clip = noise(16000) + 0.3
    out = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    expected = (float64_fbank(clip - clip.mean()) + 4.4446096) / (2 * 3.3216383)
    assert out.input_values.shape == (1, 128, 128) and out.input_values.dtype == torch.float32
    torch.testing.assert_close(out.input_values[0, :98], expected.float(), atol=1e-3, rtol=0)
    assert torch.all(out.input_values[0, 98:] == 0)
    assert out.attention_mask.dtype == torch.int64
    assert out.attention_mask.tolist() == [[1] * 98 + [0] * 30]
    plain = BridleFeatureExtractor(max_length=128, do_normalize=False)(clip, sampling_rate=RATE, return_tensors="pt")
    torch.testing.assert_close(plain.input_values[0, :98], float64_fbank(clip - clip.mean()).float(), atol=1e-3, rtol=0)


def test_a_clip_is_the_same_alone_and_in_a_padded_batch(extractor):
    clips = [noise(n, seed=n) + 0.1 for n in (2800, 9999, 16000)]
    batch = extractor(clips, sampling_rate=RATE, padding="longest", return_tensors="pt")
    assert batch.input_values.shape == (3, 112, 128)  # 98 frames, up to a multiple of 16
    assert batch.attention_mask.sum(1).tolist() == [16, 60, 98]
    for clip, values, mask in zip(clips, batch.input_values, batch.attention_mask, strict=True):
        alone = extractor(clip, sampling_rate=RATE, padding=False, return_tensors="pt").input_values[0]
        assert torch.equal(values[mask.bool()], alone)
        assert torch.all(values[~mask.bool()] == 0)


def test_every_form_of_input_gives_the_same_features(extractor):
    samples = (noise(16000) * 32768).round().to(torch.int16)
    clip = samples.float() / 32768
    expected = extractor(clip, sampling_rate=RATE, return_tensors="pt").input_values
    frozen = clip.numpy().copy()
    frozen.setflags(write=False)
    forms = {
        "int16 tensor": samples,
        "int16 array": samples.numpy(),
        "float64 array": clip.double().numpy(),
        "big-endian array": clip.numpy().astype(">f4"),
        "strided array": np.repeat(clip.numpy(), 2)[::2],
        "read-only array": frozen,
        "tensor in a graph": clip.clone().requires_grad_(),
        "list of floats": clip.tolist(),
        "tuple of numpy floats": tuple(clip.numpy()),
        "batch of one": clip[None],
        "list of one mono clip with a channel": [clip[None]],
    }
    for name, form in forms.items():
        actual = extractor(form, sampling_rate=RATE, return_tensors="pt").input_values
        assert torch.equal(actual, expected) and not actual.requires_grad, name
    half = extractor(clip.to(torch.float16), sampling_rate=RATE, return_tensors="pt").input_values
    assert half.dtype == torch.float32 and (half - expected).abs().mean() < 0.01
    batches = {
        "array": clip.expand(3, -1).numpy(),
        "tensor": clip.expand(3, -1),
        "list of lists": [clip.tolist()] * 3,
        "mixed list": [clip, samples, clip.numpy()],
        "channel axis": clip.expand(3, 1, -1),
    }
    for name, batch in batches.items():
        actual = extractor(batch, sampling_rate=RATE, return_tensors="pt").input_values
        assert torch.equal(actual, expected.expand(3, -1, -1)), name
    assert extractor([clip, clip], sampling_rate=RATE, return_tensors="pt").input_values.shape == (2, 128, 128)


def test_return_types(extractor):
    clips = [noise(16000), noise(8000)]
    arrays = extractor(clips, sampling_rate=RATE, return_tensors="np")
    tensors = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    assert isinstance(arrays["input_values"], np.ndarray) and arrays["attention_mask"].dtype == np.int64
    np.testing.assert_array_equal(arrays["input_values"], tensors["input_values"].numpy())
    rows = extractor(clips, sampling_rate=RATE, padding=False)
    assert [row.shape for row in rows["input_values"]] == [(98, 128), (48, 128)]
    assert [row.tolist() for row in rows["attention_mask"]] == [[1] * 98, [1] * 48]
    assert set(extractor(clips, sampling_rate=RATE, return_attention_mask=False)) == {"input_values"}
    assert set(BridleFeatureExtractor(return_attention_mask=False)(clips, sampling_rate=RATE)) == {"input_values"}


def spoilt(value: float) -> torch.Tensor:
    return noise(16000).index_fill(0, torch.tensor(15999), value)


BAD_CLIPS = {
    "stereo array": (np.zeros((2, 16000), np.float32), r"raw_speech has shape \(2, 16000\), .*stereo.* takes mono"),
    "stereo tensor, samples first": (torch.zeros(16000, 2), r"raw_speech has shape \(16000, 2\), .*stereo"),
    "stereo in a list": (
        [np.zeros(16000), np.zeros((2, 16000))],
        r"raw_speech\[1\] has shape \(2, 16000\); a clip is mono",
    ),
    "NaN": (
        [torch.zeros(16000), noise(16000).index_fill(0, torch.tensor(7), math.nan)],
        r"raw_speech\[1\] contains NaN",
    ),
    "inf": (noise(16000).index_fill(0, torch.tensor(15999), -math.inf), "raw_speech contains NaN or inf; .* finite"),
    "one flipped bit": (spoilt(-1.4e38), r"raw_speech peaks at 1.4e\+38, where no recording does"),
    "one flipped bit in a batch": ([noise(16000), spoilt(1e18)], r"raw_speech\[1\] peaks at 1e\+18"),
    "empty array": (np.zeros(0, np.float32), "raw_speech is empty; a clip takes samples"),
    "empty clip in a list": ([np.zeros(16000), []], r"raw_speech\[1\] is empty"),
    "empty list": ([], "raw_speech is an empty list; it takes a clip or a list of clips"),
    "empty batch": (np.zeros((0, 16000)), r"raw_speech has shape \(0, 16000\), an empty batch"),
    "shorter than a window": (noise(399), "raw_speech has 399 samples; a clip takes at least 2800 samples at 16000 Hz"),
    "shorter than a patch": (noise(2799), "raw_speech has 2799 samples; a clip takes at least 2800 .* 16 frames"),
    "int32": (
        np.zeros(16000, np.int32),
        r"raw_speech has dtype int32; a clip takes int16 samples or floats in \[-1, 1\]",
    ),
    "int64 tensor": (torch.zeros(16000, dtype=torch.long), "raw_speech has dtype torch.int64; a clip takes int16"),
    "text": ("clip.wav", "raw_speech is of type str; it takes an array, a tensor, a list of floats or a list of clips"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_clips_get_one_clear_error(extractor, case):
    clip, message = BAD_CLIPS[case]
    with pytest.raises(ValueError, match=message) as caught:
        extractor(clip, sampling_rate=RATE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("power", range(0, 39, 2))
def test_a_sample_of_any_size_gives_finite_features_or_an_error(extractor, power):
    clip = spoilt(10.0**power)
    if power <= 9:  # int32 samples cast to float
        assert torch.isfinite(extractor(clip, sampling_rate=RATE, return_tensors="pt").input_values).all()
    else:
        with pytest.raises(ValueError, match="raw_speech peaks at"):
            extractor(clip, sampling_rate=RATE)


def test_bad_arguments_get_one_clear_error(extractor):
    with pytest.raises(ValueError, match="sampling_rate is 44100; this extractor takes clips at 16000 Hz"):
        extractor(noise(16000), sampling_rate=44100)
    with pytest.raises(ValueError, match="padding is 'even'; it takes 'max_length', 'longest'"):
        extractor(noise(16000), sampling_rate=RATE, padding="even")
    with pytest.raises(ValueError, match="max_length is 15; it takes at least 16 frames"):
        extractor(noise(16000), sampling_rate=RATE, max_length=15)
    with pytest.raises(ValueError, match="clips have 48 to 98 frames, so return_tensors='pt' cannot stack them"):
        extractor([noise(16000), noise(8000)], sampling_rate=RATE, padding=False, return_tensors="pt")
    with pytest.raises(ValueError, match="std is 0.0; it takes a positive number"):
        BridleFeatureExtractor(std=0.0)
    with pytest.raises(ValueError, match="mean is nan; it takes a finite number"):
        BridleFeatureExtractor(mean=math.nan)
    with pytest.raises(ValueError, match="padding_side is 'left'"):
        BridleFeatureExtractor(padding_side="left")
    with pytest.raises(ValueError, match="sampling_rate is 50; it takes 100 Hz or more"):
        BridleFeatureExtractor(sampling_rate=50)


def test_doubtful_input_is_warned_of(extractor, monkeypatch):
    warnings = []
    monkeypatch.setattr(front_end.logger, "warning", warnings.append)
    monkeypatch.setattr(front_end.logger, "warning_once", warnings.append)
    extractor(noise(16000), sampling_rate=RATE)
    assert warnings == []
    extractor(noise(16000))
    assert len(warnings) == 1 and "`sampling_rate`" in warnings.pop()
    extractor(noise(16000, amplitude=3000.0), sampling_rate=RATE)
    assert len(warnings) == 1 and "int16" in warnings[0]


def test_saved_and_loaded(tmp_path):
    AutoFeatureExtractor.register(BridleConfig, BridleFeatureExtractor, exist_ok=True)
    original = BridleFeatureExtractor(num_mel_bins=64, max_length=512, mean=-6.6268077, std=5.358466)
    clip = noise(16000)
    before = original(clip, sampling_rate=RATE, return_tensors="pt")
    original.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["mean"] == -6.6268077 and stored["std"] == 5.358466 and stored["max_length"] == 512
    stored.pop("auto_map", None)  # where its code lies
    assert not any(isinstance(value, list | dict) for value in stored.values())  # settings, no tables
    for loader in (BridleFeatureExtractor, AutoFeatureExtractor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is BridleFeatureExtractor and loaded.to_dict() == original.to_dict()
        after = loaded(clip, sampling_rate=RATE, return_tensors="pt")
        assert torch.equal(after.input_values, before.input_values)
    assert BridleFeatureExtractor.from_pretrained(tmp_path, num_mel_bins=32).feature_size == 32


# --- statistics of a data set


def test_measured_mean_and_std_are_those_of_all_valid_bins():
    clips = [noise(n, seed=n, amplitude=a) for n, a in ((4000, 0.01), (9000, 0.5), (40000, 0.1))]
    extractor = BridleFeatureExtractor(max_length=128)
    values = torch.cat([float64_fbank(clip)[:128].flatten() for clip in clips]).double()
    expected = (values.mean().item(), values.std(correction=0).item())
    assert measure_mean_std(iter(clips), extractor, sampling_rate=RATE) == pytest.approx(expected, abs=1e-4)
    features = [float64_fbank(clip).float().numpy() for clip in clips]
    assert measure_mean_std(features, extractor) == pytest.approx(expected, abs=1e-4)
    mean, std = measure_mean_std(clips, extractor, sampling_rate=RATE)
    rows = BridleFeatureExtractor(max_length=128, mean=mean, std=std)(clips, sampling_rate=RATE, padding=False)
    normalised = np.concatenate(rows["input_values"])
    assert normalised.mean() == pytest.approx(0, abs=1e-4) and normalised.std() == pytest.approx(0.5, abs=1e-4)


def test_measuring_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="clips is empty"):
        measure_mean_std([])
    with pytest.raises(ValueError, match="sampling_rate is 8000; this extractor takes clips at 16000 Hz"):
        measure_mean_std([noise(16000)], sampling_rate=8000)
    with pytest.raises(ValueError, match=r"clips\[1\] has 100 samples"):
        measure_mean_std([noise(16000), noise(100)])
    with pytest.raises(ValueError, match=r"clips\[1\] peaks at 1e\+30"):
        measure_mean_std([noise(16000), spoilt(1e30)])
    with pytest.raises(ValueError, match=r"clips\[0\] contains NaN or inf"):
        measure_mean_std([np.full((98, 128), np.nan, np.float32)])
