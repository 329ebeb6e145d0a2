"""The video processor: which frames and crops make a clip, and each frame against the image processor."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import counting_video
from transformers import AutoVideoProcessor, pipeline
from transformers.utils import is_av_available

from bridle_hf import (
    BridleConfig,
    BridleForVideoClassification,
    BridleImageProcessor,
    BridleVideoProcessor,
)
from bridle_hf.data import build_processor, decode_video
from bridle_hf.video_processing_bridle import clip_indices

SMALL = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 4, 2, 0.0), [0, 2, 4, 6]),
        ((10, 4, 2, 1.0), [3, 5, 7, 9]),
        ((11, 4, 2), [2, 4, 6, 8]),
        ((10, 4, 5), [0, 3, 6, 9]),  # too short for the stride
        ((10, 4, None), [0, 3, 6, 9]),
        ((4, 4, 8), [0, 1, 2, 3]),
        ((10, 3, 0, 1.0), [9, 9, 9]),
        ((10, 1, 4), [4]),
    ],
)
def test_frames_of_a_clip(arguments, expected):
    assert clip_indices(*arguments).tolist() == expected


def test_too_few_frames_are_named(video):
    processor = BridleVideoProcessor(do_sample_frames=True, num_frames=10, frame_stride=2, **SMALL)
    with pytest.raises(ValueError, match="the video has 9 frames; a clip takes at least 10"):
        processor(video)


def test_each_frame_is_what_the_image_processor_makes_of_it(video):
    values = BridleVideoProcessor(**SMALL)(video, return_tensors="pt")["pixel_values"]
    frames = BridleImageProcessor(**SMALL)(list(video), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 9, 3, 16, 16)
    torch.testing.assert_close(values[0], frames)


def test_a_clip_is_taken_from_the_middle(video):
    processor = BridleVideoProcessor(do_sample_frames=True, num_frames=3, frame_stride=2, **SMALL)
    whole = BridleVideoProcessor(**SMALL)(video, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(video, return_tensors="pt")["pixel_values"], whole[:, [2, 4, 6]])


def test_views_are_clips_along_time_and_crops_along_the_longer_side(video):
    processor = BridleVideoProcessor(do_sample_frames=True, num_frames=4, frame_stride=2, **SMALL)
    views = processor([video, video[::-1].copy()], num_clips=2, num_crops=3, return_tensors="pt")["pixel_values"]
    assert views.shape == (2 * 2 * 3, 4, 3, 16, 16)
    resized = BridleVideoProcessor(**SMALL, do_center_crop=False)(video, return_tensors="pt")["pixel_values"][0]
    assert resized.shape == (9, 3, 16, 24)
    number = 0
    for frames in ([0, 2, 4, 6], [2, 4, 6, 8]):
        for left in (0, 4, 8):
            torch.testing.assert_close(views[number], resized[frames, :, :, left : left + 16])
            number += 1


@pytest.mark.parametrize(
    ("settings", "video", "message"),
    [
        ({"num_clips": 2}, np.zeros((4, 20, 20, 3), np.uint8), "num_clips is above 1.*do_sample_frames"),
        # these would cut the frames into consecutive parts, and call them clips
        ({"num_clips": 2, "do_sample_frames": True}, np.zeros((4, 20, 20, 3), np.uint8), "num_clips .* num_frames"),
        (
            {"num_clips": 2, "do_sample_frames": True, "num_frames": 2, "fps": 1},
            np.zeros((4, 20, 20, 3), np.uint8),
            "num_clips is above 1.*no fps",
        ),
        ({}, [], "videos is empty"),
        ({}, {"bytes": b"", "path": None}, "videos has a dict with bytes, path; a video takes a path, a URL or frames"),
        ({}, np.zeros((0, 4, 20, 20, 3), np.uint8), "videos is empty"),
        ({}, np.zeros((0, 20, 20, 3), np.uint8), r"videos has a ndarray of shape \(0, 20, 20, 3\)"),
        ({}, np.zeros((4, 20, 20, 2), np.uint8), "videos has a ndarray of shape .* with 1, 3 or 4 channels"),
        ({}, [np.zeros((4, 20, 20, 3), np.uint8), np.zeros(5)], r"videos has a ndarray of shape \(5,\)"),
        ({}, np.full((4, 20, 20, 3), np.nan, np.float32), "videos contains NaN or inf"),
        (
            {},
            np.full((4, 20, 20, 3), 256, np.uint16),
            "videos has a ndarray .* of uint16; pixels take 0 to 255",
        ),
        ({}, torch.full((4, 3, 20, 20), -1), "videos has a Tensor .* of int64; pixels take 0 to 255 or"),
        (
            {},
            [np.full((20, 20, 3), 256, np.uint16)] * 4,
            "videos has a ndarray .* of uint16; pixels take 0 to 255",
        ),
    ],
)
def test_bad_videos_are_named(settings, video, message):
    with pytest.raises(ValueError, match=message):
        BridleVideoProcessor(**SMALL)(video, **settings)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    path = str(counting_video(tmp_path / "a.mp4"))
    monkeypatch.setitem(sys.modules, "av", None)
    is_av_available.cache_clear()
    try:
        for decode in (BridleVideoProcessor(**SMALL), decode_video):
            with pytest.raises(ImportError, match="videos are decoded by PyAV, which is not installed: run `pip inst"):
                decode(path)
    finally:
        is_av_available.cache_clear()


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_files_are_decoded_and_sampled(tmp_path, name, codec):
    path = str(counting_video(tmp_path / name, codec=codec))
    processor = BridleVideoProcessor(do_sample_frames=True, num_frames=4, frame_stride=3, do_normalize=False, **SMALL)
    for options, expected in (
        ({}, [[5, 8, 11, 14]]),
        ({"num_clips": 3}, [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]]),
        ({"frame_stride": 0}, [[10, 10, 10, 10]]),
    ):
        values = processor([path], return_tensors="np", **options)["pixel_values"]
        assert np.round(25.5 * values.mean(axis=(2, 3, 4))).astype(int).tolist() == expected
    for given in (Path(path), [Path(path)]):
        np.testing.assert_array_equal(processor(given, return_tensors="np", **options)["pixel_values"], values)


def test_the_pipeline_classifies_a_file(tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": (2, 8, 8)}
    config = BridleConfig(modality="video", input_size=(4, 16, 16), id2label={0: "dark", 1: "bright"}, **sizes)
    processor = build_processor(config, frame_stride=2)
    model = BridleForVideoClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert type(AutoVideoProcessor.from_pretrained(tmp_path / "model")) is BridleVideoProcessor
    path = str(counting_video(tmp_path / "a.mp4"))
    answers = pipeline("video-classification", model=str(tmp_path / "model"))(path)
    with torch.no_grad():
        expected = model(**processor([path], return_tensors="pt")).logits[0].softmax(-1)
    assert {answer["label"]: pytest.approx(answer["score"], abs=1e-5) for answer in answers} == {
        "dark": expected[0].item(),
        "bright": expected[1].item(),
    }
