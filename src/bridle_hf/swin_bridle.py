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
        """(B, N, D) -> the same. Linear maps see the patches in their own order; only heads are cut into windows."""
        qkv = windows.split(self.qkv(hidden_states), shifted)  # (B, windows, w, 3 D)
        batch_size, num_windows, places, _ = qkv.shape
        qkv = qkv.view(batch_size * num_windows, places, 3, self.num_heads, -1)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B * windows, heads, w, d) each
        # q.k / max(|q||k|, 1e-6) in the reference. Multiply by reciprocals, whose backward pass is cheaper than that of
        # a division. `least` keeps 1 / |k| finite in float16 where padding makes k zero.
        least = max(1e-6, torch.finfo(query.dtype).tiny)
        query = query * torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=least).reciprocal()
        length = torch.linalg.vector_norm(key, dim=-1, keepdim=True) * self.tau.clamp(min=0.01)[:, None, None]
        inverse = length.clamp(min=least).reciprocal()  # (B * windows, heads, w, 1)
        bias, mask = self.position_bias(self.tau)[None], windows.mask(shifted)  # (1, heads, w, w)
        if mask is not None:  # (B or 1, windows, 1, w or 1, w)
            bias = (bias + mask).expand(batch_size, num_windows, -1, -1, -1)
        if self.config._attn_implementation == "eager":
            # Divide the scores by |k| instead of k itself: fewer elements.
            scores = torch.matmul(query, key.transpose(-2, -1)) * inverse.transpose(-2, -1)
            scores = scores.unflatten(0, (batch_size, num_windows)) + bias
            mixed = torch.matmul(scores.softmax(dim=-1).to(value.dtype).flatten(0, 1), value)
        else:
            bias = bias.to(value.dtype).reshape(-1, self.num_heads, places, places)
            mixed = F.scaled_dot_product_attention(query, (key * inverse).to(query.dtype), value, bias, scale=1.0)
        mixed = mixed.transpose(1, 2).reshape(batch_size, num_windows, places, -1)
        return self.proj(windows.join(mixed, shifted))


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
    """The norm of values in the precision that they have.

    Autocast would have them copied to float32, in which the kernels calculate anyway.
    """
    with torch.autocast(values.device.type, enabled=False):
        return norm(values)


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
        # Of each patch, in one row of all windows; places without a patch come first in their order.
        self._places = [patch.flatten().argsort()[-prod(grid) :] for patch in self._patches]
        self._masks = [self._mask(valid, like, shifted) for shifted in (False, True)]

    def mask(self, shifted: bool):
        """What to add to the scores of a layer: (B or 1, windows, 1, w or 1, w), or None."""
        return self._masks[shifted]

    def split(self, tokens, shifted: bool):
        """(B, N, d) -> (B, windows, w, d). The mask hides what stands where there is no patch."""
        patch = self._patches[shifted]
        return _Reordering.apply(tokens, patch.flatten(), self._places[shifted], True).unflatten(1, patch.shape)

    def join(self, windows, shifted: bool):
        """(B, windows, w, d) -> (B, N, d), undoing `split`."""
        return _Reordering.apply(windows.flatten(1, 2), self._patches[shifted].flatten(), self._places[shifted], False)

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
    """Patches (B, N, d) in the order of their places (B, P, d), or back.

    `patch` (P,) is that of each place, -1 where there is none, and `place` (N,) that of each patch. The gradient is a
    selection as well: no sums, which a GPU would take one by one.
    """

    @staticmethod
    def forward(ctx, values, patch, place, to_places):
        ctx.save_for_backward(patch, place)
        ctx.to_places = to_places
        return values.index_select(1, patch.clamp(min=0) if to_places else place)

    @staticmethod
    def backward(ctx, gradient):
        patch, place = ctx.saved_tensors
        if ctx.to_places:
            return gradient.index_select(1, place), None, None, None
        found = gradient.index_select(1, patch.clamp(min=0))
        if len(patch) > len(place):
            found = found.masked_fill((patch < 0)[:, None], 0.0)
        return found, None, None, None


def swin_layers(config, hidden_size: int, num_heads: int, num_layers: int) -> nn.ModuleList:
    """Swin layers, every other one shifted."""
    layer = partial(BridleSwinLayer, config, hidden_size, num_heads, tuple(config.decoder_window_size))
    return nn.ModuleList(layer(shifted=i % 2 == 1) for i in range(num_layers))
