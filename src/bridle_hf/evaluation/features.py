"""Frozen features of clips: pooled layers of an encoder, as arrays or streamed to a parquet file."""

from math import prod

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.modalities import MODALITIES
from ..modeling_bridle import run
from .windows import frame_starts, run_windows, write_parquet

POOLINGS = ("mean", "mean_std", "cls")
STREAMED_POOLINGS = ("mean", "cls", "frames")


def batches(examples, batch_size, device="cpu", description=None):
    """Examples in their order, on `device`: the model's input (B, ...), and `attention_mask` (B, T) or None."""
    starts = range(0, len(examples), batch_size)
    for start in tqdm(starts, desc=description, leave=False, disable=None if description else True):
        batch = examples.batch(range(start, min(start + batch_size, len(examples))))
        batch = {name: torch.as_tensor(value, device=device) for name, value in batch.items()}
        mask = batch.pop("attention_mask", None)
        (values,) = batch.values()
        yield values, mask


def pool(hidden_states, valid, pooling, has_cls):
    """Pool the tokens of a layer to one vector per clip.

    Args:
        hidden_states: (B, prefix + N, D), prefix 1 with a CLS token and 0 without.
        valid: (B, N), true where a patch is no padding.
        pooling (`str`): "mean" over valid patches; "mean_std", mean and standard deviation over them; "cls".
        has_cls (`bool`): whether the first token is a CLS token.

    Returns:
        float32 tensor (B, D), or (B, 2 D) for "mean_std".
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: got {pooling!r}; it takes one of {', '.join(POOLINGS)}")
    if pooling == "cls":
        if not has_cls:
            raise ValueError("pooling: got 'cls', but the model has no CLS token; take 'mean' or 'mean_std'")
        return hidden_states[:, 0].float()
    patches = hidden_states[:, int(has_cls) :].float()  # (B, N, D)
    weight = valid.float()[..., None]  # (B, N, 1)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (weight * patches).sum(dim=1)  # (B, D)
    if pooling == "mean":
        return mean
    variance = (weight * (patches - mean[:, None]).square()).sum(dim=1)
    return torch.cat([mean, variance.sqrt()], dim=-1)  # (B, 2 D)


@torch.no_grad()
def encoder_features(model, examples, layers=(None,), poolings=("mean",), batch_size=32, description="features"):
    """Pooled features of a frozen encoder; the model runs once for all layers and poolings.

    Args:
        model: `BridleModel`. It is put in evaluation mode.
        examples: `Examples`, n of them.
        layers: `None` is the encoder's output after its final norm; 0 are the patch embeddings, i the output of the
            i-th layer, negative numbers count from the end.
        poolings: of `POOLINGS`.
        batch_size (`int`): clips at a time.
        description (`str`): of the progress bar; none without.

    Returns:
        dict (layer, pooling) -> float32 array (n, features).

    Raises:
        ValueError: for a layer or pooling the model does not have.
    """
    model.eval()
    check_layers(model.config, layers)
    has_cls = bool(model.config.use_cls_token)
    found = {(layer, pooling): [] for layer in layers for pooling in poolings}
    for values, mask in batches(examples, batch_size, model.device, description):
        hidden = any(layer is not None for layer in layers)
        output = run(model, values, mask, output_hidden_states=hidden)
        valid = patch_validity(model, values, mask)
        for (layer, pooling), rows in found.items():
            tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]
            rows.append(pool(tokens, valid, pooling, has_cls).cpu().numpy())
    return {key: np.concatenate(rows) for key, rows in found.items()}


def check_layers(config, layers):
    """Raise a `ValueError` for a layer that the model does not have."""
    depth = config.num_hidden_layers
    for layer in layers:
        if layer is not None and not -depth - 1 <= layer <= depth:
            raise ValueError(f"layers: got {layer}; the model has layers 1..{depth}, and 0 for the patch embeddings.")


def patch_validity(model, values, attention_mask):
    """(B, N) bool: which patches of `values` hold at least one frame that is no padding; all without a mask."""
    valid = model.patch_layer.real_patches(values, attention_mask)
    if valid is None:  # no patch is padding
        grid = model.patch_layer.grid(values)
        return torch.ones(len(values), prod(grid), dtype=torch.bool, device=values.device)
    return valid


@torch.no_grad()
def write_features(
    path, model, data, processor, layers=(None,), pooling="mean", overlap=0.5, batch_size=32, dataset=None
):
    """Embed every clip that `data` names and stream the features to a parquet file.

    A row holds the dataset's columns besides the clip, `clip_name`, and a column a layer, `last` or `layer_i`: one
    vector, or with `pooling="frames"` a vector a patch in time, with `start` beside it, the seconds at which each
    begins. A sound longer than `data.max_frames` goes through the model in overlapping windows, and patches that
    several windows see get the mean of what they make of them. A column of the dataset that is called like one of these
    is written with the prefix `dataset_`.

    Args:
        path: of the file.
        model: `BridleModel`. It is put in evaluation mode.
        data: `DataArguments`.
        processor: the model's front-end.
        layers: as for `encoder_features`.
        pooling (`str`): "mean" over all patches; "cls", the mean over windows; "frames", the mean over the patches that
            share their place in time.
        overlap (`float`): share of a window that the next one sees again.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.

    Returns:
        the number of rows.

    Raises:
        ValueError: for a layer or pooling the model does not have.
    """
    config = model.eval().config
    check_layers(config, layers)
    if pooling not in STREAMED_POOLINGS:
        raise ValueError(f"pooling: got {pooling!r}; it takes one of {', '.join(STREAMED_POOLINGS)}")
    if pooling == "cls" and not config.use_cls_token:
        raise ValueError("pooling: got 'cls', but the model has no CLS token; take 'mean' or 'frames'")
    modality, prefix, unit = MODALITIES[config.modality], int(config.use_cls_token), config.patch_size[0]
    names = ["last" if layer is None else f"layer_{layer}" for layer in layers]

    def embed(values, mask):
        output = run(model, values, mask, output_hidden_states=any(layer is not None for layer in layers))
        tokens = [output.last_hidden_state if i is None else output.hidden_states[i] for i in layers]
        tokens = torch.stack(tokens, dim=1).float()  # (B, layers, prefix + N, D)
        if pooling == "cls":
            return tokens[:, :, :1].cpu().numpy()
        grid = model.patch_layer.grid(values)
        in_time = grid[0] if modality.has_time else 1
        return tokens[:, :, prefix:].unflatten(2, (in_time, -1)).mean(dim=3).cpu().numpy()  # (B, layers, T, D)

    timed = pooling == "frames" and modality.hop_seconds is not None
    ours = [*names, *["start"] * timed]

    def rows():
        parts = run_windows(data, processor, unit, embed, overlap, batch_size, model.device, dataset, ours)
        for example, windows in parts:
            if pooling == "cls":
                merged = np.mean([part for *_, part in windows], axis=0)  # (layers, 1, D)
            else:
                merged = overlap_mean(windows)  # (layers, T, D)
            times = {"start": frame_starts(merged.shape[1], unit, modality.hop_seconds(processor))} if timed else {}
            chosen = merged if pooling == "frames" else merged.mean(axis=1)
            yield example | times | dict(zip(names, chosen, strict=True))

    return write_parquet(path, rows())


def overlap_mean(windows):
    """One array (layers, T, D) of the parts (start, length, (layers, t, D)) of a clip; overlaps are averaged."""
    ends = [start + (part.shape[1] if length is None else length) for start, length, part in windows]
    layers, _, width = windows[0][2].shape
    total, seen = np.zeros((layers, max(ends), width), dtype=np.float32), np.zeros((max(ends), 1), dtype=np.float32)
    for (start, _, part), end in zip(windows, ends, strict=True):
        total[:, start:end] += part[:, : end - start]
        seen[start:end] += 1
    return total / seen
