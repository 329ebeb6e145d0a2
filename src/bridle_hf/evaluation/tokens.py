"""Discrete codes of a dataset, for models of token sequences."""

import json
from math import prod

import numpy as np
import torch

from ..data.modalities import MODALITIES
from .windows import run_windows, write_parquet


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


@torch.no_grad()
def write_codes(path, tokenizer, data, processor, batch_size=32, dataset=None):
    """Encode every clip that `data` names and stream the codes to a parquet file.

    A row holds the dataset's columns besides the clip, `clip_name`, `codes` (the flat codes of all real patches, in the
    order that `code_layout` says) and `shape`, the lengths of those axes. The codes of a sound longer than a window
    are those of windows side by side.

    Args:
        path: of the file.
        tokenizer: `BridleTokenizer`; it is put in evaluation mode.
        data: `DataArguments`.
        processor: the model's front-end.
        batch_size (`int`): windows at a time.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.

    Returns:
        the number of rows.
    """
    config = tokenizer.eval().config
    patches = tokenizer.patch_layer

    def run(values, mask):
        grid = patches.grid(values)
        return tokenizer.encode(values, attention_mask=mask).unflatten(1, grid).cpu().numpy()  # (B, *grid, M)

    def rows():
        unit, device = config.patch_size[0], tokenizer.device
        parts = run_windows(data, processor, unit, run, 0.0, batch_size, device, dataset, ours=("codes", "shape"))
        for example, windows in parts:
            pieces, done = [], 0
            for start, length, codes in windows:
                pieces.append(codes[done - start : length])  # the last window sees some patches again
                done += len(pieces[-1])
            codes = np.concatenate(pieces).astype(np.int32)
            yield example | {"codes": codes.reshape(prod(codes.shape)), "shape": list(codes.shape)}

    return write_parquet(path, rows(), {"bridle_codes": json.dumps(code_layout(config, processor))})
