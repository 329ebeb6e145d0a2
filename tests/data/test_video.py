"""Videos decoded: the frames in the file, only as many as are wanted, and a reason where that fails."""

import io
from pathlib import Path

import numpy as np
import pytest
from picture_files import counting_video, numbers

from bridle_hf import BridleConfig
from bridle_hf.data import BadClipError, decode_video, media
from bridle_hf.data.arguments import DataArguments
from bridle_hf.data.modalities import build_processor
from bridle_hf.data.video import VideoCollator, frame_differences, middle_frame
from bridle_hf.demo_data.motion import write_video


def test_missing_files_give_a_reason(tmp_path):
    with pytest.raises(BadClipError, match="neither bytes nor a path"):
        decode_video({"bytes": None, "path": None})
    with pytest.raises(BadClipError, match="cannot be read.*gone"):
        decode_video(str(tmp_path / "gone"))


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

    monkeypatch.setattr(media, "open", lambda path, mode: Counting(path), raising=False)
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


def test_half_of_the_clips_play_backwards():
    """Frame k of the video has the grey value 10 k; a clip takes every second frame, forwards or backwards."""
    video = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None] * 10, (20, 3, 32, 32))
    config = BridleConfig(modality="video", input_size=(4, 32, 32), patch_size=(2, 16, 16))
    processor = build_processor(config, frame_stride=2, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    for flip_time in (False, True):
        collate = VideoCollator(DataArguments(crop_scale=(1.0, 1.0), flip_time=flip_time), processor)
        batch = collate([video] * 200, np.random.default_rng(0))["pixel_values"]
        grey = np.round(batch * 25.5).mean(axis=(2, 3, 4))  # (200, 4)
        steps = np.diff(grey, axis=1)
        assert np.isin(steps, (2, -2)).all() and (steps == steps[:, :1]).all()
        assert len(np.unique(grey[:, 0])) > 5  # from different places
        backwards = (steps[:, 0] < 0).sum()
        assert 70 < backwards < 130 if flip_time else backwards == 0


def test_baselines_by_hand():
    video = np.zeros((3, 1, 2, 2))
    video[1], video[2] = 1.0, [[3.0, 1.0], [1.0, 1.0]]
    assert middle_frame(video).tolist() == [1.0] * 4
    assert frame_differences(video).tolist() == [1.5, 0.5, 0.5, 0.5]
