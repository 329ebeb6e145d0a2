"""Swin layers against attention written out place by place."""

import itertools
import math

import pytest
import torch

from bridle_hf.configuration_bridle import BridleConfig
from bridle_hf.swin_bridle import BridleSwinLayer, BridleWindows, swin_layers

SMALL = {"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}


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


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
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
def test_swin_layer_attends_to_exactly_its_window(grid, window, shift, real, shifted, implementation):
    torch.manual_seed(0)
    config = BridleConfig(**SMALL)
    config._attn_implementation = implementation
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


@pytest.mark.parametrize("precision, tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_padded_windows_in_half_precision_are_those_of_float32(precision, tolerance):
    torch.manual_seed(0)
    layer, hidden = BridleSwinLayer(BridleConfig(**SMALL), 8, 2, (4, 4), True).eval(), torch.randn(2, 30, 8)
    outputs = []
    for dtype in (torch.float32, precision):
        tokens = hidden.detach().to(dtype, copy=True).requires_grad_()
        output = layer.to(dtype)(tokens, BridleWindows((5, 6), (4, 4), (2, 0), None, tokens))
        output.float().square().sum().backward()
        outputs.append((output.float(), tokens.grad.float()))
    torch.testing.assert_close(outputs[1], outputs[0], atol=tolerance * 10, rtol=tolerance)


def test_temperatures_end_at_a_hundredth():
    layer, hidden = BridleSwinLayer(BridleConfig(**SMALL), 8, 2, (4, 4), False).eval(), torch.randn(1, 16, 8)
    outputs = []
    for tau in (0.01, 0.001, 0.02):
        layer.attention.tau.data.fill_(tau)
        outputs.append(layer(hidden, BridleWindows((4, 4), (4, 4), (2, 0), None, hidden)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])


def test_windows_put_every_patch_back():
    tokens = torch.randn(2, 35, 3)
    windows = BridleWindows((5, 7), (4, 4), (2, 1), None, tokens)
    for shifted in (False, True):
        cut = windows.split(tokens, shifted)
        assert cut.shape == (2 * 4, 16, 3) and torch.equal(windows.join(cut, shifted), tokens)


@pytest.mark.parametrize("shifted", [False, True])
def test_gradients_of_windows(shifted):
    """Padded along both axes; what stands where there is no patch is hidden in one way and dropped in the other."""
    tokens = torch.randn(2, 35, 2, dtype=torch.float64, requires_grad=True)
    windows = BridleWindows((5, 7), (4, 4), (2, 1), None, tokens)
    real = windows.mask(shifted)[0, :, 0, 0].repeat(2, 1) > -1e4  # (2 * windows, w)
    assert torch.autograd.gradcheck(lambda x: windows.split(x, shifted) * real[..., None], tokens)
    cut = torch.randn(2 * 4, 16, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: windows.join(x, shifted), cut)


def test_every_other_swin_layer_is_shifted():
    layers = swin_layers(BridleConfig(**SMALL), 8, 2, 5)
    assert [layer.shifted for layer in layers] == [False, True, False, True, False]
