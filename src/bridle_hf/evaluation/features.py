"""Frozen features of clips: pooled layers of an encoder."""

from math import prod

import numpy as np
import torch
from tqdm.auto import tqdm

from ..modeling_bridle import run

POOLINGS = ("mean", "mean_std", "cls")


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
        examples: `Examples`, n of them.
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
        output = run(model, values, mask, output_hidden_states=hidden)
        valid = patch_validity(model, values, mask)
        for (layer, pooling), rows in found.items():
            tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]
            rows.append(pool(tokens, valid, pooling, has_cls).cpu().numpy())
    return {key: np.concatenate(rows) for key, rows in found.items()}


def patch_validity(model, values, attention_mask):
    """(B, N) bool: which patches of `values` hold at least one frame that is no padding; all without a mask."""
    valid = model.embeddings.patch_validity(values, attention_mask)
    if valid is None:  # no patch is padding
        grid = model.embeddings.patch_embeddings.grid(values)
        return torch.ones(len(values), prod(grid), dtype=torch.bool, device=values.device)
    return valid
