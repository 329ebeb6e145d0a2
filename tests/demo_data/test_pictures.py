"""Pictures and videos of digits: ordinary dataset folders, whose classes are what they should be told by."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bridle_hf import BridleConfig
from bridle_hf.data import DataArguments, build_processor, load_examples
from bridle_hf.demo_data import write_digit_set, write_motion_set
from bridle_hf.demo_data.digits import place_digit
from bridle_hf.demo_data.motion import FRAMES, MOTIONS, SIZE, draw_video


def processor(modality, **sizes):
    return build_processor(BridleConfig(modality=modality, **sizes))


def test_digits_load_like_any_dataset(tmp_path):
    folder = write_digit_set(tmp_path / "set", seed=1, pictures_per_digit=1)
    data = DataArguments(str(folder), label_column="label", fold_column="fold")
    examples = load_examples(data, processor("image", input_size=(32, 32)))
    assert np.bincount(examples.labels).tolist() == np.bincount(load_digits().target).tolist()
    assert set(examples.folds) == {1, 2, 3, 4, 5} and examples.clips[0].shape == (3, 32, 32)
    files = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    again = write_digit_set(tmp_path / "again", seed=1, pictures_per_digit=1)
    assert {path.name: path.read_bytes() for path in again.rglob("*.png")} == files


def test_videos_load_like_any_dataset(tmp_path):
    folder = write_motion_set(tmp_path / "set", seed=1, videos_per_class=5)
    data = DataArguments(str(folder), label_column="label_name", fold_column="fold")
    examples = load_examples(data, processor("video", input_size=(16, 32, 32), patch_size=(2, 8, 8)))
    assert examples.label_names == sorted(MOTIONS) and examples.clips[0].shape == (FRAMES, 3, SIZE, SIZE)
    for fold in range(1, 6):
        assert np.bincount(examples.labels[examples.folds == fold]).tolist() == [1] * 10
    files = {path.name: path.read_bytes() for path in folder.rglob("*.mp4")}
    again = write_motion_set(tmp_path / "again", seed=1, videos_per_class=5)
    assert {path.name: path.read_bytes() for path in again.rglob("*.mp4")} == files


def centre(frame):
    """Angles (2,) of the mean place of the ink on the canvas without edges."""
    turns = np.exp(2j * np.pi * np.arange(SIZE) / SIZE)
    return np.angle([(frame.sum(axis=1) * turns).sum(), (frame.sum(axis=0) * turns).sum()])


@pytest.mark.parametrize(
    ("motion", "rows", "columns"),
    [("move up", -1, 0), ("move down", 1, 0), ("move left", 0, -1), ("move right", 0, 1)],
)
def test_straight_motions_go_where_they_say(motion, rows, columns):
    for seed in range(3):
        video = draw_video(motion, np.random.default_rng(seed)).astype(float).mean(axis=-1)
        places = np.unwrap([centre(frame) for frame in video], axis=0) * SIZE / (2 * np.pi)
        steps = np.diff(places, axis=0).mean(axis=0)
        speed = np.abs(steps).max()
        assert 0.9 < speed < 2.1
        np.testing.assert_allclose(steps, np.array([rows, columns]) * speed, atol=0.1)


@pytest.mark.parametrize(("motion", "sign"), [("circle clockwise", 1), ("circle counterclockwise", -1)])
def test_circles_turn_as_they_say(motion, sign):
    for seed in range(3):
        video = draw_video(motion, np.random.default_rng(seed)).astype(float).mean(axis=-1)
        places = np.unwrap([centre(frame) for frame in video], axis=0)
        down, right = np.diff(places, axis=0).T
        turned = np.unwrap(np.arctan2(down, right))  # rows grow downwards: a growing angle is clockwise to the eye
        assert sign * (turned[-1] - turned[0]) > 2


def test_a_turned_digit_is_turned_counterclockwise():
    bar = np.zeros((8, 8))
    bar[:4, 3:5] = 1.0  # points up
    turned = place_digit(bar, 32, (15.5, 15.5), 24.0, 90.0)
    assert turned[:, :14].sum() > 10 * turned[:, 18:].sum()  # points left


def test_one_frame_does_not_tell_the_motion():
    # The same frame number of every video, so that not even the time could help.
    rng = np.random.default_rng(0)
    names = list(MOTIONS)
    labels = np.arange(600) % len(names)
    frames = np.stack([draw_video(names[label], rng)[12].mean(axis=-1) for label in labels])
    pooled = frames.reshape(600, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(600, -1)
    # Rows and columns of a canvas without edges: the places and their cycles.
    waves = np.abs(np.fft.fft2(frames))[:, :8, :8].reshape(600, -1)
    for x in (pooled, waves):
        x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
        model = LogisticRegression(C=0.01, max_iter=500).fit(x[:400], labels[:400])
        assert (model.predict(x[400:]) == labels[400:]).mean() < 0.2  # chance is 0.1, its standard error 0.02
