"""Discrete codes of a dataset, for models of token sequences."""

import json

import numpy as np
import torch

from ..data.modalities import MODALITIES
from .row_files import Parts, key_of
from .windows import run_windows


def code_layout(config, processor) -> dict:
    """What the numbers in `codes` stand for, as written into the file under the key `bridle_codes`.

    A code k of codebook m is the token m * codebook_size + k of one common vocabulary; where `codebook_size` is a list,
    the token k + the sum of the sizes of the codebooks before.
    """
    quantizer = config.quantizer_config
    modality = MODALITIES[config.modality]
    layout = {
        "order": [*modality.axes, "codebook"],
        "patch_size": list(config.patch_size),
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
    }
    if (seconds := modality.seconds_per_patch(config, processor)) is not None:
        layout["seconds_per_patch"] = seconds
    return layout


def write_codes(path, tokenizer, data, processor, batch_size=32, dataset=None, shard=(0, 1)):
    """Stream the rows of `code_rows` to a parquet file at `path`, with flat codes; returns their number. What is killed
    goes on, and processes share the clips, as in `write_features`."""
    parts = Parts(path, key_of(tokenizer, processor, data), shard)
    rows = (
        row | {"codes": row["codes"].reshape(-1), "shape": list(row["codes"].shape)}
        for row in code_rows(tokenizer, data, processor, batch_size, dataset, parts)
    )
    return parts.write(rows, {"bridle_codes": json.dumps(code_layout(tokenizer.config, processor))})


@torch.no_grad()
def code_rows(tokenizer, data, processor, batch_size=32, dataset=None, parts=None):
    """Encode every clip that `data` names, one row each.

    A row holds the dataset's columns besides the clip, `clip_name`, and `codes`, int32 of all real patches, with the
    axes that `code_layout` says. The codes of a sound longer than a window are those of windows side by side. A column
    of the dataset that is called `codes` or `shape` gets the prefix `dataset_`.

    Args:
        tokenizer: `BridleTokenizer`; it is put in evaluation mode.
        data: `DataArguments`.
        processor: the model's front-end.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.
        parts (`Parts`): where the rows are written.

    Yields:
        dict of a row.
    """
    config = tokenizer.eval().config
    patches = tokenizer.patch_layer

    def run(values, mask):
        grid = patches.grid(values)
        return tokenizer.encode(values, attention_mask=mask).unflatten(1, grid).cpu().numpy()  # (B, *grid, M)

    unit, device = config.patch_size[0], tokenizer.device
    how = {"batch_size": batch_size, "device": device, "dataset": dataset, "parts": parts}
    for example, windows in run_windows(data, processor, unit, run, ours=("codes", "shape"), **how):
        pieces, done = [], 0
        for start, length, codes in windows:
            pieces.append(codes[done - start : length])  # the last window sees some patches again
            done += len(pieces[-1])
        yield example | {"codes": np.concatenate(pieces).astype(np.int32)}
