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
    BridleSwinLayer,
    BridleWindows,
    flat_positions,
    grid_positions,
    swin_layers,
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


# ---------------------------------------------------------------------------------------------------------------------
# Swin
# ---------------------------------------------------------------------------------------------------------------------


def window_of(place, grid, window, shift):
    """Number of the window a place falls in; a shift moves the borders, the ends of an axis stay apart."""
    moved = [s if math.ceil(n / w) > 1 else 0 for n, w, s in zip(grid, window, shift, strict=True)]
    return tuple((p - s) // w for p, w, s in zip(place, window, moved, strict=True))


def dense_swin_layer(layer, hidden, grid, window, shift, valid):
    """The layer with attention place by place: each to the real places of its own window, in float64."""
    attention, places = layer.attention, list(itertools.product(*map(range, grid)))
    heads, width = attention.num_heads, hidden.shape[-1] // attention.num_heads
    shift = shift if layer.shifted else [0] * len(grid)
    qkv = attention.qkv(hidden).unflatten(-1, (3, heads, width))  # (B, N, 3, heads, d)
    mixed = torch.zeros(*hidden.shape[:2], heads, width, dtype=hidden.dtype)
    for b, (q, query_place) in itertools.product(range(len(hidden)), enumerate(places)):
        home = window_of(query_place, grid, window, shift)
        keys = [k for k, p in enumerate(places) if valid[b, k] and window_of(p, grid, window, shift) == home]
        for head in range(heads):
            query, scores = qkv[b, q, 0, head], []
            for k in keys:
                key = qkv[b, k, 1, head]
                offset = [i - j for i, j in zip(query_place, places[k], strict=True)]
                offset = [math.copysign(math.log1p(abs(d)), d) for d in offset]
                bias = attention.bias_mlp(torch.tensor(offset, dtype=hidden.dtype))[head]
                cosine = (query @ key) / (query.norm() * key.norm()).clamp(min=1e-6)
                scores.append(cosine / attention.tau[head].clamp(min=0.01) + bias)
            if keys:
                weights = torch.stack(scores).softmax(0)
                mixed[b, q, head] = sum(w * qkv[b, k, 2, head] for w, k in zip(weights, keys, strict=True))
    hidden = hidden + layer.norm1(attention.proj(mixed.flatten(2)))
    return hidden + layer.norm2(layer.mlp(hidden))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window", "shift", "real"),
    [
        ((8, 4), (4, 4), (2, 0), None),  # whole windows; the second axis is one window
        ((5, 6), (4, 4), (2, 0), None),  # both axes padded
        ((7, 3), (3, 2), (1, 1), None),  # shifted along both
        ((3, 3), (4, 4), (2, 0), None),  # smaller than a window
        ((6, 4), (4, 4), (2, 0), [6, 3]),  # the second sample has 3 real rows
        ((3, 2, 4), (2, 2, 2), (1, 0, 1), None),
    ],
)
def test_swin_layer_attends_to_exactly_its_window(grid, window, shift, real, shifted):
    torch.manual_seed(0)
    config = BridleConfig(**SMALL)
    layer = BridleSwinLayer(config, 8, 2, window, shifted).double().eval()
    with torch.no_grad():
        layer.attention.tau.copy_(torch.tensor([0.5, 2.0]))
        size = math.prod(grid)
        hidden = torch.randn(2, size, 8, dtype=torch.float64)
        valid = torch.ones(2, size, dtype=torch.bool)
        if real is not None:
            valid = torch.arange(grid[0]).repeat_interleave(size // grid[0]) < torch.tensor(real)[:, None]
        windows = BridleWindows(grid, window, shift, None if real is None else valid, hidden)
        output = layer(hidden, windows)
        expected = dense_swin_layer(layer, hidden, grid, window, shift, valid)
    torch.testing.assert_close(output[valid], expected[valid], atol=1e-10, rtol=1e-8)


def test_windows_put_every_patch_back():
    tokens = torch.randn(2, 35, 3)
    windows = BridleWindows((5, 7), (4, 4), (2, 1), None, tokens)
    for shifted, heads in itertools.product((False, True), (1, 3)):
        (cut,) = windows.split(tokens, shifted, heads=heads)
        assert torch.equal(windows.join(cut, shifted), tokens)


def test_every_other_swin_layer_is_shifted():
    layers = swin_layers(BridleConfig(**SMALL), 8, 2, 5)
    assert [layer.shifted for layer in layers] == [False, True, False, True, False]
