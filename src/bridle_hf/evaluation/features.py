"""Frozen features of clips: pooled layers of an encoder, and hand-made statistics of the log-mel spectrogram."""

from math import prod

import numpy as np
import torch
from tqdm.auto import tqdm

POOLINGS = ("mean", "mean_std", "cls")


def batches(examples, batch_size, device="cpu", description=None):
    """Examples in their order: `input_values` (B, T, F) and `attention_mask` (B, T) on `device`."""
    starts = range(0, len(examples.features), batch_size)
    for start in tqdm(starts, desc=description, leave=False, disable=None if description else True):
        rows = slice(start, start + batch_size)
        yield (
            torch.as_tensor(examples.features[rows], device=device),
            torch.as_tensor(examples.attention_mask[rows], device=device),
        )


def pool(hidden_states, valid, pooling, has_cls):
    """One vector a clip from the tokens of a layer.

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
def encoder_features(model, examples, layers=(None,), poolings=("mean",), batch_size=32):
    """Pooled features of a frozen encoder; the model runs once for all layers and poolings.

    Args:
        model: `BridleModel`. It is put in evaluation mode.
        examples: object with `features` (n, T, F) and `attention_mask` (n, T).
        layers: `None` is the encoder's output after its final norm; 0 are the patch embeddings, i the output of the
            i-th layer, negative numbers count from the end.
        poolings: of `POOLINGS`.
        batch_size (`int`): clips at a time.

    Returns:
        dict (layer, pooling) -> float32 array (n, features).

    Raises:
        ValueError: for a layer or pooling the model does not have.
    """
    model.eval()
    depth = model.config.num_hidden_layers
    for layer in layers:
        if layer is not None and not -depth - 1 <= layer <= depth:
            raise ValueError(f"layers: got {layer}; the model has layers 1..{depth}, and 0 for the patch embeddings")
    has_cls = bool(model.config.use_cls_token)
    found = {(layer, pooling): [] for layer in layers for pooling in poolings}
    for values, mask in batches(examples, batch_size, model.device, "features"):
        hidden = any(layer is not None for layer in layers)
        output = model(input_values=values, attention_mask=mask, output_hidden_states=hidden)
        valid = patch_validity(model, values, mask)
        for (layer, pooling), rows in found.items():
            tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]
            rows.append(pool(tokens, valid, pooling, has_cls).cpu().numpy())
    return {key: np.concatenate(rows) for key, rows in found.items()}


def patch_validity(model, values, attention_mask):
    """(B, N) bool: which patches of `values` hold at least one frame that is no padding."""
    valid = model.embeddings.patch_validity(values, attention_mask)
    if valid is None:  # no patch is padding
        grid = model.embeddings.patch_embeddings.grid(values)
        return torch.ones(len(values), prod(grid), dtype=torch.bool, device=values.device)
    return valid


def logmel_features(examples, deltas=False):
    """Hand-made features of each clip: mean and standard deviation of every mel bin over the frames of the clip.

    Args:
        examples: object with `features` (n, T, F) and `attention_mask` (n, T).
        deltas (`bool`): add the mean absolute difference of neighbouring frames.

    Returns:
        float64 array (n, 2 F), or (n, 3 F) with deltas.
    """
    rows = []
    for clip, mask in zip(examples.features, examples.attention_mask, strict=True):
        frames = np.asarray(clip, dtype=np.float64)[np.asarray(mask, dtype=bool)]  # (t, F)
        row = [frames.mean(axis=0), frames.std(axis=0)]
        if deltas:
            row.append(np.abs(np.diff(frames, axis=0)).mean(axis=0) if len(frames) > 1 else np.zeros(frames.shape[1]))
        rows.append(np.concatenate(row))
    return np.stack(rows)
