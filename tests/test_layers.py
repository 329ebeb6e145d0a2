"""Building blocks against hand-made numbers, convolutions, and attention written out place by place."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from bridle_hf.configuration_bridle import BridleConfig
from bridle_hf.layers_bridle import (
    BridleAttention,
    BridleDropPath,
    BridlePatchEmbeddings,
    BridlePositions,
    flat_positions,
    grid_positions,
    wrapped_positions,
)

SMALL = {"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
SIN, COS = math.sin, math.cos


def sin_cos(position):
    """Width 4: rates 1 and 10000^(-1/2) = 0.01."""
    return [SIN(position), SIN(0.01 * position), COS(position), COS(0.01 * position)]


def test_grid_positions_by_hand():
    table = grid_positions((2, 3), 8)
    assert table.shape == (6, 8)
    # patch 5 stands in row 1, column 2; the column comes first
    expected = [0.9092974, 0.0199987, -0.4161468, 0.9998000, 0.8414710, 0.0099998, 0.5403023, 0.9999500]
    torch.testing.assert_close(table[5], torch.tensor(expected), atol=1e-6, rtol=0)
    assert table[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_grid_positions_in_three_axes():
    table = grid_positions((2, 3, 4), 12)
    number = 1 * 12 + 2 * 4 + 3  # frame 1, row 2, column 3
    torch.testing.assert_close(table[number], torch.tensor(sin_cos(3) + sin_cos(2) + sin_cos(1)), atol=1e-6, rtol=0)


def test_wrapped_positions_number_a_turned_grid():
    # made for (mel 2, time 4), read as (time 4, mel 2): patch 5 (time 2, mel 1) gets row 1, column 1
    table = wrapped_positions((4, 2), 8)
    torch.testing.assert_close(table[5], torch.tensor(sin_cos(1) + sin_cos(1)), atol=1e-6, rtol=0)
    assert torch.equal(table, grid_positions((2, 4), 8))
    assert not torch.equal(table, grid_positions((4, 2), 8))


def test_wrapped_rows_wrap_where_the_model_says_whatever_the_clip():
    # made for 4 frames x 2 bands: patch 9, in a clip of 5 frames, has row 2, column 1
    config = BridleConfig(**SMALL, input_size=(64, 32), position_layout="wrapped")
    positions, like = BridlePositions(config, 8), torch.zeros(1)
    whole, short, long = (positions((frames, 2), like)[0] for frames in (4, 3, 5))
    assert torch.equal(whole, wrapped_positions((4, 2), 8))
    assert torch.equal(short, whole[:6]) and torch.equal(long[:8], whole)
    torch.testing.assert_close(long[9], torch.tensor(sin_cos(1) + sin_cos(2)), atol=1e-6, rtol=0)


def test_flat_positions_alternate_sin_and_cos_of_the_patch_number():
    table = flat_positions((2, 3), 4)
    torch.testing.assert_close(table[5], torch.tensor([SIN(5), COS(5), SIN(0.05), COS(0.05)]), atol=1e-6, rtol=0)


def test_stored_table_is_carried_and_bound_to_its_grid():
    config = BridleConfig(**SMALL, input_size=(64, 32), position_layout="table")
    positions = BridlePositions(config, 8)
    positions.table.copy_(torch.randn(8, 8))  # a grid of 4 x 2
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(positions((4, 2), like), positions.table.double()[None])
    assert torch.equal(positions((3, 2), like), positions.table.double()[None, :6])
    assert torch.equal(positions((2, 1), like), positions.table.double()[None, [0, 2]])
    for grid in [(5, 2), (4, 3)]:
        with pytest.raises(
            ValueError, match=r"grid of \(\d, \d\) patches but the stored position table is for \(4, 2\)"
        ):
            positions(grid, like)


@pytest.mark.parametrize(
    ("modality", "options", "shape"),
    [
        ("audio", {"input_size": (12, 8), "patch_size": (4, 2)}, (2, 12, 8)),
        ("image", {"input_size": (8, 12), "patch_size": (4, 2)}, (2, 3, 8, 12)),
        ("video", {"input_size": (4, 6, 8), "patch_size": (2, 3, 4)}, (2, 4, 3, 6, 8)),
    ],
)
def test_patches_equal_a_convolution(modality, options, shape):
    torch.manual_seed(0)
    config = BridleConfig(modality=modality, **SMALL, **options)
    embeddings = BridlePatchEmbeddings(config)
    values = torch.randn(shape)
    channels_first = {"audio": values[:, None], "image": values, "video": values.transpose(1, 2)}[modality]
    weight = embeddings.projection.weight.view(-1, config.num_channels, *config.patch_size)
    convolution = F.conv3d if modality == "video" else F.conv2d
    expected = convolution(channels_first, weight, embeddings.projection.bias, stride=config.patch_size)
    assert embeddings.grid(values) == tuple(expected.shape[2:])
    torch.testing.assert_close(embeddings(embeddings.patchify(values)), expected.flatten(2).transpose(1, 2))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = BridleDropPath(0.3)
    kept = drop_path(torch.ones(20000, 2, 3))
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert torch.equal(kept.amin((1, 2)), kept.amax((1, 2)))  # all of a sample or nothing
    assert abs(kept.mean().item() - 1) < 0.02  # 4 standard errors
    assert torch.equal(drop_path.eval()(torch.ones(9, 1)), torch.ones(9, 1))


@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_itself_written_out_in_float64(padded):
    torch.manual_seed(0)
    config = BridleConfig(**SMALL)
    hidden = torch.randn(2, 5, 12)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]) if padded else torch.ones(2, 5, dtype=torch.bool)
    outputs = {}
    for implementation in ("eager", "sdpa"):
        config._attn_implementation = implementation
        torch.manual_seed(1)
        attention = BridleAttention(config, 12, 2)
        mask = valid[:, None, None, :].expand(2, 1, 5, 5)
        if implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        outputs[implementation], weights = attention(hidden, mask if padded else None)
        assert (weights is not None) == (implementation == "eager")

    attention = attention.double().requires_grad_(False)
    qkv = attention.qkv(hidden.double())
    mixed = torch.zeros(2, 5, 12, dtype=torch.float64)
    for sample, head, place in itertools.product(range(2), range(2), range(5)):
        query = qkv[sample, place, head * 6 : head * 6 + 6]
        keys = [n for n in range(5) if valid[sample, n]]
        scores = [float(query @ qkv[sample, n, 12 + head * 6 : 18 + head * 6]) / 6**0.5 for n in keys]
        total = sum(math.exp(s) for s in scores)
        for n, score in zip(keys, scores, strict=True):
            value = qkv[sample, n, 24 + head * 6 : 30 + head * 6]
            mixed[sample, place, head * 6 : head * 6 + 6] += math.exp(score) / total * value
    expected = attention.proj(mixed)
    for output in outputs.values():
        torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-5)
