"""What torchvision is asked to do: the same for all frames of a clip, within bounds, and repeatable."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from bridle_hf import BridleConfig, BridleImageProcessor
from bridle_hf.data import DataArguments, build_processor
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


def ramp(height, width):
    """An image whose first channel says the row and whose second says the column, each from 0 to 255."""
    rows, columns = np.mgrid[:height, :width]
    channels = [rows * 255 // (height - 1), columns * 255 // (width - 1), 0 * rows]
    return np.stack(channels).astype(np.uint8)


def seen(values):
    """The share of the rows and of the columns of `ramp` that (..., 3, h, w) shows."""
    flat = torch.as_tensor(values).movedim(-3, 0).flatten(1)[:2]
    return (flat.amax(dim=1) - flat.amin(dim=1)).tolist()


@pytest.mark.parametrize("window", [(32, 64), (64, 32), (32, 128), (48, 64)])
@pytest.mark.parametrize("modality", ["image", "video"])
def test_a_picture_of_the_windows_proportions_is_seen_whole(window, modality):
    frames = (2,) if modality == "video" else ()
    config = BridleConfig(modality=modality, input_size=(*frames, *window), patch_size=(*frames, 16, 16))
    processor = build_processor(config, image_mean=[0] * 3, image_std=[1] * 3)
    picture, large = ramp(*window), ramp(3 * window[0], 3 * window[1])
    clip = [array if modality == "image" else np.stack([array] * 2) for array in (picture, large)]
    same, smaller = (processor(one, return_tensors="pt")["pixel_values"][0] for one in clip)
    torch.testing.assert_close(same, torch.from_numpy(clip[0]) / 255)  # neither resized nor cut
    assert smaller.shape == same.shape and min(seen(smaller)) > 0.95


def test_a_picture_of_other_proportions_is_cut_along_one_side():
    config = BridleConfig(modality="image", input_size=(32, 64), patch_size=(16, 16))
    processor = build_processor(config, image_mean=[0] * 3, image_std=[1] * 3)
    rows, columns = seen(processor(ramp(90, 90), return_tensors="pt")["pixel_values"][0])
    assert rows == pytest.approx(0.5, abs=0.03) and columns > 0.97
    rows, columns = seen(processor(ramp(90, 270), return_tensors="pt")["pixel_values"][0])
    assert columns == pytest.approx(2 / 3, abs=0.03) and rows > 0.95


def test_views_of_a_video_go_along_the_side_that_is_cut():
    config = BridleConfig(modality="video", input_size=(2, 32, 64), patch_size=(2, 16, 16))
    processor = build_processor(config, image_mean=[0] * 3, image_std=[1] * 3)
    views = processor(np.stack([ramp(64, 64)] * 2), num_crops=3, return_tensors="pt")["pixel_values"]
    tops = [view[0, 0].amin().item() for view in views]
    assert tops == pytest.approx([0, 0.25, 0.5], abs=0.03) and all(seen(view)[1] > 0.97 for view in views)


@pytest.mark.parametrize("crop", ["resized", "multi_scale"])
@pytest.mark.parametrize("window", [(32, 64), (128, 32), (32, 32)])
def test_training_crops_have_about_the_windows_proportions(crop, window):
    config = BridleConfig(modality="image", input_size=window, patch_size=(16, 16))
    processor = build_processor(config, image_mean=[0] * 3, image_std=[1] * 3)
    augment = build_augmentation(DataArguments(crop=crop, flip=False), processor)
    large = 4 * window[0], 4 * window[1]
    with drawn_from(generator()):
        shares = np.array([seen(augment(torch.from_numpy(ramp(*large)))) for _ in range(200)])
    widened = np.log(shares[:, 0] / shares[:, 1])  # of an image that has the window's proportions
    assert abs(widened.mean()) < 0.05 and abs(widened).max() < 1.0
    assert shares.prod(axis=1).mean() > 0.35


def test_crops_for_a_square_window_are_torchvisions_own():
    config = BridleConfig(modality="image", input_size=(32, 32), patch_size=(16, 16))
    augment = build_augmentation(DataArguments(flip=False), build_processor(config))
    own = v2.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    image = torch.from_numpy(ramp(50, 70))
    with drawn_from(generator()):
        found = augment.transforms[0](image)
    with drawn_from(generator()):
        assert torch.equal(found, own(image))
    assert build_processor(config).size == {"shortest_edge": 32}
