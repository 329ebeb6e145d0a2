"""What torchvision is asked to do: the same for all frames of a clip, within bounds, and repeatable."""

import numpy as np
import pytest
import torch

from bridle_hf import BridleImageProcessor
from bridle_hf.data import DataArguments
from bridle_hf.data.pixels import MultiScaleCrop, build_augmentation, channel_statistics, drawn_from, square_means

PROCESSOR = BridleImageProcessor(crop_size={"height": 16, "width": 24}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_without_chance_it_is_scaling_and_normalisation():
    pixels = torch.from_numpy(generator().integers(0, 256, (3, 16, 16), dtype=np.uint8))
    processor = BridleImageProcessor(crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    augment = build_augmentation(DataArguments(crop="multi_scale", crop_scale=(1.0, 1.0), flip=False), processor)
    torch.testing.assert_close(augment(pixels), (pixels / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("crop", ["resized", "multi_scale"])
def test_frames_of_a_clip_are_treated_alike(crop):
    frame = torch.from_numpy(generator().integers(0, 256, (3, 40, 30), dtype=np.uint8))
    data = DataArguments(crop=crop, rand_augment=9, erase=1.0)
    augment = build_augmentation(data, PROCESSOR)
    made = []
    for seed in range(6):
        with drawn_from(generator(seed)):
            clip = augment(frame.expand(5, 3, 40, 30).contiguous())
        assert clip.shape == (5, 3, 16, 24) and clip.dtype == torch.float32
        assert all(torch.equal(clip[0], other) for other in clip[1:])
        with drawn_from(generator(seed)):
            assert torch.equal(augment(frame.expand(5, 3, 40, 30).contiguous()), clip)
        made.append(clip)
    assert not any(torch.equal(made[0], other) for other in made[1:])


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with drawn_from(generator()):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_multi_scale_crops_have_neighbouring_sides_and_go_everywhere():
    crop = MultiScaleCrop((8, 8), (0.4, 1.0))
    sides, corners = set(), []
    with drawn_from(generator()):
        for _ in range(300):
            params = crop.make_params([torch.zeros(3, 60, 100)])
            sides.add((params["height"], params["width"]))
            corners.append((params["top"] + params["height"], params["left"] + params["width"]))
    allowed = [60, 48, 36, 24]  # shares 1, 0.8, 0.6, 0.4 of the shorter side
    steps = [(a, b) for a in range(4) for b in range(4) if abs(a - b) <= 1]
    assert sides == {(allowed[a], allowed[b]) for a, b in steps}
    bottom, right = np.array(corners).max(axis=0)
    assert bottom == 60 and 95 <= right <= 100


def test_flips_and_erased_boxes():
    ramp = torch.arange(16, dtype=torch.uint8).mul(16).expand(3, 16, 16).contiguous()
    processor = BridleImageProcessor(crop_size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    plain = {"crop": "multi_scale", "crop_scale": (1.0, 1.0)}
    flip = build_augmentation(DataArguments(**plain), processor)
    erase = build_augmentation(DataArguments(**plain, flip=False, erase=1.0), processor)
    with drawn_from(generator()):
        flipped = [bool(flip(ramp)[0, 0, 0] > 0.5) for _ in range(200)]
        erased = (erase(torch.full_like(ramp, 255)) == 0).float().mean()
    assert 70 < sum(flipped) < 130
    assert 0.02 < erased < 0.4


@pytest.mark.parametrize("size", [(5, 12), (16, 16), (48, 40)])
def test_the_baseline_of_pixels_is_means_of_squares(size):
    picture = np.random.default_rng(0).normal(size=(3, *size))
    rows, columns = (np.arange(n) * 16 // n if n > 16 else np.arange(n) for n in size)
    # which square a pixel belongs to: the last one that begins at or before it
    edges = [np.arange(min(n, 16)) * n // min(n, 16) for n in size]
    rows, columns = (np.searchsorted(edge, np.arange(n), side="right") - 1 for edge, n in zip(edges, size, strict=True))
    expected = np.array(
        [
            channel[np.ix_(rows == row, columns == column)].mean()
            for channel in picture
            for row in range(len(edges[0]))
            for column in range(len(edges[1]))
        ]
    )
    np.testing.assert_allclose(square_means(picture), expected)


def test_channel_statistics_by_hand():
    assert channel_statistics(np.array([[[3.0, 1.0], [1.0, 1.0]]])).tolist() == [1.5, np.sqrt(0.75)]
