"""Images decoded: the pixels in the file, and a reason where that fails."""

import io

import numpy as np
import pytest
from picture_files import png
from PIL import Image

from bridle_hf.data import BadClipError, decode_image


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
