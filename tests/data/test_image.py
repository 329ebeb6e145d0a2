"""Images decoded: the pixels in the file, and a reason where that fails."""

import io

import numpy as np
import pytest
from picture_files import png
from PIL import Image

from bridle_hf import BridleImageProcessor
from bridle_hf.data import BadClipError, decode_image
from bridle_hf.data.image import _say_first


def test_an_image_is_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels))
    for image in (str(tmp_path / "a.png"), {"bytes": png(pixels), "path": None}):
        np.testing.assert_array_equal(decode_image(image), pixels.transpose(2, 0, 1))


def test_grey_of_16_bits_is_that_of_8():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 257).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_image({"bytes": buffer.getvalue()}), np.stack([grey] * 3))


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_pages_the_first_is_taken_and_that_is_said_once(form, caplog):
    pages = [Image.new("L", (8, 8), 10 * number) for number in range(3)]
    _say_first.cache_clear()
    for number in (1, 3, 3):
        buffer = io.BytesIO()
        pages[0].save(buffer, form, save_all=True, append_images=pages[1:number], lossless=True)
        assert not decode_image(buffer.getvalue()).any()
        assert caplog.text.count("there are pictures of several pages or frames; the first is taken") == (number > 1)


def test_grey_turned_and_transparent_images():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("L", (8, 4), 100).save(buffer, format="PNG", exif=exif)
    assert decode_image({"bytes": buffer.getvalue()}).shape == (3, 8, 4)
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 4)).save(buffer, format="PNG")
    assert decode_image({"bytes": buffer.getvalue()}).shape == (3, 4, 8)


@pytest.mark.parametrize("image", [b"no image", png(np.zeros((64, 64, 3), np.uint8))[:60], b""])
def test_unreadable_images_give_a_reason(image):
    with pytest.raises(BadClipError, match="cannot be decoded"):
        decode_image({"bytes": image, "path": "a.png"})


def test_missing_files_give_a_reason(tmp_path):
    with pytest.raises(BadClipError, match="neither bytes nor a path"):
        decode_image({"bytes": None, "path": None})
    with pytest.raises(BadClipError, match="cannot be read.*gone"):
        decode_image(str(tmp_path / "gone"))


def saved(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_lie_on_white_as_in_the_processor(mode, tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)  # black nothing, a square of grey and one that is half there
    pixels[4:12, 4:8], pixels[4:12, 8:12] = [200, 200, 200, 255], [0, 0, 0, 128 if mode != "P" else 255]
    made = saved(Image.fromarray(pixels).convert(mode), **({"transparency": 0} if mode == "P" else {}))
    found = decode_image(made)
    assert found[:, 0, 0].tolist() == [255] * 3 and found[:, 5, 5].tolist() == [200] * 3
    assert mode == "P" or found[:, 5, 9].tolist() == [127] * 3
    processor = BridleImageProcessor(do_resize=False, do_center_crop=False, image_mean=[0] * 3, image_std=[1] * 3)
    (tmp_path / "a.png").write_bytes(made["bytes"])
    for image in (Image.open(io.BytesIO(made["bytes"])), str(tmp_path / "a.png")):
        values = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(values, found / 255, atol=1e-6)


def test_arrays_with_opacity_lie_on_white():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    expected = (pixels[..., :3] * (pixels[..., 3:] / 255) + 255 - pixels[..., 3:]).transpose(2, 0, 1)
    for array in (pixels, pixels.transpose(2, 0, 1)):
        np.testing.assert_allclose(decode_image(array), expected, atol=0.51)
    np.testing.assert_allclose(decode_image(Image.fromarray(pixels)), expected, atol=0.51)


RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))


@pytest.mark.parametrize(
    "grey",
    [RAMP, 1000 * RAMP, 2 * RAMP - 1]  # floating point
    + [(RAMP * (2**bits - 1)).astype(np.uint16) for bits in (8, 10, 12, 14)]
    + [(255 * RAMP).astype(np.int32), (100_000 * RAMP).astype(np.int32), (60_000 * RAMP - 1).astype(np.int32)],
)
def test_grey_whose_white_cannot_be_told_is_refused(grey):
    with pytest.raises(BadClipError, match="is grey with .* values from .* save it with 8 bits, or"):
        decode_image(saved(Image.fromarray(grey), "TIFF"))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_16_bits_may_be_dark_or_black(dtype):
    for grey, expected in ((np.zeros((4, 4)), 0), (np.full((4, 4), 20_000), 77)):
        assert np.unique(decode_image(saved(Image.fromarray(grey.astype(dtype)), "TIFF"))).tolist() == [expected]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_images_are_taken_up_to_pillows_limit(monkeypatch):
    made = saved(Image.new("RGB", (40, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here on, and refuses from twice as many
    assert decode_image(made).shape == (3, 30, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BadClipError, match="cannot be decoded: .*decompression bomb"):
        decode_image(made)
