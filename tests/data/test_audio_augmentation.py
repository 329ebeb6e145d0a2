import kaldi
import numpy as np
import pytest

from bridle_hf.data import roll_magnitude, spec_augment

MEAN, SCALE = -4.4446096, 2 * 3.3216383
NORMALIZATION = {"mean": MEAN, "scale": SCALE}


def fbank(waveform: np.ndarray) -> np.ndarray:
    """Normalised log-mel features."""
    return ((kaldi.fbank(waveform, bins=64) - MEAN) / SCALE).astype(np.float32)


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """A second of noise, then half a second of digital silence."""
    rng = np.random.default_rng(0)
    return np.concatenate([0.1 * rng.standard_normal(16000), np.zeros(8000)])


def test_roll_is_a_roll_of_the_waveform(waveform):
    before = fbank(waveform)
    lengths = np.array([len(before)])
    rolled = roll_magnitude(before[None].copy(), lengths, np.random.default_rng(1), gain=False, **NORMALIZATION)[0]
    (shift,) = [s for s in range(len(before)) if np.array_equal(np.roll(before, s, axis=0), rolled)]
    assert 0 < shift < len(before)
    expected = fbank(np.roll(waveform, 160 * shift))
    np.testing.assert_allclose(rolled[shift:], expected[shift:], atol=1e-3)  # frames before it go round the end


def test_gain_is_a_gain_of_the_waveform(waveform):
    before = fbank(waveform)
    lengths = np.array([len(before)])
    louder = []
    for seed in range(8):
        scaled = roll_magnitude(before[None].copy(), lengths, np.random.default_rng(seed), roll=False, **NORMALIZATION)[
            0
        ]
        gain = np.exp(np.median(scaled[:90] - before[:90]) * SCALE / 2)
        assert 0.5 < gain < 1.5
        np.testing.assert_allclose(scaled, fbank(gain * waveform), atol=2e-3)
        louder.append(gain > 1)
    assert any(louder) and not all(louder)


def test_gains_follow_half_plus_beta():
    features = np.zeros((4000, 1, 1), dtype=np.float32)
    out = roll_magnitude(features, np.ones(4000, dtype=int), np.random.default_rng(0), roll=False, mean=0.0, scale=1.0)
    gains = np.exp(out.ravel() / 2)
    assert gains.mean() == pytest.approx(1.0, abs=0.01)
    assert gains.std() == pytest.approx(np.sqrt(10 * 10 / (20**2 * 21)), rel=0.05)  # of Beta(10, 10)


def test_roll_stays_inside_the_valid_frames():
    features = np.zeros((16, 12, 4), dtype=np.float32)
    lengths = np.arange(16) % 12 + 1
    for clip, length in zip(features, lengths, strict=True):
        clip[:length] = np.arange(1, length + 1)[:, None]
    out = roll_magnitude(features.copy(), lengths, np.random.default_rng(0), **NORMALIZATION)
    assert not np.array_equal(out, features)
    for clip, length in zip(out, lengths, strict=True):
        assert (clip[length:] == 0).all()
        steps = np.diff(clip[:length, 0])
        assert ((np.abs(steps - 1) < 1e-5).sum() >= length - 2) and (clip[:length] != 0).all()


def test_spec_augment_blanks_one_band_and_one_stretch():
    widths, spans = set(), set()
    lengths = np.full(200, 20)
    features = np.ones((200, 30, 16), dtype=np.float32)
    out = spec_augment(features.copy(), lengths, np.random.default_rng(0), frequency_mask=0.25, time_mask=0.5)
    for clip in out:
        band, stretch = (clip[20:] == 0).all(axis=0), (clip == 0).all(axis=1)
        assert np.array_equal(clip == 0, band[None, :] | stretch[:, None])
        assert (np.diff(np.flatnonzero(band)) == 1).all() and (np.diff(np.flatnonzero(stretch)) == 1).all()
        assert not stretch[20:].any()
        widths.add(int(band.sum()))
        spans.add(int(stretch.sum()))
    assert widths == set(range(5)) and spans == set(range(11))


def test_spec_augment_without_masks_changes_nothing():
    features = np.random.default_rng(0).standard_normal((3, 20, 8)).astype("float32")
    out = spec_augment(features.copy(), np.array([20, 10, 5]), np.random.default_rng(0), frequency_mask=0, time_mask=0)
    np.testing.assert_array_equal(out, features)


@pytest.mark.parametrize("function", [roll_magnitude, spec_augment])
def test_same_generator_same_result(function):
    features = np.random.default_rng(0).standard_normal((4, 30, 8)).astype("float32")
    settings = NORMALIZATION if function is roll_magnitude else {}
    out = [function(features.copy(), np.full(4, 30), np.random.default_rng(s), **settings) for s in (1, 1, 2)]
    np.testing.assert_array_equal(out[0], out[1])
    assert not np.array_equal(out[0], out[2])
