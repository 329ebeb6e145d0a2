"""Building blocks over a grid of patches: positions, patch embedding and ViT layers."""

from collections.abc import Callable
from contextlib import contextmanager
from math import prod

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def _sincos(position, width):
    """(n,) positions -> (n, width): [sin, cos] of position / 10000^(i / (width / 2))."""
    half = width // 2
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=position.device) / half)
    angle = position.to(torch.float32)[:, None] * rate  # (n, width / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def grid_positions(grid: tuple[int, ...], width: int, device=None, span: tuple[int, ...] | None = None) -> torch.Tensor:
    """Sin-cos table of a grid, patches numbered row-major.

    The width is shared equally by the axes, last axis first; what does not divide is zero.

    Args:
        span: patches whose positions the grid is spread over along each axis, those of the grid itself when left out.

    Returns:
        `torch.Tensor` of shape (N, width), float32.
    """
    places = [torch.arange(n, device=device) for n in grid]
    if span is not None:
        places = [(place + 0.5) * (most / n) - 0.5 for place, n, most in zip(places, grid, span, strict=True)]
    axes = torch.meshgrid(*places, indexing="ij")
    share = width // (2 * len(grid)) * 2
    table = torch.cat([_sincos(axis.flatten(), share) for axis in reversed(axes)], dim=1)  # (N, share * axes)
    return F.pad(table, (0, width - table.shape[1]))


def wrapped_positions(grid: tuple[int, ...], width: int, device=None, frames: int | None = None) -> torch.Tensor:
    """The reference code's audio table: made for (mel, time) and read in (time, mel) order, so its rows wrap.

    Patch n gets row n // frames and column n % frames. `frames` are those the model was made for, `grid[0]` when left
    out: where the rows wrap must not depend on the clip, or every patch of a shorter one would move.
    """
    frames = frames or grid[0]
    rows = (prod(grid) + frames - 1) // frames  # rounded up; ONNX rounds a negative quotient towards zero
    return grid_positions((rows, frames), width, device)[: prod(grid)]


def flat_positions(grid: tuple[int, ...], width: int, device=None) -> torch.Tensor:
    """The reference code's video table: sin and cos of the patch number in turn. (N, width), float32."""
    number = torch.arange(prod(grid), dtype=torch.float32, device=device)
    rate = 10000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float32, device=device) / width)
    angle = number[:, None] * rate  # (N, width / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def _interpolated(field: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Interpolate position embeddings bicubically to another H and W: (..., H, W, width) -> (N, width), row-major."""
    planes = field.reshape(-1, *field.shape[-3:]).movedim(-1, 1).float()  # (frames, width, H, W)
    planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=False)
    return planes.movedim(1, -1).flatten(0, -2)


POSITION_TABLES = {"grid": grid_positions, "wrapped": wrapped_positions, "flat": flat_positions}


class BridlePositions(nn.Module):
    """Position embeddings of one part of the model, computed from the grid at hand or read from a stored table.

    They are made for `config.position_grid`, which a stored table (`position_layout="table"`) belongs to. A patch keeps
    its position in inputs of every size, and of a table a smaller input takes its part. But larger heights and widths
    are spread over the positions that there are (`config.interpolate_positions`), of a table as transformers' ViT
    does it. The flat layout numbers the patches of each input.
    """

    def __init__(self, config, width: int):
        super().__init__()
        self.layout = config.position_layout
        self.width = width
        self.table_grid = tuple(config.position_grid)
        self.interpolates = config.interpolate_positions
        if self.layout == "table":
            # A buffer: loading a checkpoint would make a frozen parameter trainable again.
            self.register_buffer("table", self.default_table())

    def default_table(self) -> torch.Tensor:
        return grid_positions(self.table_grid, self.width)  # (N, width)

    def forward(self, grid: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """(1, N, width) in the dtype and on the device of `like`."""
        span = grid  # the patches whose positions the input is spread over
        if self.interpolates and self.layout in ("grid", "table"):
            span = (*grid[:-2], *map(min, grid[-2:], self.table_grid[-2:]))
        if self.layout == "grid" and span != grid:
            table = grid_positions(grid, self.width, like.device, span)
        else:
            table = self.table_of(span, like.device)  # (patches of span, width)
            if span != grid:
                table = _interpolated(table.view(*span, self.width), grid[-2:])
        return table.to(device=like.device, dtype=like.dtype)[None]

    def table_of(self, grid: tuple[int, ...], device) -> torch.Tensor:
        """(N, width): the positions of a grid, not scaled."""
        if self.layout == "wrapped":
            return wrapped_positions(grid, self.width, device, self.table_grid[0])
        if self.layout != "table":
            return POSITION_TABLES[self.layout](grid, self.width, device)
        if all(n <= most for n, most in zip(grid, self.table_grid, strict=True)):
            field = self.table.view(*self.table_grid, self.width)
            return field[tuple(slice(n) for n in grid)].flatten(0, -2)
        raise ValueError(
            f"The input has a grid of {grid} patches but the stored position table is for {self.table_grid}; "
            "it takes inputs that are no larger along any axis, or along height and width `interpolate_positions`."
        )


class BridlePatchEmbeddings(nn.Module):
    """Cut an input into patches and project each, patches numbered row-major.

    Patches do not overlap, so the convolution of a ViT is a matrix product over the numbers of a patch, and masked
    patches need not be projected at all.

    Inputs as users hold them: audio (B, frames, mel), of several channels (B, frames, C, mel), images (B, C, H, W),
    videos (B, T, C, H, W).
    """

    def __init__(self, config):
        super().__init__()
        self.patch_size = tuple(config.patch_size)
        self.num_channels = config.num_channels
        self.bins = config.input_size[-1] if config.modality == "audio" else None
        self.name, self.layout, self.channel_dim = {
            "audio": ("input_values", "(batch, frames, mel bins)", None),
            "image": ("pixel_values", "(batch, channels, height, width)", 1),
            "video": ("pixel_values", "(batch, frames, channels, height, width)", 2),
        }[config.modality]
        if self.channel_dim is None and config.num_channels > 1:
            self.layout, self.channel_dim = "(batch, frames, channels, mel bins)", 2
        self.projection = nn.Linear(config.patch_dim, config.hidden_size)

    def grid(self, values: torch.Tensor) -> tuple[int, ...]:
        """Patches along each axis of an input.

        Raises:
            ValueError: the input is empty, has another layout, channel count or number of mel bins, or the patch size
                does not divide it.
        """
        size, has_channels = list(values.shape[1:]), self.channel_dim is not None
        if len(size) != len(self.patch_size) + has_channels:
            raise ValueError(f"`{self.name}` has shape {tuple(values.shape)}; the model takes {self.layout}.")
        if values.shape[0] == 0:
            raise ValueError(f"`{self.name}` holds no sample; the model takes {self.layout}.")
        channels = size.pop(self.channel_dim - 1) if has_channels else 1
        if channels != self.num_channels:
            raise ValueError(
                f"`{self.name}` has {channels} channels; the model takes {self.num_channels}: {self.layout}."
            )
        if self.bins is not None and size[-1] != self.bins:  # patches of other frequencies look like any others
            raise ValueError(f"`{self.name}` has {size[-1]} mel bins; the model takes {self.bins}: {self.layout}.")
        if any(s < p or s % p for s, p in zip(size, self.patch_size, strict=True)):
            raise ValueError(
                f"`{self.name}` measures {tuple(size)}; the model takes one or more whole patches of {self.patch_size}."
            )
        return tuple(s // p for s, p in zip(size, self.patch_size, strict=True))

    def mask_padding(
        self, values: torch.Tensor, attention_mask: torch.Tensor | None, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Set padded frames to zero and find the real patches. Padding must not leak into the last real patch.

        Args:
            attention_mask (`torch.Tensor` of shape (B, frames), *optional*): 1 for real frames, 0 for padding.
            valid (`torch.BoolTensor` of shape (B, N), *optional*): returned unchanged when there is no
                `attention_mask`.
        Returns:
            values, and (B, N) True for patches with any real frame; `None` where all are real.
        Raises:
            ValueError: a mask that does not have one number per frame, or one for images.
        """
        if attention_mask is None:
            return values, valid
        if self.channel_dim == 1:
            raise ValueError("`attention_mask` is given; images have no frames to pad and take none.")
        valid = self.real_patches(values, attention_mask)
        real = attention_mask.bool().view(*attention_mask.shape, *[1] * (values.dim() - 2))
        return values.masked_fill(~real, 0.0), valid

    def real_patches(self, values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """(B, N) True for patches with any real frame; `None` where all are real. See `mask_padding`."""
        if attention_mask is None:
            return None
        grid, size = self.grid(values), self.patch_size[0]
        frames = grid[0] * size
        if tuple(attention_mask.shape) != (values.shape[0], frames):
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)}; it takes ({values.shape[0]}, {frames}): "
                "one number per frame."
            )
        rows = attention_mask.bool().view(-1, grid[0], size).any(dim=2)  # (B, g1)
        if rows.device.type == "cpu" and not torch.compiler.is_compiling() and bool(rows.all()):
            return None  # padding that fills no patch costs nothing; on other devices a look would wait for them
        return rows.repeat_interleave(prod(grid[1:]), dim=1)

    def patchify(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N, C * prod(patch_size)): the numbers of each patch, channel first, in the precision of `projection`."""
        grid, axes = self.grid(values), len(self.patch_size)
        values = values.unsqueeze(1) if self.channel_dim is None else values.movedim(self.channel_dim, 1)
        split = [n for pair in zip(grid, self.patch_size, strict=True) for n in pair]
        values = values.reshape(values.shape[0], self.num_channels, *split)  # (B, C, g1, p1, g2, p2, ...)
        grid_dims, patch_dims = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        patches = values.permute(0, *grid_dims, 1, *patch_dims)  # (B, g1, g2, ..., C, p1, p2, ...)
        return in_precision_of(self.projection, patches.reshape(values.shape[0], prod(grid), -1))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., C * prod(patch_size)) -> (..., D)"""
        return self.projection(patches)


def in_precision_of(linear: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Values in the dtype that a linear layer computes in.

    8- and 4-bit weights do not reveal the compute dtype; fall back to the bias.
    """
    for tensor in (linear.weight, linear.bias):  # methods in some quantized layers
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.itemsize > 1:
            return values.to(tensor.dtype)
    return values


def take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pick tokens of each row: (B, N, D) and (C * B, k) -> (C * B, k, D), where row c * B + b picks from tokens[b]."""
    batch_size, length, width = tokens.shape
    row = torch.arange(index.shape[0], device=index.device) % batch_size
    flat = (index + row[:, None] * length).flatten()
    return tokens.reshape(-1, width).index_select(0, flat).view(*index.shape, width)


def eager_attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Softmax attention in plain operations: (B, heads, n, d) each -> (B, n, heads, d) and the weights.

    The query is scaled, not the scores, and the softmax stays in the dtype of its input (it adds up in float32 anyway):
    on CPUs in bfloat16 this trains faster than the fused kernel, whose backward pass is slow there.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = torch.matmul(query * scaling, key.transpose(2, 3))  # (B, heads, n, n)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.dropout(F.softmax(weights, dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class BridleAttention(nn.Module):
    """Multi-head self-attention through transformers' attention interface."""

    def __init__(self, config, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        batch_size, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch_size, length, 3, self.num_heads, self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, heads, n, d) each
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.proj(output.reshape(batch_size, length, width)), weights


class BridleMLP(nn.Module):
    def __init__(self, config, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states):
        return self.fc2(self.activation(self.fc1(hidden_states)))


class BridleDropPath(nn.Module):
    """Stochastic depth: drop the residual branch of a whole sample while training (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states):
        if not self.training or self.rate == 0.0:
            return hidden_states
        keep = 1.0 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.dim() - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self):
        return f"rate={self.rate}"


class BridleLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer. Used by the encoder, the tokenizer, the estimator and the plain decoder."""

    def __init__(self, config, hidden_size: int, num_heads: int, intermediate_size: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = BridleAttention(config, hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = BridleMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = BridleDropPath(drop_path)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        attended, _ = self.attention(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        return hidden_states + self.drop_path(self.dropout(self.mlp(self.norm2(hidden_states))))


@contextmanager
def evaluating(model):
    """Has a model in evaluation mode, and then every part in the mode it was in."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def padding_mask(config, hidden_states, valid):
    """The attention mask of (B, prefix + n, D) tokens whose last n are real where `valid` (B, n) is true."""
    if valid is None:
        return None
    attention_mask = F.pad(valid, (hidden_states.shape[1] - valid.shape[1], 0), value=True)
    return create_bidirectional_mask(config=config, inputs_embeds=hidden_states, attention_mask=attention_mask)


def pick_input(model, input_values, pixel_values) -> torch.Tensor:
    """The one input of the model's modality.

    Raises:
        ValueError: it is missing.
    """
    values = input_values if model.config.modality == "audio" else pixel_values
    if values is None:
        raise ValueError(f"`{model.main_input_name}` is None; a model of modality {model.config.modality!r} takes it.")
    return values


def run(model, values, attention_mask=None, **kwargs):
    """Call a model with `values` under the name its modality gives them; never a tuple, whatever the config says."""
    return model(**{model.main_input_name: values}, attention_mask=attention_mask, return_dict=True, **kwargs)
