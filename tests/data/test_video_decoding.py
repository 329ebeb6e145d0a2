"""Any frame of a video is the one that was asked for, upright, whatever container and codec hold it."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import RATE, brightness, turn, write_video

from bridle_hf import BridleVideoProcessor
from bridle_hf.data import BadClipError, decode_video
from bridle_hf.video_decoding_bridle import film_of
from bridle_hf.video_processing_bridle import clip_indices

COUNT = 60
UNEVEN = np.cumsum([0, *np.random.default_rng(0).integers(10, 90, COUNT - 1)]).tolist()
FILES = {
    "a.ts": {"gop": 50},
    "a.mts": {"gop": 50},
    "pyramid.ts": {"gop": 50, "options": {"x264-params": "bframes=5:b-pyramid=normal"}},
    "a.mpg": {"codec": "mpeg2video", "gop": 15, "b_frames": 2},
    "a.vob": {"codec": "mpeg2video", "gop": 15},
    "mpeg2.ts": {"codec": "mpeg2video", "gop": 15, "b_frames": 2},
    "a.flv": {"gop": 50},
    "a.mp4": {"gop": 50},
    "a.mov": {},
    "a.mkv": {},
    "open.mp4": {"options": {"x264-params": "open-gop=1:bframes=3"}},
    "open.ts": {"options": {"x264-params": "open-gop=1:bframes=3"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=4:open-gop=1"}},
    "hevc10.mp4": {"codec": "libx265", "pixel_format": "yuv420p10le"},
    "refresh.mp4": {"gop": 50, "options": {"x264-params": "intra-refresh=1"}},
    "fragments.mp4": {"mux": {"movflags": "frag_keyframe+empty_moov"}},
    "a.webm": {"codec": "libvpx-vp9"},
    "piped.webm": {"codec": "libvpx-vp9", "pipe": "webm"},
    "live.webm": {"codec": "libvpx-vp9", "pipe": "webm", "mux": {"live": "1"}},
    "piped.mkv": {"pipe": "matroska"},
    "late.mkv": {"times": [5000 + 40 * number for number in range(COUNT)]},
    "late.webm": {"codec": "libvpx-vp9", "times": [60_000 + 40 * number for number in range(COUNT)]},
    "uneven.mkv": {"times": UNEVEN},
    "uneven.mp4": {"times": UNEVEN},
    "bidirectional.avi": {},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "a.wmv": {"codec": "wmv2"},
    "raw.h264": {},
    "a.gif": {"codec": "gif", "pixel_format": "rgb8"},
    "a.apng": {"codec": "apng", "pixel_format": "rgb24"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def written(folder):
    """Name -> path of a file of `FILES`, written once."""
    paths = {}

    def of(name):
        if name not in paths:
            paths[name] = write_video(folder / name, **FILES[name])
        return paths[name]

    return of


@pytest.mark.parametrize("name", FILES)
def test_a_frame_is_the_same_alone_as_among_all(written, name):
    whole = decode_video(written(name))
    if "uneven" not in name:
        assert len(whole) == COUNT
        assert np.abs(brightness(whole) - np.linspace(0, 255, COUNT)).max() < 15
    for first in range(0, len(whole) - 5, 7):
        asked = []

        def choose(total, first=first, asked=asked):
            asked.append(total)
            return first + 2 * np.arange(3)

        np.testing.assert_array_equal(decode_video(written(name), choose), whole[first : first + 6 : 2])
        assert asked[0] in (len(whole), len(whole) - 1)


@pytest.mark.parametrize("name", FILES)
def test_training_tests_and_the_processor_take_the_same_frames(written, name):
    path = written(name)
    whole = decode_video(path)
    chosen = decode_video(path, lambda total: clip_indices(total, 4, 3, 0.5))
    middle = whole[clip_indices(len(whole), 4, 3, 0.5)]
    assert np.abs(brightness(chosen) - brightness(middle)).max() <= 255 / COUNT + 3  # a header may miss the last frame
    settings = {"do_resize": False, "do_center_crop": False, "image_mean": [0] * 3, "image_std": [1] * 3}
    processor = BridleVideoProcessor(do_sample_frames=True, num_frames=4, frame_stride=3, **settings)
    values = processor(path, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(255 * values, chosen, atol=1e-3)
    whole_values = processor(path, do_sample_frames=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(255 * whole_values, whole, atol=1e-3)


@pytest.mark.parametrize(("name", "codec"), [("twice.mkv", "libx264"), ("twice.webm", "libvpx-vp9")])
def test_of_frames_of_one_number_the_first_counts_wherever_reading_begins(folder, name, codec):
    """From 0.48 s on, the frame rate is twice that of the header."""
    times = [*range(0, 480, 40), *range(480, 1440, 20)]
    path = write_video(folder / name, codec=codec, times=times, mux={"default_mode": "infer"})
    whole = decode_video(path)
    for number in range(len(whole)):
        np.testing.assert_array_equal(decode_video(path, lambda _, number=number: np.array([number])), whole[[number]])


def test_a_frame_is_what_is_shown_at_its_time(folder):
    times = [0, 40, 80, 400, 440, 480]  # a pause of eight frames
    path = write_video(folder / "pause.mkv", frames=6, times=times, mux={"default_mode": "infer"})
    whole = brightness(decode_video(path))
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
    shown = [max(n for n, time in enumerate(times) if round(time / 1000 * rate) <= k) for k in range(len(whole))]
    assert len(whole) == round(480 / 1000 * rate) + 1 and np.abs(whole - 51 * np.array(shown)).max() < 12


def test_numbers_may_repeat_and_come_in_any_order(written):
    whole = decode_video(written("a.mp4"))
    wanted = np.array([50, 7, 7, 30, 50])
    np.testing.assert_array_equal(decode_video(written("a.mp4"), lambda total: wanted), whole[wanted])


def test_a_clip_behind_the_true_end_is_taken_before_it(folder):
    path = Path(write_video(folder / "cut.mp4", mux={"movflags": "faststart"}, frames=noisy(60)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    whole, asked = decode_video(str(path)), []

    def choose(total):
        asked.append(total)
        return clip_indices(total, 4, 3, 1.0)

    np.testing.assert_array_equal(decode_video(str(path), choose), whole[[-10, -7, -4, -1]])
    assert asked == [60, len(whole)] and len(whole) < 50


def noisy(count: int) -> np.ndarray:
    """uint8 (count, 64, 64, 3), hard to compress, so that a stretch of the file holds few of them."""
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_a_damaged_stretch_costs_itself_alone_and_is_named(folder, caplog):
    path = Path(write_video(folder / "whole.mp4", frames=noisy(60)))
    content, whole = bytearray(path.read_bytes()), decode_video(str(path))
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = decode_video(str(damaged))
        decode_video(str(damaged))
    assert found.shape == whole.shape
    same = (found == whole).all(axis=(1, 2, 3))
    assert same[:24].all() and same[48:].all() and not same.all()
    for first in (0, 50):
        clip = decode_video(str(damaged), lambda total, first=first: first + np.arange(8))
        np.testing.assert_array_equal(clip, whole[first : first + 8])
    assert [record.message for record in caplog.records if "damaged" in record.message] == [
        f"{damaged} is damaged in part; there the frame before is taken"
    ]


def test_a_clip_is_refused_where_more_is_damaged_than_whole(folder):
    path = Path(write_video(folder / "long.mp4", frames=noisy(200)))
    content, whole = bytearray(path.read_bytes()), decode_video(str(path))
    start, end = (round(share * len(content)) for share in (0.45, 0.55))
    content[start:end] = bytes(end - start)  # some 20 frames
    damaged = folder / "much.mp4"
    damaged.write_bytes(content)
    same = (decode_video(str(damaged)) == whole).all(axis=(1, 2, 3))  # no frame is at another's place
    assert same[:88].all() and same[112:].all() and not same[92:108].any()
    places = np.array([0, 40, 80, 85, 120, 150, 180, 199])
    np.testing.assert_array_equal(decode_video(str(damaged), lambda total: places), whole[places])
    with pytest.raises(BadClipError, match="of .* packets are damaged where it was read"):
        decode_video(str(damaged), lambda total: 96 + np.arange(8))


QUADRANTS = np.zeros((48, 64, 3), np.uint8)  # red, green over blue, white
QUADRANTS[:24, :32, 0], QUADRANTS[:24, 32:, 1], QUADRANTS[24:, :32, 2], QUADRANTS[24:, 32:] = 255, 255, 255, 255


def corners(frame: np.ndarray) -> str:
    """(3, H, W) -> the colours of its corners, row by row."""
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    return "".join(names[tuple((frame[:, y, x] > 127).astype(int).tolist())] for y in (4, -5) for x in (4, -5))


@pytest.mark.parametrize(
    ("matrix", "shape", "expected"),
    [
        ((1, 0, 0, 1), (48, 64), "rgbw"),
        ((0, 1, -1, 0), (64, 48), "brwg"),  # a quarter to the right
        ((-1, 0, 0, -1), (48, 64), "wbgr"),
        ((0, -1, 1, 0), (64, 48), "gwrb"),
        ((-1, 0, 0, 1), (48, 64), "grwb"),  # left and right exchanged
        ((1, 0, 0, -1), (48, 64), "bwrg"),  # upside down in a mirror
        ((0, 1, 1, 0), (64, 48), "rbgw"),
        ((0, -1, -1, 0), (64, 48), "wgbr"),
    ],
)
def test_a_turned_video_is_upright(tmp_path, matrix, shape, expected):
    path = turn(write_video(tmp_path / "a.mp4", frames=np.stack([QUADRANTS] * 6)), matrix)
    settings = {"do_resize": False, "do_center_crop": False, "image_mean": [0] * 3, "image_std": [1] * 3}
    processor = BridleVideoProcessor(**settings)
    for frames in (
        decode_video(path),
        decode_video(path, lambda total: np.array([1, 3])),
        decode_video({"bytes": Path(path).read_bytes(), "path": None}),
        255 * processor(path, return_tensors="np")["pixel_values"][0],
    ):
        assert frames.shape[2:] == shape and corners(frames[1]) == expected


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2, 1), 128), (Fraction(8, 9), 57), (Fraction(1, 1), 64)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pixels_become_square(tmp_path, name, aspect, width):
    path = write_video(tmp_path / name, frames=np.stack([QUADRANTS] * 6), aspect=aspect)
    frames = decode_video(path, lambda total: np.array([1, 3]))
    assert frames.shape == (2, 3, 48, width) and corners(frames[0]) == "rgbw"
    values = BridleVideoProcessor(do_resize=False, do_center_crop=False)(path, return_tensors="np")["pixel_values"]
    assert values.shape[-2:] == (48, width)


def test_a_turned_video_with_oblong_pixels(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=np.stack([QUADRANTS] * 6), aspect=Fraction(2, 1))
    frames = decode_video(turn(path, (0, 1, -1, 0)))
    assert frames.shape[2:] == (128, 48) and corners(frames[1]) == "brwg"


@pytest.mark.parametrize(("name", "codec", "kind"), [("a.mov", "qtrle", "argb"), ("a.apng", "apng", "rgba")])
def test_transparent_videos_lie_on_white(tmp_path, name, codec, kind):
    pixels = np.zeros((4, 32, 32, 4), np.uint8)
    pixels[:, 8:24, 8:24] = [0, 0, 200, 255]
    frames = decode_video(write_video(tmp_path / name, codec, pixels, pixel_format=kind))
    assert frames[1, :, 0, 0].tolist() == [255] * 3 and frames[1, :, 16, 16].tolist() == [0, 0, 200]


def test_a_cover_picture_is_not_the_film(tmp_path):
    path = str(tmp_path / "a.mp4")
    with av.open(path, "w") as container:
        cover, film = container.add_stream("mjpeg", rate=RATE), container.add_stream("libx264", rate=RATE)
        cover.width = cover.height = 128
        cover.pix_fmt, film.width, film.height, film.pix_fmt = "yuvj420p", 64, 48, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((128, 128, 3), np.uint8))))
        for number in range(10):
            container.mux(film.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8))))
        container.mux(film.encode())
    assert decode_video(path).shape == (10, 3, 48, 64)
    with av.open(path) as container:
        assert film_of(container).index == 1


def test_a_file_with_sound_alone_says_so(tmp_path):
    path = str(tmp_path / "a.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadClipError, match="holds no video, only audio"):
        decode_video(path)
    with pytest.raises(ValueError, match="holds no video, only audio"):
        BridleVideoProcessor()(path)


def test_too_many_pixels_are_refused_before_they_fill_the_memory(written, monkeypatch):
    monkeypatch.setattr("bridle_hf.video_decoding_bridle.MAX_PIXELS", 20 * 48 * 64)
    with pytest.raises(BadClipError, match="pixels were to be decoded at once, at 64 x 48 a frame; decode clips"):
        decode_video(written("a.mp4"))
    assert len(decode_video(written("a.mp4"), lambda total: 3 * np.arange(20))) == 20
