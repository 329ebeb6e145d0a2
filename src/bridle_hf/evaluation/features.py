"""Frozen features of clips: pooled layers of an encoder, as arrays or streamed to a parquet file."""

from math import prod

import numpy as np
import torch
from tqdm.auto import tqdm

from ..clip_features_bridle import (
    FRAME_POOLINGS,
    POOLINGS,
    check_layers,
    check_poolings,
    clip_tokens,
    mix_layers,
    pool,
)
from ..data.modalities import MODALITIES
from .clip_patches import ClipPatches
from .row_files import Parts, key_of
from .windows import frame_starts, mean_of_windows, run_windows

STREAMED_POOLINGS = (*POOLINGS, *FRAME_POOLINGS)


def batches(examples, batch_size, device="cpu", description=None, whole=False):
    """Examples in their order, on `device`: the model's input (B, ...), and `attention_mask` (B, T) or None.

    With `whole`, long sounds come as a whole, see `Examples.whole`.
    """
    starts = range(0, len(examples), batch_size)
    for start in tqdm(starts, desc=description, leave=False, disable=None if description else True):
        rows = range(start, min(start + batch_size, len(examples)))
        batch = examples.whole(rows) if whole else examples.batch(rows)
        batch = {name: torch.as_tensor(value, device=device) for name, value in batch.items()}
        mask = batch.pop("attention_mask", None)
        (values,) = batch.values()
        yield values, mask


@torch.no_grad()
def token_batches(model, examples, layers, batch_size, description, even=False):
    """What `clip_tokens` gives of the examples, batch by batch, by a frozen encoder. `even` makes one layer of several,
    their mean."""
    model.eval()
    check_layers(model.config, layers)
    for values, mask in batches(examples, batch_size, model.device, description, whole=True):
        tokens, valid, grid = clip_tokens(model, values, mask, layers, examples.window, batch_size=batch_size)
        yield mix_layers(tokens, torch.zeros(len(layers))) if even else tokens, valid, grid


def encoder_features(
    model, examples, layers=(None,), poolings=("mean",), batch_size=32, description="features", even=False
):
    """Pooled features of a frozen encoder; the model runs once for all layers and poolings.

    Sounds that are longer than `examples.window` go through it in windows, and each of their frames counts once.

    Args:
        model: `BridleModel`. It is put in evaluation mode.
        examples: `Examples`, n of them.
        layers: `None` is the encoder's output after its final norm; 0 are the patch embeddings, i the output of the
            i-th layer, negative numbers count from the end.
        poolings: of `POOLINGS`.
        batch_size (`int`): clips at a time.
        description (`str`): of the progress bar; none without.
        even (`bool`): pool the mean of the layers, not each of them.

    Returns:
        dict (layer, pooling) -> float32 array (n, features). The mean of layers is that of the tuple of them.

    Raises:
        ValueError: for a layer or pooling the model does not have.
    """
    check_poolings(model.config, poolings)
    names = (tuple(layers),) if even else layers
    found = {(name, pooling): [] for name in names for pooling in poolings}
    for tokens, valid, grid in token_batches(model, examples, layers, batch_size, description, even):
        for number, layer in enumerate(names):
            for pooling in poolings:
                rows = pool(tokens[:, number], valid, pooling, model.config.use_cls_token, grid)
                found[layer, pooling].append(rows.cpu().numpy())
    return {key: np.concatenate(rows) for key, rows in found.items()}


def encoder_patches(model, examples, layers=(None,), batch_size=32, description="features", even=False):
    """The patches of a frozen encoder that are no padding, as `ClipPatches`; arguments as for `encoder_features`.

    Two bytes per number stay in memory: layers * patches * hidden_size * 2 bytes per clip.
    """
    found, prefix = [], int(model.config.use_cls_token)
    for tokens, valid, _ in token_batches(model, examples, layers, batch_size, description, even):
        patches = tokens[:, :, prefix:].to("cpu", torch.float16)
        for row, clip in enumerate(patches):
            # a copy: the batch is padded to its longest clip
            found.append(clip.clone() if valid is None else clip[:, valid[row].cpu()])
    return ClipPatches(found)


def patch_validity(model, values, attention_mask):
    """(B, N) bool: which patches of `values` hold at least one frame that is no padding; all without a mask."""
    valid = model.patch_layer.real_patches(values, attention_mask)
    if valid is None:  # no patch is padding
        grid = model.patch_layer.grid(values)
        return torch.ones(len(values), prod(grid), dtype=torch.bool, device=values.device)
    return valid


def write_features(
    path, model, data, processor, layers=(None,), pooling="mean", *, shard=(0, 1), batch_size=32, dataset=None, **more
):
    """Stream the rows of `feature_rows`, which takes `more`, to a parquet file; returns their number.

    A writer that was killed goes on where it was when it is called again. Of several processes, rank and number in
    `shard`, each writes a file of its own, `NAME-00000-of-00004.parquet`, with every fourth clip.
    """
    settings = {"layers": layers, "pooling": pooling, **more}
    parts = Parts(path, key_of(model, processor, data, **settings), shard)
    how = {"batch_size": batch_size, "dataset": dataset, "parts": parts}
    return parts.write(feature_rows(model, data, processor, **settings, **how))


@torch.no_grad()
def feature_rows(
    model,
    data,
    processor,
    layers=(None,),
    pooling="mean",
    overlap=0.5,
    batch_size=32,
    dataset=None,
    even=False,
    per_window=False,
    parts=None,
):
    """Embed every clip that `data` names, one row each, or one for each window of it.

    A row holds the dataset's columns besides the clip, `clip_name`, and one column per layer, `last` or `layer_i`, or
    `mean` for the mean of the layers: a vector, or with `pooling="frames"` and "frame_bands" one per patch in time,
    with `start` beside it, the seconds at which each begins. A sound longer than `data.max_frames` goes through the
    model in overlapping windows, and patches that several windows see get the mean of what they make of them. A column
    of the dataset that is called like one of these is written with the prefix `dataset_`.

    Args:
        model: `BridleModel`. It is put in evaluation mode.
        data: `DataArguments`.
        processor: the model's front-end.
        layers: as for `encoder_features`.
        pooling (`str`): of `STREAMED_POOLINGS`, see `BridleModel.extract_features`; "cls" is the mean over windows,
            weighted by their patches in time.
        overlap (`float`): share of a window that the next one sees again.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.
        even (`bool`): write the mean of the layers, not each of them.
        per_window (`bool`): a row for each window of a sound, pooled by itself, with its `start` and `end` in seconds.
        parts (`Parts`): where the rows are written.

    Yields:
        dict of a row; with `per_window` the list of those of a clip.

    Raises:
        ValueError: for a layer or pooling the model does not have, or `per_window` of what has no such windows.
    """
    config = model.eval().config
    check_layers(config, layers)
    check_poolings(config, [pooling], STREAMED_POOLINGS)
    modality, prefix, unit = MODALITIES[config.modality], int(config.use_cls_token), config.patch_size[0]
    names = ["mean"] if even else ["last" if layer is None else f"layer_{layer}" for layer in layers]
    bandless = pooling in ("mean", "frames")

    def embed(values, mask):
        tokens, _, grid = clip_tokens(model, values, mask, layers)  # (B, layers, prefix + N, D)
        tokens = mix_layers(tokens, torch.zeros(len(layers))) if even else tokens.float()
        if pooling == "cls":
            return tokens[:, :, :1].cpu().numpy()
        in_time = grid[0] if modality.has_time else 1
        patches = tokens[:, :, prefix:].unflatten(2, (in_time, -1))  # (B, layers, T, F, D)
        return (patches.mean(dim=3) if bandless else patches.flatten(3)).cpu().numpy()  # (B, layers, T, D or F * D)

    timed = pooling in FRAME_POOLINGS and modality.hop_seconds is not None
    if per_window and (pooling in FRAME_POOLINGS or modality.hop_seconds is None):
        raise ValueError(
            f"per_window takes sounds and one vector per window; got {config.modality} data and pooling={pooling!r}."
        )
    ours = [*names, *["start"] * (timed or per_window), *["end"] * per_window]

    def pooled(frames):  # (layers, T, D or F * D)
        return frames[:, 0] if pooling == "cls" else pool_frames(frames, pooling, config.hidden_size)

    how = {"overlap": overlap, "batch_size": batch_size, "device": model.device, "dataset": dataset, "parts": parts}
    for example, windows in run_windows(data, processor, unit, embed, ours=ours, **how):
        if per_window:
            patch = modality.seconds_per_patch(config, processor)
            yield [
                example
                | {"start": start * patch, "end": (start + length) * patch}
                | dict(zip(names, pooled(frames[:, :length]).astype(np.float32), strict=True))
                for start, length, frames in windows
            ]
            continue
        if pooling == "cls":
            chosen = mean_of_windows(windows, lambda tokens: tokens[:, 0])
        else:
            chosen = overlap_mean(windows)  # (layers, T, D or F * D)
        times = {"start": frame_starts(chosen.shape[1], unit, modality.hop_seconds(processor))} if timed else {}
        if pooling not in ("cls", *FRAME_POOLINGS):
            chosen = pooled(chosen)
        yield example | times | dict(zip(names, chosen.astype(np.float32), strict=True))


def pool_frames(frames, pooling, width):
    """One vector per layer, as `pool` makes it, of the frames (layers, T, D or F * D) of a clip; `width` is D."""
    tokens = torch.from_numpy(frames).unflatten(2, (-1, width)).flatten(1, 2)  # (layers, T * F, D)
    return pool(tokens, None, pooling, False, frames.shape[1:2]).numpy()


def overlap_mean(windows):
    """One array (layers, T, D) of the parts (start, length, (layers, t, D)) of a clip; overlaps are averaged."""
    ends = [start + (part.shape[1] if length is None else length) for start, length, part in windows]
    layers, _, width = windows[0][2].shape
    total, seen = np.zeros((layers, max(ends), width), dtype=np.float32), np.zeros((max(ends), 1), dtype=np.float32)
    for (start, _, part), end in zip(windows, ends, strict=True):
        total[:, start:end] += part[:, : end - start]
        seen[start:end] += 1
    return total / seen
