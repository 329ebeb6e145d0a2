"""Images and videos decoded: what is in the file, only as much of it as is wanted, and a reason where that fails."""

import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
from picture_files import counting_video, numbers, png
from PIL import Image

from bridle_hf.data import BadClipError, decode_image, decode_video
from bridle_hf.demo_data.motion import write_video


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


@pytest.mark.parametrize("decode", [decode_image, decode_video])
def test_missing_files_give_a_reason(decode, tmp_path):
    with pytest.raises(BadClipError, match="neither bytes nor a path"):
        decode({"bytes": None, "path": None})
    with pytest.raises(BadClipError, match="cannot be decoded.*gone"):
        decode(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")]
)
def test_frames_are_those_that_were_asked_for(tmp_path, name, codec):
    path = counting_video(tmp_path / name, codec=codec)
    asked = []

    def choose(total):
        asked.append(total)
        return np.array([3, 7, 7, 12, 19])

    whole = decode_video(str(path))
    assert whole.shape == (20, 3, 32, 32) and whole.dtype == np.uint8 and numbers(whole) == list(range(20))
    for video in (str(path), {"bytes": path.read_bytes(), "path": None}):
        chosen = decode_video(video, choose)
        assert numbers(chosen) == [3, 7, 7, 12, 19]
        np.testing.assert_array_equal(chosen[-1], whole[19])
    assert asked == [20, 20]


def test_a_file_is_not_read_as_a_whole(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "long.mp4", noise, rate=10, codec="mpeg4")  # a key frame every 12 frames
    size, read = (tmp_path / "long.mp4").stat().st_size, []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

        def read(self, count=-1):
            data = super().read(count)
            read.append(len(data))
            return data

    monkeypatch.setattr(fsspec, "open", lambda path, mode: Counting(path))
    assert len(decode_video(str(tmp_path / "long.mp4"), lambda total: np.array([300, 301]))) == 2
    assert 0 < sum(read) < 0.3 * size


def test_unreadable_videos_give_a_reason(tmp_path):
    content = counting_video(tmp_path / "a.mp4").read_bytes()
    with pytest.raises(BadClipError, match="cannot be decoded"):
        decode_video({"bytes": content[:400], "path": "a.mp4"})
    with pytest.raises(BadClipError, match="ends before frame 41"):
        decode_video({"bytes": content}, lambda total: np.array([40]))


def test_a_frame_or_two_that_the_header_promises_are_made_up_for(tmp_path):
    path = counting_video(tmp_path / "a.mp4")
    assert numbers(decode_video(str(path), lambda total: np.array([17, 19, 21]))) == [17, 19, 19]


def test_a_sound_is_no_video(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 16000)
    with pytest.raises(BadClipError, match="cannot be decoded"):
        decode_video(str(Path(tmp_path / "a.wav")))
