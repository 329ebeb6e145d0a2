"""Padding and truncation of log-mel features: to whole patches, at once or while collating."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from bridle_hf import feature_extraction_bridle as front_end
from bridle_hf.feature_extraction_bridle import BridleFeatureExtractor

RATE = 16000


def noise(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def extractor() -> BridleFeatureExtractor:
    return BridleFeatureExtractor(max_length=128)


def test_padding_and_truncation(extractor):
    clip = noise(32000)  # 198 frames

    def call(**options):
        return extractor(clip, sampling_rate=RATE, return_tensors="pt", **options)

    whole = call(padding=True, truncation=False)
    assert whole.input_values.shape[1] == 208 and whole.attention_mask.sum() == 198
    cut = call()
    assert cut.input_values.shape[1] == 128 and cut.attention_mask.all()
    torch.testing.assert_close(cut.input_values, whole.input_values[:, :128], atol=1e-5, rtol=0)
    odd = call(max_length=100)
    assert odd.input_values.shape[1] == 112 and odd.attention_mask.sum() == 100
    assert call(padding="do_not_pad", truncation=False).input_values.shape[1] == 198
    with pytest.raises(ValueError, match="clip of 198 frames, more than max_length=128; use truncation=True or"):
        call(truncation=False)


def test_rows_are_padded_to_whole_patches_while_collating(extractor):
    clips = [noise(4000), noise(16000)]
    rows = [{key: value[0] for key, value in extractor(c, sampling_rate=RATE, padding=False).items()} for c in clips]
    expected = extractor(clips, sampling_rate=RATE, padding="longest", return_tensors="pt")
    for batch in (DataCollatorWithPadding(extractor)(rows), extractor.pad(rows, return_tensors="pt")):
        assert batch.keys() == expected.keys() and batch["input_values"].shape == (2, 112, 128)
        assert all(torch.equal(batch[key], expected[key]) for key in batch)
    whole = extractor.pad(rows, padding="max_length", max_length=128, return_tensors="np")
    assert whole["input_values"].shape == (2, 128, 128)
    assert extractor.pad(rows, pad_to_multiple_of=1, return_tensors="np")["input_values"].shape == (2, 98, 128)
    assert [len(x) for x in extractor.pad(rows, padding=False)["input_values"]] == [23, 98]


def test_several_channels_are_padded_as_one(extractor):
    stereo = BridleFeatureExtractor(max_length=128, num_channels=2)
    clips = [noise(8000).view(2, 4000), noise(32000).view(2, 16000)]
    rows = [{key: value[0] for key, value in stereo(c, sampling_rate=RATE, padding=False).items()} for c in clips]
    expected = stereo(clips, sampling_rate=RATE, padding="longest", return_tensors="pt")
    for given in (rows, {key: [row[key] for row in rows] for key in rows[0]}):
        batch = stereo.pad(given, return_tensors="pt")
        assert batch["input_values"].shape == (2, 112, 2, 128)
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
    cut = stereo.pad(rows, max_length=96, padding="max_length", truncation=True, return_tensors="pt")
    assert cut["input_values"].shape == (2, 96, 2, 128)
    assert [x.shape for x in stereo.pad(rows, padding=False)["input_values"]] == [(23, 2, 128), (98, 2, 128)]


def test_samples_given_for_frames_are_warned_of(extractor, monkeypatch):
    warnings = []
    monkeypatch.setattr(front_end.logger, "warning_once", warnings.append)
    options = {"sampling_rate": RATE, "return_tensors": "pt"}
    assert extractor(noise(32000), max_length=200, **options).input_values.shape[1] == 208
    assert extractor(noise(90000), max_length=600, **options).input_values.shape[1] == 608  # filled by the clip
    assert extractor(noise(16000), max_length=16000, padding="longest", **options).input_values.shape[1] == 112
    assert warnings == []
    assert extractor(noise(16000), max_length=16000, truncation=True, **options).input_values.shape[1] == 16000
    (warning,) = warnings
    assert "max_length=16000 counts frames of 10 ms, not samples" in warning and "own is 128" in warning


@pytest.mark.parametrize("channels", [1, 2])
def test_rows_that_are_not_of_one_clip_each_are_refused(channels):
    extractor = BridleFeatureExtractor(num_mel_bins=16, max_length=64, num_channels=channels)
    sound = noise(16000) if channels == 1 else torch.stack([noise(16000)] * 2)
    whole = extractor(sound, sampling_rate=16000)
    takes = "it takes \\(frames, 16\\)" if channels == 1 else "it takes \\(frames, 2, 16\\)"
    with pytest.raises(ValueError, match=takes + " of each; take \\[0\\] of what the extractor gives of one clip"):
        extractor.pad([dict(whole), dict(whole)])
    assert extractor.pad([{"input_values": whole["input_values"][0]}] * 2)["input_values"].shape[0] == 2
    for shape in ((98,), (98, 8)):
        with pytest.raises(ValueError, match="processed_features has input_values of shape"):
            extractor.pad([{"input_values": np.zeros(shape)}])
    with pytest.raises(ValueError, match="processed_features is empty"):
        extractor.pad([])


def test_rows_that_are_none_are_named(extractor):
    row = {"input_values": np.zeros((98, 128), np.float32)}
    for rows, got in (
        ([{"x": 1}], r"keys \['x'\]"),
        ([1, 2], "int"),
        ([row | {"attention_mask": np.ones(98)}, row], r"keys \['input_values'\]"),
    ):
        with pytest.raises(ValueError, match=f"processed_features has a row of {got}; it takes mappings of input_valu"):
            extractor.pad(rows)
