import numpy as np

from bridle_hf.data.audio import AUDIO
from bridle_hf.evaluation.baselines import baseline_features


def test_logmel_statistics_leave_padding_out(padded_examples):
    features, baselines = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32), AUDIO.baselines
    clips = padded_examples(features, np.arange(64) < np.array([64, 20])[:, None])
    got = baseline_features(clips, baselines["logmel-delta"])
    frames = features[1, :20].astype(np.float64)
    expected = [frames.mean(0), frames.std(0), np.abs(frames[1:] - frames[:-1]).mean(0)]
    np.testing.assert_allclose(got[1], np.concatenate(expected))
    np.testing.assert_allclose(baseline_features(clips, baselines["logmel"])[1], np.concatenate(expected[:2]))
