import numpy as np
import pytest
import torch

from bridle_hf import BridleConfig, BridleModel
from bridle_hf.evaluation.features import encoder_features, pool


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
    tokens = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [3.0, 4.0], [100.0, 100.0]]])  # CLS, two patches, padding
    valid = torch.tensor([[True, True, False]])
    assert pool(tokens, valid, "mean", True).tolist() == [[2.0, 2.0]]
    assert pool(tokens, valid, "mean_std", True).tolist() == [[2.0, 2.0, 1.0, 2.0]]
    assert pool(tokens, valid, "cls", True).tolist() == [[9.0, 9.0]]


def test_a_padded_clip_has_the_features_of_the_clip_alone(model, clips, features, padded_examples):
    keys = {"layers": (None, 0, 1, 2), "poolings": ("mean", "mean_std", "cls")}
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


def test_cls_needs_a_cls_token():
    with pytest.raises(ValueError, match="no CLS token"):
        pool(torch.zeros(1, 3, 2), torch.ones(1, 3), "cls", has_cls=False)
