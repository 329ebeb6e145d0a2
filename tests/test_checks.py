"""Settings of front-ends that no input can be made with are refused when they are loaded."""

import json

import pytest

from bridle_hf import BridleFeatureExtractor, BridleImageProcessor, BridleVideoProcessor

SOUND = [
    ("num_mel_bins", 0),
    ("num_mel_bins", -128),
    ("num_mel_bins", 10**12),
    ("num_mel_bins", 12.5),
    ("sampling_rate", 0),
    ("sampling_rate", "16000"),
    ("sampling_rate", 10**15),
    ("max_length", -1),
    ("max_length", 10**12),
    ("pad_to_multiple_of", 0),
    ("mean", float("nan")),
    ("mean", None),
    ("std", 0),
    ("std", float("inf")),
    ("padding_value", float("nan")),
]
PIXELS = [
    ("size", {"shortest_edge": 0}),
    ("size", {"height": -3, "width": 8}),
    ("crop_size", {"height": 10**9, "width": 1}),
    ("image_mean", [float("nan")] * 3),
    ("image_mean", [0.5, 0.5]),
    ("image_std", [0, 0, 0]),
    ("image_std", [0.5, 0.5, float("inf")]),
    ("rescale_factor", 0),
]
CLIPS = [("num_frames", 0), ("num_frames", 10**9), ("frame_stride", -1), ("num_clips", 0), ("num_crops", 0.5)]
CASES = [(BridleFeatureExtractor, *case) for case in SOUND] + [(BridleImageProcessor, *case) for case in PIXELS]
CASES += [(BridleVideoProcessor, *case) for case in PIXELS + CLIPS]


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_absurd_numbers_of_a_saved_front_end_are_named(tmp_path, kind, key, value):
    kind().save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"^{key}(\.\w+)? is .*; it takes .*\."):
        kind.from_pretrained(tmp_path)
