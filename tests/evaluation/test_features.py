import numpy as np
import pytest
import torch

from bridle_hf import BridleConfig, BridleModel
from bridle_hf.clip_features_bridle import FRAME_POOLINGS, POOLINGS, pool
from bridle_hf.evaluation.features import encoder_features


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BridleModel(BridleConfig(input_size=(64, 32), patch_size=(16, 16), **sizes))


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(4, 64, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def clips(features, padded_examples):
    """Four clips of 64, 48, 32 and 20 frames."""
    return padded_examples(features, np.arange(64) < np.array([64, 48, 32, 20])[:, None])


def test_pooling_by_hand():
    # CLS; two steps in time of two frequencies each; padding
    rows = [[9.0], [1.0], [0.0], [3.0], [4.0], [100.0], [100.0]]
    tokens, valid = torch.tensor([rows]), torch.tensor([[True] * 4 + [False] * 2])
    expected = {
        "mean": [2.0],
        "mean_std": [2.0, 2.5**0.5],
        "cls": [9.0],
        "bands": [2.0, 2.0],
        "bands_std": [2.0, 2.0, 1.0, 2.0],
        "frames": [[0.5], [3.5], [0.0]],
        "frame_bands": [[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]],
    }
    assert list(expected) == [*POOLINGS, *FRAME_POOLINGS]
    for pooling, values in expected.items():
        torch.testing.assert_close(pool(tokens, valid, pooling, True, (3, 2)), torch.tensor([values]))
        short = pool(tokens[:, 1:5], None, pooling, False, (2, 2)) if pooling != "cls" else None
        if pooling in POOLINGS and pooling != "cls":
            torch.testing.assert_close(short, torch.tensor([values]))


@pytest.mark.parametrize("pooling", ["mean_std", "bands_std"])
def test_a_deviation_of_zero_has_a_gradient(pooling):
    """A clip with a single time step has standard deviation 0; its gradient must be finite."""
    tokens = torch.randn(2, 6, 3, requires_grad=True)
    with torch.no_grad():
        tokens[0, 0] = tokens[0, 1]
    valid = torch.tensor([[True] * 2 + [False] * 4, [True] * 6])
    found = pool(tokens, valid, pooling, False, (3, 2))
    found.sum().backward()
    assert (found[0, -3:] == 0).all() and tokens.grad.isfinite().all() and (tokens.grad[1] != 0).all()


def test_a_padded_clip_has_the_features_of_the_clip_alone(model, clips, features, padded_examples):
    keys = {"layers": (None, 0, 1, 2), "poolings": POOLINGS}
    together = encoder_features(model, clips, batch_size=3, **keys)
    assert set(together) == {(layer, pooling) for layer in keys["layers"] for pooling in keys["poolings"]}
    for row, frames in enumerate((64, 48, 32)):  # whole patches
        alone = padded_examples(features[row : row + 1, :frames], np.ones((1, frames), dtype=bool))
        for key, value in encoder_features(model, alone, **keys).items():
            np.testing.assert_allclose(together[key][row], value[0], atol=2e-5)


def test_mean_of_the_final_output_is_the_models_pooler_output(model, clips):
    got = encoder_features(model, clips)[None, "mean"]
    batch = {name: torch.tensor(value) for name, value in clips.batch(range(4)).items()}
    with torch.no_grad():
        expected = model(**batch).pooler_output
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_layers_differ_and_negative_numbers_count_from_the_end(model, clips):
    got = encoder_features(model, clips, layers=(-1, 2, 1))
    np.testing.assert_array_equal(got[-1, "mean"], got[2, "mean"])
    assert np.abs(got[2, "mean"] - got[1, "mean"]).max() > 1e-3


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"layers": (3,)}, r"got 3; the model has layers 1\.\.2"), ({"poolings": ("max",)}, "'max'.*mean_std")],
)
def test_bad_choices_are_named(model, clips, keys, message):
    with pytest.raises(ValueError, match=message):
        encoder_features(model, clips, **keys)


@pytest.mark.parametrize(
    ("modality", "size", "pooling", "message"),
    [
        ("audio", (64, 32), "cls", "'cls', but the model has no CLS token; it takes one of mean, mean_std, bands, ba"),
        (
            "image",
            (32, 32),
            "bands",
            "'bands', but patches of image data have no frequency; it takes one of mean, me",
        ),
        ("image", (32, 32), "frames", "'frames', but images have no time; it takes one of mean, mean_std.$"),
        ("video", (4, 32, 32), "frame_bands", "patches of video data have no frequency; .* mean, mean_std, frames.$"),
    ],
)
def test_poolings_that_a_model_has_not_are_named(modality, size, pooling, message):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "use_cls_token": False}
    model = BridleModel(BridleConfig(modality=modality, input_size=size, pooling="mean", **sizes))
    name = model.main_input_name
    shape = {"audio": (1, 64, 32), "image": (1, 3, 32, 32), "video": (1, 4, 3, 32, 32)}[modality]
    with pytest.raises(ValueError, match=message):
        model.extract_features(**{name: torch.zeros(shape)}, pooling=pooling)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_frames_of_long_clips_are_those_of_their_windows(model, overlap):
    """Clips of 160 and 100 frames, padded to 160; the model's window is 64."""
    rng, lengths = np.random.default_rng(1), (160, 100)
    values = torch.tensor(rng.normal(size=(2, 160, 32)), dtype=torch.float32)
    mask = (torch.arange(160) < torch.tensor(lengths)[:, None]).long()
    given = {"input_values": values, "attention_mask": mask, "overlap": overlap, "batch_size": 2}
    with torch.no_grad():
        got = {name: model.extract_features(**given, pooling=name) for name in (*POOLINGS, *FRAME_POOLINGS)}
    frames = got["frame_bands"]
    assert frames.features.shape == (2, 10, 48) and frames.frame_mask.tolist() == [[1] * 10, [1] * 7 + [0] * 3]
    torch.testing.assert_close(frames.times, torch.arange(10) * 0.16)
    for row, length in enumerate(lengths):
        starts = {(160, 0.0): [0, 64, 96], (100, 0.0): [0, 48], (160, 0.5): [0, 32, 64, 96], (100, 0.5): [0, 32, 48]}
        total, seen, cls, counted = np.zeros((10, 48)), np.zeros((10, 1)), 0.0, 0
        for start in starts[length, overlap]:
            part = slice(start, start + 64)
            with torch.no_grad():
                tokens = model(input_values=values[row : row + 1, part], attention_mask=mask[row : row + 1, part])
            tokens = tokens.last_hidden_state[0].numpy()
            total[start // 16 : start // 16 + 4] += tokens[1:].reshape(4, 48)
            seen[start // 16 : start // 16 + 4] += 1
            real = -(-min(64, length - start) // 16)
            cls, counted = cls + real * tokens[0], counted + real
        steps = -(-length // 16)
        merged = (total / seen.clip(1))[:steps]
        patches = merged.reshape(-1, 24)
        expected = {
            "frame_bands": merged,
            "frames": merged.reshape(-1, 2, 24).mean(axis=1),
            "mean": patches.mean(axis=0),
            "mean_std": np.concatenate([patches.mean(axis=0), patches.std(axis=0)]),
            "bands": merged.mean(axis=0),
            "bands_std": np.concatenate([merged.mean(axis=0), merged.std(axis=0)]),
            "cls": cls / counted,
        }
        for name, value in expected.items():
            found = got[name].features[row].numpy()
            np.testing.assert_allclose(found[:steps] if name in FRAME_POOLINGS else found, value, atol=2e-5)
            assert name in POOLINGS or (found[steps:] == 0).all()


def test_layers_are_chosen_stacked_and_mixed(model, features):
    given = {"input_values": torch.tensor(features), "pooling": "bands"}
    with torch.no_grad():
        hidden = model(input_values=given["input_values"], output_hidden_states=True).hidden_states
        every = model.extract_features(**given, layers="all").features
        one = model.extract_features(**given, layers=1).features
        mixed = model.extract_features(**given, layers="all", layer_weights=torch.tensor([0.0, 1.0, 2.0]))
    assert every.shape == (4, 3, 48) and one.shape == (4, 48)
    for number, layer in enumerate(hidden):
        np.testing.assert_allclose(every[:, number], layer[:, 1:].reshape(4, 4, 48).mean(dim=1), atol=1e-6)
    torch.testing.assert_close(one, every[:, 1])
    share = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    np.testing.assert_allclose(mixed.features, np.einsum("l,bld->bd", share, every), atol=1e-6)
    with pytest.raises(ValueError, match=r"layer_weights: got shape \(2,\); it takes one number for each layer"):
        model.extract_features(**given, layers="all", layer_weights=torch.zeros(2))


def test_one_window_alone_or_the_clip_as_a_whole(model, features):
    clip = torch.tensor(features.reshape(1, 256, 32))
    with torch.no_grad():
        whole = model.extract_features(clip, pooling="mean", window=256).features
        torch.testing.assert_close(whole, model(input_values=clip).pooler_output)
        windows = model.extract_features(clip, pooling="mean").features
        torch.testing.assert_close(windows, model(input_values=torch.tensor(features)).pooler_output.mean(0)[None])
    assert (whole - windows).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("frames", "given", "message"),
    [
        (72, {}, "clips have 72 frames; windows take whole patches of 16 frames"),
        (128, {"window": 0}, "window: got 0; it takes at least 1 frame"),
        (128, {"window": -16}, "window: got -16"),
        (128, {"layers": []}, r"layers: got none; the model has layers 1\.\.2"),
    ],
)
def test_what_no_window_or_layer_is_made_of_is_named(model, frames, given, message):
    with pytest.raises(ValueError, match=message):
        model.extract_features(torch.zeros(1, frames, 32), **given)


def test_odd_lengths_have_features(model):
    """One patch, a clip that is nothing but padding beside a long one, a window shorter than a patch."""
    with torch.no_grad():
        assert model.extract_features(torch.ones(1, 16, 32)).features.shape == (1, 1, 24)
        mask = torch.zeros(2, 128, dtype=torch.long)
        mask[1] = 1
        for pooling in (*POOLINGS, *FRAME_POOLINGS):
            found = model.extract_features(torch.ones(2, 128, 32), attention_mask=mask, pooling=pooling)
            assert found.features.isfinite().all() and (found.features[0] == 0).all()
        found = model.extract_features(torch.ones(1, 64, 32), window=1)
        assert found.features.shape == (1, 4, 24)
        torch.testing.assert_close(found.features[:, :1], model.extract_features(torch.ones(1, 16, 32)).features)
