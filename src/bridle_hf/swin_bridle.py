"""Swin layers over a grid of patches: cosine attention inside windows, every other layer's windows shifted."""

from functools import partial
from math import prod

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers_bridle import BridleMLP


class BridleWindowAttention(nn.Module):
    """Cosine attention inside a window with a bias from relative positions (Swin v2, arXiv 2111.09883).

    scores = cos(q, k) / max(tau, 0.01) + MLP(sign(D) log(1 + |D|)), D the offset of query and key in the window.
    """

    def __init__(self, config, hidden_size: int, num_heads: int, window: tuple[int, ...]):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.window = window
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.tau = nn.Parameter(torch.ones(num_heads))
        self.bias_mlp = nn.Sequential(
            nn.Linear(len(window), 384), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(384, num_heads)
        )

    def position_bias(self, like: torch.Tensor) -> torch.Tensor:
        """(heads, w, w) bias of every pair of places in a window."""
        axes = torch.meshgrid(*(torch.arange(n, device=like.device) for n in self.window), indexing="ij")
        place = torch.stack([axis.flatten() for axis in axes], dim=1)  # (w, axes)
        offset = (place[:, None] - place[None]).to(like.dtype)  # (w, w, axes): query minus key
        return self.bias_mlp(offset.sign() * offset.abs().log1p()).permute(2, 0, 1)

    def forward(self, hidden_states, windows, shifted: bool):
        """(B, N, D) -> the same."""
        tokens = windows.split(in_autocast(hidden_states), shifted)  # (B * windows, w, D)
        parts = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        query, key, value = (part.transpose(1, 2).contiguous() for part in parts)  # (B * windows, heads, w, d)
        # The product of rows whose mean square over d is 1 is d cos(q, k); the reference divides by max(|q||k|, 1e-6).
        query, key = unit_mean_square(query), unit_mean_square(key)
        scale = (query.shape[-1] * self.tau.clamp(min=0.01)).reciprocal()[:, None, None]
        bias, mask = self.position_bias(self.tau), windows.mask(shifted)  # (heads, w, w)
        if mask is not None:  # (B or 1, windows, 1, w or 1, w)
            bias = bias + mask
        # Not scaled_dot_product_attention: for windows of so few places, and a bias that learns, a GPU has no fused
        # kernel, and the steps that stand in for it are in float32.
        scores = torch.matmul(query, key.transpose(-2, -1)).unflatten(0, (len(hidden_states), -1))
        weights = torch.addcmul(bias, scores, scale).softmax(dim=-1).to(value.dtype).flatten(0, 1)
        return windows.join(self.proj(torch.matmul(weights, value).transpose(1, 2).flatten(2)), shifted)


def in_autocast(values: torch.Tensor) -> torch.Tensor:
    """Cast to the dtype of autocast where it is enabled, so that selecting rows moves fewer bytes."""
    device = values.device.type
    return values.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else values


def unit_mean_square(values: torch.Tensor) -> torch.Tensor:
    """Scale values (..., d) to a mean square of 1 over d, in their own dtype; rows of zeros stay zero."""
    with torch.autocast(values.device.type, enabled=False):
        return F.rms_norm(values, values.shape[-1:], eps=1e-12 / values.shape[-1])


class BridleSwinLayer(GradientCheckpointingLayer):
    """Post-norm Swin layer on a padded grid: x + norm(attention(x)), x + norm(mlp(x))."""

    def __init__(self, config, hidden_size: int, num_heads: int, window: tuple[int, ...], shifted: bool):
        super().__init__()
        self.shifted = shifted
        self.attention = BridleWindowAttention(config, hidden_size, num_heads, window)
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-5)
        self.mlp = BridleMLP(config, hidden_size, 4 * hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, hidden_states, windows):
        hidden_states = hidden_states + uncast(self.norm1, self.attention(hidden_states, windows, self.shifted))
        return hidden_states + uncast(self.norm2, self.mlp(hidden_states))


def uncast(norm: nn.LayerNorm, values: torch.Tensor) -> torch.Tensor:
    """Apply the norm in the dtype of the values.

    Autocast would copy them to float32, in which the kernels accumulate anyway. On a GPU the weight and the bias must
    have the same dtype as the values.
    """
    weight, bias = norm.weight.to(values.dtype), norm.bias.to(values.dtype)
    with torch.autocast(values.device.type, enabled=False):
        return F.layer_norm(values, norm.normalized_shape, weight, bias, norm.eps)


class BridleWindows:
    """How one batch is cut into windows: padding to whole windows, the cyclic shift, and the masks both need.

    Made once per forward and shared by all Swin layers.

    Args:
        grid: patches along each axis. window, shift: sizes along the same axes.
        valid (`torch.BoolTensor` of shape (B, N), *optional*): False for padded patches, which nobody attends to.
        like: a tensor whose device and dtype the masks take.
    """

    def __init__(self, grid, window, shift, valid, like):
        self.grid, self.window = grid, window
        self.padded = tuple(-(-n // w) * w for n, w in zip(grid, window, strict=True))
        # a window that spans the whole axis has nothing to shift to
        self.shift = tuple(s if n > w else 0 for n, w, s in zip(self.padded, window, shift, strict=True))
        self._patches = [self._patch_of_places(like.device, shifted) for shifted in (False, True)]  # (windows, w)
        rows = [self._rows(len(like), patches) for patches in self._patches]
        self._to_windows, self._to_patches = zip(*rows, strict=True)
        self._masks = [self._mask(valid, like, shifted) for shifted in (False, True)]

    def mask(self, shifted: bool):
        """What to add to the scores of a layer: (B or 1, windows, 1, w or 1, w), or None."""
        return self._masks[shifted]

    def split(self, tokens, shifted: bool):
        """(B, N, d) -> (B * windows, w, d). The mask hides what stands where there is no patch."""
        moved = _Reordering.apply(tokens.flatten(0, 1), self._to_windows[shifted], self._to_patches[shifted])
        return moved.unflatten(0, (-1, prod(self.window)))

    def join(self, windows, shifted: bool):
        """(B * windows, w, d) -> (B, N, d), undoing `split`."""
        moved = _Reordering.apply(windows.flatten(0, 1), self._to_patches[shifted], self._to_windows[shifted])
        return moved.unflatten(0, (-1, prod(self.grid)))

    def _rows(self, batch_size, patches):
        """Row indices over a batch that `split` (B * windows * w,) and `join` (B * N,) select; -1 marks padding."""
        patches = patches.flatten()
        places = patches.argsort()[-prod(self.grid) :]  # those without a patch come first
        clip = torch.arange(batch_size, device=patches.device)[:, None]
        to_windows = (clip * len(places) + patches).where(patches >= 0, -1)
        return to_windows.flatten(), (clip * len(patches) + places).flatten()

    def _patch_of_places(self, device, shifted):
        """(windows, w) number of the patch that stands there, -1 where the grid was padded."""
        ends = [n for g, p in reversed(list(zip(self.grid, self.padded, strict=True))) for n in (0, p - g)]
        field = F.pad(torch.arange(prod(self.grid), device=device).view(self.grid), ends, value=-1)
        return self._cut(field.roll([-s for s in self.shift], list(range(len(self.grid)))) if shifted else field)

    def _cut(self, field):
        """(*padded) -> (windows, w)."""
        pairs = [n for p, w in zip(self.padded, self.window, strict=True) for n in (p // w, w)]
        return (
            field.view(pairs).permute(*range(0, len(pairs), 2), *range(1, len(pairs), 2)).reshape(-1, prod(self.window))
        )

    def _mask(self, valid, like, shifted):
        mask, patch = None, self._patches[shifted]
        if shifted and any(self.shift):
            region = self._cut(self._regions(like))  # (windows, w)
            mask = -100.0 * (region[:, :, None] != region[:, None, :]).to(like.dtype)[None, :, None]
        if valid is not None or self.padded != self.grid:
            real = (patch >= 0)[None] if valid is None else (patch >= 0) & valid[:, patch.clamp(min=0)]
            hidden = (real.to(like.dtype) - 1.0)[:, :, None, None] * 1e4  # (B or 1, windows, 1, 1, w)
            mask = hidden if mask is None else mask + hidden
        return mask

    def _regions(self, like):
        """(*padded) numbers that differ between places the cyclic shift brought together from different ends."""
        region = torch.zeros(self.padded, device=like.device)
        for axis, (n, w, s) in enumerate(zip(self.padded, self.window, self.shift, strict=True)):
            if s:
                place = torch.arange(n, device=like.device)
                line = (place >= n - w).float() + (place >= n - s).float()
                region = region * 3 + line.view([n if a == axis else 1 for a in range(len(self.grid))])
        return region


class _Reordering(torch.autograd.Function):
    """Selects the rows `taken` of values (n, d), each at most once. `place` is the inverse: where each row goes.

    -1 marks padding: any row may be selected there, and no gradient comes back.

    The gradient is a selection as well: no sums, which a GPU would take one by one.
    """

    @staticmethod
    def forward(ctx, values, taken, place):
        ctx.save_for_backward(taken, place)
        return values.index_select(0, taken.clamp(min=0))

    @staticmethod
    def backward(ctx, gradient):
        taken, place = ctx.saved_tensors
        found = gradient.index_select(0, place.clamp(min=0))
        if len(place) > len(taken):  # what was put where there is no patch is lost
            found = found.masked_fill((place < 0)[:, None], 0.0)
        return found, None, None


def swin_layers(config, hidden_size: int, num_heads: int, num_layers: int) -> nn.ModuleList:
    """Swin layers, every other one shifted."""
    layer = partial(BridleSwinLayer, config, hidden_size, num_heads, tuple(config.decoder_window_size))
    return nn.ModuleList(layer(shifted=i % 2 == 1) for i in range(num_layers))
