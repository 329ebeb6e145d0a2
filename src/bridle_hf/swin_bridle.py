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

    def __init__(self, hidden_size: int, num_heads: int, window: tuple[int, ...]):
        super().__init__()
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
        """(B, N, D) -> the same. Linear maps see the patches in their own order; only heads are cut into windows."""
        query, key, value = windows.split(self.qkv(hidden_states), shifted, parts=3, heads=self.num_heads)
        # q.k / max(|q||k|, 1e-6) in the reference. Normalise q, but divide the scores by |k| instead of normalising k:
        # fewer elements. Multiply by reciprocals, whose backward pass is cheaper than that of a division. `least` keeps
        # 1 / |k| finite in float16 where padding makes k zero.
        least = max(1e-6, torch.finfo(query.dtype).tiny)
        inverse = torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=least).reciprocal()
        length = torch.linalg.vector_norm(key, dim=-1) * self.tau.clamp(min=0.01)[:, None]  # (B, windows, heads, w)
        inverse_key = length.clamp(min=least).reciprocal()[..., None, :]
        scores = torch.matmul(query * inverse, key.transpose(-2, -1)) * inverse_key
        bias = self.position_bias(self.tau)  # (heads, w, w)
        mask = windows.mask(shifted)
        scores = scores + (bias if mask is None else bias + mask)  # (B, windows, heads, w, w)
        mixed = torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)  # (B, windows, heads, w, d)
        return self.proj(windows.join(mixed, shifted))


class BridleSwinLayer(GradientCheckpointingLayer):
    """Post-norm Swin layer on a padded grid: x + norm(attention(x)), x + norm(mlp(x))."""

    def __init__(self, config, hidden_size: int, num_heads: int, window: tuple[int, ...], shifted: bool):
        super().__init__()
        self.shifted = shifted
        self.attention = BridleWindowAttention(hidden_size, num_heads, window)
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-5)
        self.mlp = BridleMLP(config, hidden_size, 4 * hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, hidden_states, windows):
        hidden_states = hidden_states + self.norm1(self.attention(hidden_states, windows, self.shifted))
        return hidden_states + self.norm2(self.mlp(hidden_states))


class BridleWindows:
    """How one batch is cut into windows: padding to whole windows, the cyclic shift, and the masks both need.

    Made once per forward and shared by all Swin layers.

    Args:
        grid: patches along each axis. window, shift: sizes along the same axes.
        valid (`torch.BoolTensor` of shape (B, N), *optional*): False for padded patches, which nobody attends to.
        like: a tensor whose device and dtype the masks take.
    """

    def __init__(self, grid, window, shift, valid, like):
        self.grid, self.window, self.axes = grid, window, len(grid)
        self.padded = tuple(-(-n // w) * w for n, w in zip(grid, window, strict=True))
        # a window that spans the whole axis has nothing to shift to
        self.shift = tuple(s if n > w else 0 for n, w, s in zip(self.padded, window, shift, strict=True))
        if valid is None and self.padded != self.grid:
            valid = torch.ones(1, prod(grid), dtype=torch.bool, device=like.device)
        self._masks = [self._mask(valid, like, shifted) for shifted in (False, True)]

    def mask(self, shifted: bool):
        """What to add to the scores of a layer: (B or 1, windows, 1, w or 1, w), or None."""
        return self._masks[shifted]

    def split(self, tokens, shifted: bool, parts: int = 1, heads: int = 1):
        """(B, N, parts * heads * d) -> (B, windows, heads, w, d), as many as there are parts."""
        field = tokens.view(tokens.shape[0], *self.grid, tokens.shape[-1])
        if self.padded != self.grid:
            ends = [p - g for g, p in zip(self.grid, self.padded, strict=True)]
            field = F.pad(field, [0, 0] + [n for end in reversed(ends) for n in (0, end)])
        return self._cut(self._roll(field, -1) if shifted else field, parts, heads)

    def join(self, windows, shifted: bool):
        """(B, windows, heads, w, d) -> (B, N, heads * d), undoing `split`."""
        batch_size, _, heads, _, width = windows.shape
        counts = [n // w for n, w in zip(self.padded, self.window, strict=True)]
        field = windows.view(batch_size, *counts, heads, *self.window, width)
        order = [d for a in range(self.axes) for d in (1 + a, 2 + self.axes + a)]
        field = field.permute(0, *order, 1 + self.axes, -1).reshape(batch_size, *self.padded, heads * width)
        field = self._roll(field, 1) if shifted else field
        field = field[(slice(None), *(slice(n) for n in self.grid))]
        return field.reshape(batch_size, prod(self.grid), heads * width)

    def _roll(self, field, direction):
        axes = [a for a in range(self.axes) if self.shift[a]]  # an axis that is not shifted would be copied too
        return field.roll([direction * self.shift[a] for a in axes], dims=[1 + a for a in axes]) if axes else field

    def _cut(self, field, parts=1, heads=1):
        """(B, *padded, parts * heads * d) -> (B, windows, heads, w, d) of each part."""
        batch_size, width = field.shape[0], field.shape[-1] // (parts * heads)
        pairs = [n for p, w in zip(self.padded, self.window, strict=True) for n in (p // w, w)]
        counts, places, heads_dim = range(1, 1 + 2 * self.axes, 2), range(2, 2 + 2 * self.axes, 2), 1 + 2 * self.axes
        shape = (batch_size, prod(self.padded) // prod(self.window), heads, prod(self.window), width)
        # Cut part by part: the gradients are then brought into their places and put together in one copy.
        each = field.view(batch_size, *pairs, parts, heads, width).unbind(heads_dim)
        return [part.permute(0, *counts, heads_dim, *places, -1).reshape(shape) for part in each]

    def _mask(self, valid, like, shifted):
        mask = None
        if shifted and any(self.shift):
            region = self._cut(self._regions(like)[None, ..., None])[0][..., 0]  # (1, windows, 1, w)
            mask = -100.0 * (region[..., :, None] != region[..., None, :]).to(like.dtype)
        if valid is not None:
            real = self.split(valid[..., None].to(like.dtype), shifted)[0][..., 0]  # (B, windows, 1, w); padding is 0
            hidden = (real - 1.0)[..., None, :] * 1e4
            mask = hidden if mask is None else mask + hidden
        return mask

    def _regions(self, like):
        """(*padded) numbers that differ between places the cyclic shift brought together from different ends."""
        region = torch.zeros(self.padded, device=like.device)
        for axis, (n, w, s) in enumerate(zip(self.padded, self.window, self.shift, strict=True)):
            if s:
                place = torch.arange(n, device=like.device)
                line = (place >= n - w).float() + (place >= n - s).float()
                region = region * 3 + line.view([n if a == axis else 1 for a in range(self.axes)])
        return region


def swin_layers(config, hidden_size: int, num_heads: int, num_layers: int) -> nn.ModuleList:
    """Swin layers, every other one shifted."""
    layer = partial(BridleSwinLayer, config, hidden_size, num_heads, tuple(config.decoder_window_size))
    return nn.ModuleList(layer(shifted=i % 2 == 1) for i in range(num_layers))
