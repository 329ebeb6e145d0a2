import numpy as np
import pytest

from bridle_hf.evaluation.handmade import HANDMADE, colours, frame_differences, handmade_features, middle_frame, pixels


def test_logmel_statistics_leave_padding_out(padded_examples):
    features = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32)
    clips = padded_examples(features, np.arange(64) < np.array([64, 20])[:, None])
    got = handmade_features(clips, HANDMADE["audio"]["logmel-delta"])
    frames = features[1, :20].astype(np.float64)
    expected = [frames.mean(0), frames.std(0), np.abs(frames[1:] - frames[:-1]).mean(0)]
    np.testing.assert_allclose(got[1], np.concatenate(expected))
    np.testing.assert_allclose(handmade_features(clips, HANDMADE["audio"]["logmel"])[1], np.concatenate(expected[:2]))


@pytest.mark.parametrize("size", [(5, 12), (16, 16), (48, 40)])
def test_pixels_are_means_of_squares(size):
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
    np.testing.assert_allclose(pixels(picture), expected)


def test_colours_and_frames_by_hand():
    video = np.zeros((3, 1, 2, 2))
    video[1], video[2] = 1.0, [[3.0, 1.0], [1.0, 1.0]]
    assert colours(video[2]).tolist() == [1.5, np.sqrt(0.75)]
    assert middle_frame(video).tolist() == [1.0] * 4
    assert frame_differences(video).tolist() == [1.5, 0.5, 0.5, 0.5]
