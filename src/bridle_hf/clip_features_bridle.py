"""Whole clips through a model: long sounds in windows, layers chosen or mixed, tokens pooled to vectors or frames."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .layers_bridle import pick_input, run
from .outputs_bridle import BridleFeaturesOutput

POOLINGS = ("mean", "mean_std", "cls", "bands", "bands_std")  # a vector per clip
FRAME_POOLINGS = ("frames", "frame_bands")  # a vector per patch in time
BANDS, STD = ("bands", "bands_std", "frame_bands"), ("mean_std", "bands_std")


def poolings_of(config) -> list[str]:
    """Those of `POOLINGS` that a model takes."""
    return [name for name in POOLINGS if _missing(config, name) is None]


def check_poolings(config, poolings: Sequence[str], takes: Sequence[str] = POOLINGS) -> None:
    """Raise a `ValueError` for a pooling that is none of `takes`, or none for a model of this config."""
    for name in poolings:
        if name not in takes:
            raise ValueError(f"pooling: got {name!r}; it takes one of {', '.join(takes)}.")
        if missing := _missing(config, name):
            others = [each for each in takes if _missing(config, each) is None]
            raise ValueError(f"pooling: got {name!r}, but {missing}; it takes one of {', '.join(others)}.")


def _missing(config, pooling: str) -> str | None:
    if pooling == "cls" and not config.use_cls_token:
        return "the model has no CLS token"
    if pooling in BANDS and config.modality != "audio":
        return f"patches of {config.modality} data have no frequency"
    if pooling == "frames" and config.modality == "image":
        return "images have no time"
    return None


def check_layers(config, layers: Sequence[int | None]) -> None:
    """Raise a `ValueError` for a layer that the model does not have."""
    depth = config.num_hidden_layers
    if not layers:
        raise ValueError(f"layers: got none; the model has layers 1..{depth}, and 0 for the patch embeddings")
    for layer in layers:
        if layer is not None and not (isinstance(layer, int) and -depth - 1 <= layer <= depth):
            raise ValueError(f"layers: got {layer!r}; the model has layers 1..{depth}, and 0 for the patch embeddings")


def choose_layers(config, layers) -> tuple[int | None, ...]:
    """Layers as `extract_features` takes them, each by its number: "all" are those from 0 to depth.

    Raises:
        ValueError: a layer that the model does not have.
    """
    chosen = range(config.num_hidden_layers + 1) if isinstance(layers, str) and layers == "all" else layers
    chosen = tuple(chosen) if isinstance(chosen, Iterable) and not isinstance(chosen, str) else (chosen,)
    check_layers(config, chosen)
    return chosen


def mix_layers(tokens, layer_weights) -> torch.Tensor:
    """Mean (B, 1, N, D) of the layers of tokens (B, L, N, D), weighted by the softmax of `layer_weights` (L,)."""
    weights = layer_weights.to(tokens.device, torch.float32).softmax(dim=0)
    return torch.einsum("l,blnd->bnd", weights, tokens.float())[:, None]


def pool(hidden_states, valid, pooling, has_cls, grid) -> torch.Tensor:
    """Pool the tokens of a layer; padding does not count.

    Args:
        hidden_states: (B, prefix + N, D), prefix 1 with a CLS token and 0 without.
        valid: (B, N), true where a patch is no padding; None where none is.
        pooling (`str`): "mean" over patches; "mean_std", mean and standard deviation over them; "cls"; "bands", the
            frequency patches of a step in time side by side, and the mean over time; "bands_std", mean and standard
            deviation over time; "frames", the mean over the patches of each step in time; "frame_bands", the patches of
            each step side by side.
        has_cls (`bool`): whether the first token is a CLS token.
        grid: patches along each axis, the first of them time.

    Returns:
        float32 tensor (B, D), (B, F * D) for "bands", twice as wide with "_std"; (B, T, D) for "frames", (B, T, F * D)
        for "frame_bands", zero where a step is padding.
    """
    if pooling == "cls":
        return hidden_states[:, 0].float()
    rows = hidden_states[:, int(has_cls) :].float()  # (B, N, D)
    weight = torch.ones_like(rows[..., :1]) if valid is None else valid.float()[..., None]  # (B, N, 1)
    if pooling in (*BANDS, *FRAME_POOLINGS):
        rows, weight = rows.unflatten(1, (grid[0], -1)), weight.unflatten(1, (grid[0], -1))[:, :, 0]  # padding is whole
        rows = rows.flatten(2) if pooling in BANDS else rows.mean(dim=2)  # (B, T, F * D) or (B, T, D)
    if pooling in FRAME_POOLINGS:
        return rows * weight
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (weight * rows).sum(dim=1)
    if pooling not in STD:
        return mean
    variance = (weight * (rows - mean[:, None]).square()).sum(dim=1)
    constant = variance == 0  # there the slope of the root is infinite, and the gradient would be NaN
    return torch.cat([mean, variance.masked_fill(constant, 1.0).sqrt().masked_fill(constant, 0.0)], dim=-1)


def window_hop(size: int, overlap: float, unit: int) -> int:
    """Frames from the beginning of a window to that of the next; arguments as of `window_starts`.

    Raises:
        ValueError: `overlap` is no share in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: got {overlap}; it takes a share in [0, 1).")
    return max(unit, int(size * (1 - overlap)) // unit * unit)


def window_starts(length: int, size: int, overlap: float, unit: int) -> list[int]:
    """Where windows over a clip begin, in frames: at multiples of `unit`, the last one reaching the clip's end.

    Args:
        length: of the clip, size: of a window; in frames.
        overlap: share of a window that the next one sees again, in [0, 1).
        unit: frames of one patch, so that all windows have one grid.
    """
    hop = window_hop(size, overlap, unit)
    if length <= size:
        return [0]
    last = math.ceil((length - size) / unit) * unit
    return [*range(0, last, hop), last]


@dataclass
class ClipWindows:
    """Windows of B clips, one clip after the other.

    Attributes:
        values: (W, size, ...); clips that fit into one window stay as they are.
        attention_mask: (W, size), or None where no frame is padding.
        owners: (W,) int64, the clip of each.
        starts: the frame of the clip at which each begins.
        shares: (B, W), what each window counts in the mean of its clip: its share of the patches in time of all.
    """

    values: torch.Tensor
    attention_mask: torch.Tensor | None
    owners: torch.Tensor
    starts: list[int]
    shares: torch.Tensor

    def parts(self, batch_size: int | None):
        """(values, attention mask) of `batch_size` windows at a time, or of all.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it takes 1 or more, or None for all windows at once.")
        for start in range(0, len(self.values), batch_size or len(self.values)):
            part = slice(start, start + (batch_size or len(self.values)))
            yield self.values[part], None if self.attention_mask is None else self.attention_mask[part]


def cut_windows(values, attention_mask, size: int | None, unit: int, overlap: float = 0.0) -> ClipWindows:
    """Cut clips (B, T, ...) that are longer than `size` frames into windows.

    Args:
        attention_mask: (B, T) 1 for real frames, 0 for padding behind them; None where there is none.
        size: frames; None takes clips as a whole.
        unit, overlap: as for `window_starts`.

    Raises:
        ValueError: a size below 1, or clips to be cut that are no whole patches.
    """
    clips, total = values.shape[:2]
    if size is not None and size < 1:
        raise ValueError(f"window: got {size}; it takes at least 1 frame, or None.")
    if size is None or total <= size:
        eye = torch.eye(clips, device=values.device)
        return ClipWindows(values, attention_mask, torch.arange(clips), [0] * clips, eye)
    if total % unit:
        raise ValueError(
            f"the clips have {total} frames; windows take whole patches of {unit} frames, padded if need be."
        )
    size = max(unit, size // unit * unit)
    lengths = [total] * clips
    if attention_mask is not None:
        ends = attention_mask * torch.arange(1, total + 1, device=attention_mask.device)
        lengths = ends.amax(dim=1).tolist()
    places = [(row, at) for row, length in enumerate(lengths) for at in window_starts(length, size, overlap, unit)]
    steps = [math.ceil(min(size, lengths[row] - at) / unit) for row, at in places]
    shares = torch.zeros(clips, len(places))
    owners = torch.tensor([row for row, _ in places])
    shares[owners, torch.arange(len(places))] = torch.tensor(steps, dtype=torch.float32)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
    return ClipWindows(
        torch.stack([values[row, at : at + size] for row, at in places]),
        None if attention_mask is None else torch.stack([attention_mask[row, at : at + size] for row, at in places]),
        owners,
        [at for _, at in places],
        shares.to(values.device),
    )


def clip_logits(
    classify: Callable, values, attention_mask, window: int | None, unit: int, batch_size: int | None = None
) -> torch.Tensor:
    """Logits (B, classes) of whole clips: the mean of those of their windows, each weighted by its patches in time.

    Args:
        classify: (values, attention mask or None) -> logits of so many windows.
        values, attention_mask, window, unit: as for `cut_windows`; windows do not overlap, but for the last one.
        batch_size: windows at a time; None for all.
    """
    windows = cut_windows(values, attention_mask, window, unit)
    return windows.shares @ torch.cat([classify(*part).float() for part in windows.parts(batch_size)])


def clip_tokens(model, values, attention_mask=None, layers=(None,), window=None, overlap=0.0, batch_size=None):
    """Tokens of whole clips. Patches that several windows see get the mean of what they make of them.

    Args:
        model: `BridleModel`.
        values: (B, ...), the model's input; sounds of any length.
        attention_mask: (B, T) or None.
        layers: `None` is the encoder's output after its final norm; 0 are the patch embeddings, i the output of the
            i-th layer, negative numbers count from the end.
        window: frames; None takes clips as a whole.
        overlap: of windows, see `window_starts`.
        batch_size: windows at a time; None for all.

    Returns:
        (B, L, prefix + N, D), the CLS token of a long clip being the mean over windows; the patches that are no padding
        (B, N) or None; and the grid of the patches.
    """
    layer = model.patch_layer
    windows, unit = cut_windows(values, attention_mask, window, layer.patch_size[0], overlap), layer.patch_size[0]
    hidden, found = any(i is not None for i in layers), []
    for part, mask in windows.parts(batch_size):
        output = run(model, part, mask, output_hidden_states=hidden)
        found.append([output.last_hidden_state if i is None else output.hidden_states[i] for i in layers])
    tokens = torch.stack([torch.cat(of_layer) for of_layer in zip(*found, strict=True)], dim=1)
    grid, valid = layer.grid(values), layer.real_patches(values, attention_mask)
    if windows.values.shape[:2] == values.shape[:2]:
        return tokens, valid, grid
    prefix, steps = int(model.config.use_cls_token), windows.values.shape[1] // unit
    patches = tokens[:, :, prefix:].unflatten(2, (steps, -1))  # (W, L, t, F, D)
    total = patches.new_zeros(len(values), len(layers), *grid, tokens.shape[-1])
    seen = patches.new_zeros(len(values), 1, grid[0], 1, 1)
    for owner, start, part in zip(windows.owners.tolist(), windows.starts, patches, strict=True):
        place = slice(start // unit, start // unit + steps)
        total[owner, :, place] += part
        seen[owner, :, place] += 1
    total = (total / seen.clamp(min=1)).flatten(2, 3)
    cls = torch.einsum("bw,wlpd->blpd", windows.shares.to(tokens.dtype), tokens[:, :, :prefix])
    return torch.cat([cls, total], dim=2), valid, grid


def extract_features(
    self,
    input_values: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    *,
    pooling: str = "frames",
    layers: int | Sequence[int] | str | None = None,
    layer_weights: torch.Tensor | None = None,
    window: int | None = None,
    overlap: float = 0.0,
    batch_size: int | None = None,
    hop_seconds: float = 0.01,
) -> BridleFeaturesOutput:
    r"""Features of clips: one vector per clip, or one per patch in time with its time in seconds.

    A sound that is longer than what the model was trained on goes through it in windows: patches that several windows
    see get the mean of what they make of them, a CLS token is the mean over windows, weighted by their patches in time.
    Give `extractor(clip, truncation=False, padding="longest")` to have all of a clip.

    ```python
    inputs = extractor(clips, sampling_rate=16000, truncation=False, padding="longest", return_tensors="pt")
    found = model.extract_features(**inputs, pooling="frame_bands", layers=6, hop_seconds=extractor.hop_seconds)
    found.features, found.times  # (B, T, F * D), (T,)
    ```

    Args:
        input_values, pixel_values, attention_mask: as in `forward`; sounds of any length.
        pooling (`str`): one vector per clip: "mean" over patches, "mean_std" (mean and standard deviation), "cls",
            "bands" (sounds: the patches of a step in time side by side, lowest frequency first, and their mean over
            time), "bands_std". One vector per patch in time: "frames" (mean over its patches), "frame_bands" (sounds:
            its patches side by side). Padding does not count.
        layers (*optional*): by default the encoder's output after its final norm; a layer, 1 to depth, 0 for the patch
            embeddings, negative numbers count from the end; several of them; or "all", from 0 to depth.
        layer_weights (`torch.Tensor` of shape (L,), *optional*): numbers, such as a probe learns, whose softmax weights
            `layers` in a mean of their tokens, before pooling.
        window (`int`, *optional*): frames; by default those of `config.input_size` for sounds. What is not longer goes
            through the model as a whole.
        overlap (`float`): share of a window that the next one sees again.
        batch_size (`int`, *optional*): windows at a time; all by default.
        hop_seconds (`float`): seconds from frame to frame of a sound, `extractor.hop_seconds`: 10 ms at 16 kHz.

    Returns:
        `features` float32 (B, d) or (B, T, d), with several layers and no `layer_weights` (B, L, ...); for frames also
        `frame_mask` (B, T), 0 for padding, and of sounds `times` (T,), the seconds at which each begins.

    Raises:
        ValueError: a pooling or layer that the model does not have, weights of another number than layers.
    """
    config = self.config
    check_poolings(config, [pooling], (*POOLINGS, *FRAME_POOLINGS))
    chosen, several = choose_layers(config, layers), not (layers is None or isinstance(layers, int))
    if layer_weights is not None and (not several or tuple(layer_weights.shape) != (len(chosen),)):
        raise ValueError(f"layer_weights: got shape {tuple(layer_weights.shape)}; it takes one number for each layer.")
    if window is None and config.modality == "audio":
        window = config.input_size[0]
    values = pick_input(self, input_values, pixel_values)
    tokens, valid, grid = clip_tokens(self, values, attention_mask, chosen, window, overlap, batch_size)
    if layer_weights is not None:
        tokens, several = mix_layers(tokens, layer_weights), False
    found = [pool(of_layer, valid, pooling, config.use_cls_token, grid) for of_layer in tokens.unbind(dim=1)]
    features = torch.stack(found, dim=1) if several else found[0]
    if pooling in POOLINGS:
        return BridleFeaturesOutput(features=features)
    real = torch.ones(len(values), grid[0], dtype=torch.long, device=values.device)
    if valid is not None:
        real = valid.unflatten(1, (grid[0], -1))[:, :, 0].long()
    unit, times = config.patch_size[0], None
    if config.modality == "audio":
        times = torch.arange(grid[0], dtype=torch.float64) * (unit * hop_seconds)  # rounded once, hours behind too
        times = times.to(values.device, torch.float32)
    return BridleFeaturesOutput(features=features, times=times, frame_mask=real)
