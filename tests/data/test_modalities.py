"""Images and videos on the path that sounds take: streams, caches and example sets of real files."""

import io
import logging
import tarfile

import numpy as np
import pytest
import torch
from picture_files import LEVELS, counting_video, numbers, picture, png, write_folder

from bridle_hf import BridleFeatureExtractor
from bridle_hf.data import BadClipError, DataArguments, build_loader, load_examples, modality_of, video

PLAIN = {"crop_scale": (1.0, 1.0), "flip": False}


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """24 pictures, told apart by their brightness."""
    files = {f"{i:02d}.png": png(picture(i)) for i in range(24)}
    return write_folder(tmp_path_factory.mktemp("images") / "set", files)


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    """12 videos of 13 frames, whose first frames differ."""
    files = tmp_path_factory.mktemp("videos")
    contents = {f"{i:02d}.mp4": counting_video(files / f"{i}.mp4", 13, first=i).read_bytes() for i in range(12)}
    return write_folder(files / "set", contents)


@pytest.fixture(params=["image", "video"])
def source(request, image_processor, video_processor, image_folder, video_folder):
    if request.param == "image":
        return image_folder, image_processor
    return video_folder, video_processor


def levels(batch) -> list[int]:
    """Mean brightness of each clip of a batch, in units of 255."""
    return np.round(255 * batch["pixel_values"].numpy().mean(axis=tuple(range(1, batch["pixel_values"].ndim)))).tolist()


def test_a_batch_of_images(image_folder, image_processor):
    loader = build_loader(DataArguments(image_folder, **PLAIN), image_processor, batch_size=24, seed=0)
    batch = next(loader)
    assert set(batch) == {"pixel_values"} and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].shape == (24, 3, 16, 16)
    assert sorted(levels(batch)) == LEVELS.tolist()


@pytest.mark.parametrize("cache", [False, True])
def test_a_batch_of_videos_is_clips_at_random_places(video_folder, video_processor, tmp_path, cache):
    data = DataArguments(video_folder, cache=cache, cache_dir=str(tmp_path), **PLAIN)
    loader = build_loader(data, video_processor, batch_size=12, seed=0)
    first, second = next(loader)["pixel_values"], next(loader)["pixel_values"]
    assert first.shape == (12, 4, 3, 16, 16)
    starts = []
    for clip in torch.cat([first, second]):
        frames = np.array(numbers(255 * clip.numpy()))
        assert (np.diff(frames) == 3).all()
        starts.append(frames[0])
    assert max(starts) > 11  # no video begins so late
    assert len(set(starts)) > 10


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("cache", [False, True])
def test_augmented_streams_resume_exactly(source, tmp_path, num_workers, cache):
    folder, processor = source
    options = {"crop": "multi_scale", "rand_augment": 5, "erase": 0.5, "cache_dir": str(tmp_path)}
    data = DataArguments(folder, shuffle_buffer=7, num_workers=num_workers, cache=cache, **options)
    reference = build_loader(data, processor, batch_size=5, seed=3)
    states, batches = [], []
    for _ in range(5):
        states.append(reference.state_dict())
        batches.append(next(reference)["pixel_values"])
    resumed = build_loader(data, processor, batch_size=5, seed=3)
    resumed.load_state_dict(states[2])
    for expected in batches[2:]:
        assert torch.equal(next(resumed)["pixel_values"], expected)


def test_examples_are_the_clips_in_order(source, tmp_path):
    folder, processor = source
    direct = load_examples(DataArguments(folder, label_column="kind"), processor)
    expected = direct.batch(range(len(direct)))["pixel_values"]
    assert direct.labels.tolist() == [0, 1] * (len(direct) // 2) and direct.label_names == ["a", "b"]
    for options in ({"cache": True}, {"in_memory": False}, {"in_memory": False, "cache": True}):
        data = DataArguments(folder, label_column="kind", cache_dir=str(tmp_path), **options)
        kept = load_examples(data, processor)
        np.testing.assert_array_equal(kept.batch(range(len(direct)))["pixel_values"], expected)
        assert kept.labels.tolist() == direct.labels.tolist() and kept.label_names == direct.label_names
        assert [name.rsplit("/")[-1] for name in kept.clip_names] == [n.rsplit("/")[-1] for n in direct.clip_names]
        data.exclude = {"index": [0, 3]}
        assert len(load_examples(data, processor)) == len(direct) - 2


def test_of_a_training_clip_on_disk_only_the_frames_used_are_decoded(
    video_folder, video_processor, tmp_path, monkeypatch
):
    data = DataArguments(video_folder, in_memory=False, cache_dir=str(tmp_path), **PLAIN)
    examples, decode, decoded = load_examples(data, video_processor), video.decode_video, []
    monkeypatch.setattr(video, "decode_video", lambda *a, **k: decoded.append(decode(*a, **k)) or decoded[-1])
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(3):
        for row, clip in enumerate(examples.training_batch(range(12), rng)["pixel_values"]):
            frames = np.array(numbers(255 * clip))
            assert (np.diff(frames) == 3).all()
            starts.append(frames[0] - row)  # the video of each row begins with its number
    assert {len(frames) for frames in decoded} == {4} and set(starts) == {0, 1, 2, 3}
    assert len(examples.batch([0])["pixel_values"]) == 1 and len(decoded[-1]) == 4
    views = examples.batch([0, 2], views=(2, 1))["pixel_values"]
    assert [numbers(255 * clip) for clip in views] == [[0, 3, 6, 9], [3, 6, 9, 12], [2, 5, 8, 11], [5, 8, 11, 14]]
    assert {len(frames) for frames in decoded[-2:]} == {8}


def test_where_clips_are_kept_changes_nothing_else(image_folder, image_processor, tmp_path):
    options = {"crop": "multi_scale", "rand_augment": 5, "erase": 0.5, "cache_dir": str(tmp_path)}
    kept = [load_examples(DataArguments(image_folder, in_memory=there, **options), image_processor) for there in (1, 0)]
    first, second = (examples.training_batch(range(8), np.random.default_rng(1)) for examples in kept)
    np.testing.assert_array_equal(first["pixel_values"], second["pixel_values"])


def test_a_video_that_is_damaged_elsewhere_is_trained_on(video_folder, video_processor, tmp_path, monkeypatch):
    data = DataArguments(video_folder, in_memory=False, cache_dir=str(tmp_path), **PLAIN)
    examples, decode = load_examples(data, video_processor), video.decode_video

    def refuse_others(raw, choose):
        if choose(13).tolist() != [2, 5, 8, 11]:  # the clip of a test
            raise BadClipError("cannot be decoded")
        return decode(raw, choose)

    monkeypatch.setattr(video, "decode_video", refuse_others)
    clips = examples.training_batch([0, 1], np.random.default_rng(0))["pixel_values"]
    assert [numbers(255 * clip) for clip in clips] == [[2, 5, 8, 11], [3, 6, 9, 12]]


def test_without_training_only_the_clip_of_a_test_is_kept(video_folder, video_processor):
    kept = load_examples(DataArguments(video_folder), video_processor, for_training=False)
    assert {clip.shape[:2] for clip in kept.clips} == {(1, 4)}
    whole = load_examples(DataArguments(video_folder), video_processor)
    found, expected = (examples.batch(range(12))["pixel_values"] for examples in (kept, whole))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"views is \(2, 1\); these samples hold 1 clips each"):
        kept.batch([0], views=(2, 1))


@pytest.mark.parametrize(("crop", "least"), [("resized", 32), ("multi_scale", 64)])
def test_frames_are_kept_no_larger_than_training_needs(tmp_path, video_processor, crop, least):
    path = str(counting_video(tmp_path / "a.mp4", size=128))
    data = DataArguments("x", crop=crop, crop_scale=(0.25, 1.0))
    frames = video.video_frames(path, data, video_processor)
    assert frames.shape == (20, 3, least, least) and numbers(frames) == list(range(20))
    assert video.video_frames(path, data, video_processor, np.random.default_rng(0)).shape[2:] == (128, 128)
    assert video.video_frames(path, data, video_processor, views=(3, 1)).shape == (3, 4, 3, 128, 128)


def test_views_of_an_example_lie_side_by_side(video_folder, video_processor):
    examples = load_examples(DataArguments(video_folder), video_processor)
    views = examples.batch([0, 2], views=(2, 1))["pixel_values"]
    frames = [numbers(255 * clip) for clip in views]
    assert frames == [[0, 3, 6, 9], [3, 6, 9, 12], [2, 5, 8, 11], [5, 8, 11, 14]]
    with pytest.raises(TypeError):
        load_examples(DataArguments(video_folder), video_processor).collate.plain([], crops=2)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_test_split_comes_last_and_is_the_fold_to_test(tmp_path, image_processor, in_memory):
    for split, indices in (("train", range(4)), ("test", range(4, 7))):
        for index in indices:
            path = tmp_path / "set" / split / "ab"[index % 2]
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{index}.png").write_bytes(png(picture(index)))
    data = DataArguments(str(tmp_path / "set"), test_split="test", label_column="label", in_memory=in_memory)
    data.cache_dir = str(tmp_path / "cache")
    examples = load_examples(data, image_processor)
    assert examples.test_folds == ["test"] and examples.folds.tolist() == ["train"] * 4 + ["test"] * 3
    assert examples.label_names == ["a", "b"]
    shown = np.round(255 * examples.batch(range(7))["pixel_values"].mean(axis=(1, 2, 3))).astype(int)
    assert [LEVELS.tolist().index(level) % 2 for level in shown] == examples.labels.tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_files_are_skipped_counted_and_named(tmp_path, image_processor, video_processor, num_workers, caplog):
    short = counting_video(tmp_path / "short.mp4", frames=3).read_bytes()
    whole = counting_video(tmp_path / "whole.mp4", frames=8).read_bytes()
    sets = {
        "images": (image_processor, {"good.png": png(picture(3)), "bad.png": b"no image"}),
        "videos": (video_processor, {"good.mp4": whole, "bad.mp4": b"no video", "short.mp4": short}),
    }
    for name, (processor, files) in sets.items():
        data = DataArguments(write_folder(tmp_path / name, files), num_workers=num_workers, max_bad_share=1.0)
        with caplog.at_level(logging.WARNING):
            loader = build_loader(data, processor, batch_size=1, seed=0)
            batches = [next(loader) for _ in range(4)]
        assert len(batches) == 4
        skipped = {path.rsplit("/")[-1]: reason for path, reason in loader.skipped.items()}
        assert set(skipped) == {path for path in files if not path.startswith("good")}
        assert all(path in caplog.text for path in skipped)
        if "short.mp4" in skipped:
            assert "the video has 3 frames; a clip takes at least 4" in skipped["short.mp4"]
        assert len(load_examples(data, processor)) == 1


def test_webdataset_shards(tmp_path, image_processor, video_processor):
    video = counting_video(tmp_path / "a.mp4", 13).read_bytes()
    for ending, processor, contents in (
        ("png", image_processor, [png(picture(i)) for i in range(4)]),
        ("mp4", video_processor, [video] * 2),
    ):
        folder = tmp_path / ending
        folder.mkdir()
        with tarfile.open(folder / "train-000.tar", "w") as tar:
            for index, content in enumerate(contents):
                member = tarfile.TarInfo(f"{index:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        loader = build_loader(DataArguments(str(folder), **PLAIN), processor, batch_size=len(contents), seed=0)
        batch = next(loader)
        assert len(batch["pixel_values"]) == len(contents)
        if ending == "png":
            assert sorted(levels(batch)) == LEVELS[:4].tolist()


def test_a_part_of_cifar(cifar10_dir, image_processor):
    data = DataArguments(str(cifar10_dir), split="test", label_column="label")
    examples = load_examples(data, image_processor)
    assert len(examples) == 2000 and examples.clips[0].shape == (3, 32, 32)
    assert examples.label_names[:3] == ["airplane", "automobile", "bird"]
    assert next(build_loader(data, image_processor, batch_size=3, seed=0))["pixel_values"].shape == (3, 3, 16, 16)


def test_a_set_of_another_kind_is_named(image_folder, audio_folder, image_processor, video_processor, extractor):
    with pytest.raises(ValueError, match="data.input_column: set .* no column of type Video.*Left out .* 24 .png"):
        build_loader(DataArguments(image_folder), video_processor, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="no column of type Image"):
        build_loader(DataArguments(audio_folder), image_processor, batch_size=1, seed=0)
    assert modality_of(extractor).processor is BridleFeatureExtractor
    with pytest.raises(TypeError, match="processor is a str; it takes one of BridleFeatureExtractor, BridleImage"):
        modality_of("audio")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "data.crop_scale must be two ascending shares"),
        ({"crop_scale": (0.9, 0.5)}, "data.crop_scale must be two ascending shares"),
        ({"rand_augment": 31}, "data.rand_augment must be between 0 and 30, got 31"),
        ({"erase": 1.5}, "data.erase must be between 0 and 1"),
        ({"test_views": (0, 1)}, "data.test_views must be two numbers of at least 1"),
        ({"test_split": "test", "fold_column": "fold"}, "data.test_split and data.fold_column are both given"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        DataArguments("somewhere", **setting)
