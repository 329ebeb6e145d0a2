"""The image processor against Pillow and plain arithmetic, and against transformers' ViT processor."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import AutoImageProcessor, ViTImageProcessor

from bridle_hf import BridleConfig, BridleImageProcessor, BridleModel, BridleVideoProcessor, checks_bridle
from bridle_hf.data import build_processor, decode_image


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_values_are_scaled_and_normalised(picture):
    processor = BridleImageProcessor(do_resize=False, crop_size={"height": 16, "width": 32})
    values = processor(picture, return_tensors="np")["pixel_values"]
    middle = picture[12:28, 14:46].astype(np.float64) / 255
    expected = (middle - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert values.shape == (1, 3, 16, 32) and values.dtype == np.float32
    np.testing.assert_allclose(values[0], expected.transpose(2, 0, 1), atol=1e-5)


def test_the_shorter_side_is_resized_as_pillow_does(picture):
    processor = BridleImageProcessor(size={"shortest_edge": 20}, do_center_crop=False, do_normalize=False)
    values = processor(picture, return_tensors="np")["pixel_values"][0]
    expected = np.asarray(Image.fromarray(picture).resize((30, 20), Image.Resampling.BICUBIC)) / 255
    assert np.abs(values - expected.transpose(2, 0, 1)).max() < 2 / 255


def test_same_settings_same_values_as_vit(picture):
    settings = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}
    vit = ViTImageProcessor(**settings)(picture, return_tensors="pt")["pixel_values"]
    ours = BridleImageProcessor(**settings, image_std=[0.5] * 3, do_center_crop=False)
    torch.testing.assert_close(ours(picture, return_tensors="pt")["pixel_values"], vit)


@pytest.mark.parametrize("layout", ["pil", "last", "first", "tensor", "grey", "alpha"])
def test_kinds_of_images(picture, layout):
    grey = picture[..., :1].repeat(3, axis=2)
    given, same = {
        "pil": (Image.fromarray(picture), picture),
        "last": (picture, picture),
        "first": (picture.transpose(2, 0, 1), picture),
        "tensor": (torch.from_numpy(picture.transpose(2, 0, 1).copy()), picture),
        "grey": (Image.fromarray(picture[..., 0]), grey),
        "alpha": (np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=2), picture),
    }[layout]
    processor = BridleImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    got, expected = (processor(x, return_tensors="pt")["pixel_values"] for x in (given, same))
    torch.testing.assert_close(got, expected)


def test_images_of_several_sizes_make_one_batch(picture):
    processor = BridleImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    together = processor([picture, picture[:, :45]], return_tensors="pt")["pixel_values"]
    alone = processor(picture[:, :45], return_tensors="pt")["pixel_values"]
    assert together.shape == (2, 3, 32, 32)
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 20, 20), dtype=np.uint8), r"images has a ndarray of shape \(2, 20, 20\).*1, 3 or 4 channels"),
        ([], "images is empty"),
        (np.zeros((0, 3, 20, 20), dtype=np.uint8), "images is empty"),
        (np.zeros((3, 0, 20), dtype=np.uint8), r"images has a ndarray of shape \(3, 0, 20\)"),
        ("no/such.png", "images is a str; it takes an image or a list of images"),
        (np.full((3, 20, 20), np.nan, dtype=np.float32), "images contains NaN or inf"),
        (np.full((3, 20, 20), np.inf, dtype=np.float32), "images contains NaN or inf"),
        (
            np.full((20, 20, 3), 256, np.uint16),
            r"a ndarray of shape \(20, 20, 3\) of uint16; pixels take 0 to 255",
        ),
        ([np.full((20, 20, 3), 256, np.int32)], "images has a ndarray .* of int32; pixels take 0 to 255"),
        (
            torch.full((3, 20, 20), -1, dtype=torch.int16),
            "images has a Tensor .* of int16; pixels take 0 to 255",
        ),
        (Image.fromarray(np.zeros((20, 20), np.uint16)), "images has a Image of I;16; pixels take 0 to 255"),
        (Image.fromarray(np.zeros((20, 20), np.float32)), "images has a Image of F; pixels take 0 to 255"),
        (torch.full((3, 20, 20), 256).to(torch.uint16), "images has a Tensor .* of uint16; .*divide 16 bits by 257"),
        (np.ones((20, 20, 3), bool), "images has a ndarray .* of bool; .*multiply booleans by 255"),
        (Image.fromarray(np.zeros((20, 20), np.int32)), "images has a Image of I; pixels take 0 to 255"),
    ],
)
def test_bad_images_are_named(image, message):
    with pytest.raises(ValueError, match=message):
        BridleImageProcessor()(image)


def test_floats_up_to_1_are_warned_of(picture, monkeypatch):
    said = []
    monkeypatch.setattr(checks_bridle.logger, "warning_once", said.append)
    processor = BridleImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    processor(picture.astype(np.float32), return_tensors="pt")
    scaled = processor(picture / 255.0, do_rescale=False, return_tensors="pt")["pixel_values"]
    assert not said
    assert (scaled - expected).abs().mean() < 0.01
    processor(torch.tensor(picture).permute(2, 0, 1) / 255, return_tensors="pt")
    assert "images has floats no larger than 1" in said.pop()
    BridleVideoProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})(picture[None] / 255.0)
    assert "videos has floats no larger than 1" in said.pop()


def test_integers_of_8_bits_are_pixels_however_they_are_kept(picture):
    processor = BridleImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    for kept in (picture.astype(np.int64), torch.from_numpy(picture.astype(np.int32))):
        torch.testing.assert_close(processor(kept, return_tensors="pt")["pixel_values"], expected)


def test_an_open_picture_is_turned_as_its_file_is(picture, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = str(tmp_path / "a.png")
    Image.fromarray(picture[:20]).save(path, exif=exif)
    processor = BridleImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    by_name, opened = (processor(given, return_tensors="pt")["pixel_values"] for given in (path, Image.open(path)))
    assert torch.equal(by_name, opened)
    turned = processor(np.rot90(picture[:20], -1).copy(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(opened, turned)
    np.testing.assert_array_equal(decode_image(Image.open(path)), decode_image(path))
    np.testing.assert_array_equal(decode_image(path), np.rot90(picture[:20], -1).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P"])
def test_a_turned_tiff_is_the_turned_picture(mode, picture, tmp_path):
    """Not compressed, so that Pillow would map the file into memory."""
    drawn = Image.fromarray(np.ascontiguousarray(picture[:40, :24])).convert(mode)
    drawn.save(tmp_path / "turned.tif", tiffinfo={0x112: 6})  # to be turned clockwise by a quarter
    processor = BridleImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    found = processor(str(tmp_path / "turned.tif"), return_tensors="pt")["pixel_values"]
    expected = processor(drawn.transpose(Image.Transpose.ROTATE_270), return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)


def test_the_processor_of_a_model_makes_its_input_and_is_found_again(picture, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BridleConfig(modality="image", input_size=(16, 48), **sizes)
    processor = build_processor(config, image_mean=[0.5, 0.5, 0.5])
    inputs = processor(picture, return_tensors="pt")
    assert BridleModel(config)(**inputs).last_hidden_state.shape == (1, 1 + 3, 24)
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is BridleImageProcessor and tuple(again.image_mean) == (0.5, 0.5, 0.5)
    torch.testing.assert_close(again(picture, return_tensors="pt")["pixel_values"], inputs["pixel_values"])
