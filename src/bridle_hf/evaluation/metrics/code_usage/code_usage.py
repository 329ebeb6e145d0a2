"""Codebook usage: CUR, UE, ECU and perplexity of each codebook."""

import datasets
import evaluate
import numpy as np
from scipy.stats import entropy

_DESCRIPTION = """How evenly each of M codebooks is used (ECU: arXiv 2502.02118, eq. 31):
CUR = used / K, UE = entropy of the codes, ECU = CUR * UE / log K (1 = uniform), perplexity = exp(UE)."""

_INPUTS = """
Args:
    predictions: codes (n, M), integers in [0, codebook_size).
    codebook_size: K, or a list of one number per codebook.
Returns:
    cur, entropy (bits), ecu, perplexity, dead: lists of M values, the first codebook first.
"""


class CodeUsage(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
        )

    def _compute(self, predictions, codebook_size):
        codes = np.asarray(predictions)  # (n, M)
        size = np.asarray(codebook_size)  # () or (M,)
        if codes.min() < 0 or (codes >= size).any():
            raise ValueError(f"predictions: got codes {codes.min()}..{codes.max()}; they lie in [0, {codebook_size})")
        counts = np.stack([np.bincount(stage, minlength=size.max()) for stage in codes.T])  # (M, K)
        used, bits = (counts > 0).sum(axis=1), entropy(counts, axis=1, base=2)
        measured = {
            "cur": used / size,
            "entropy": bits,
            "ecu": np.where(size > 1, used / size * bits / np.log2(np.maximum(size, 2)), used / size),
            "perplexity": 2.0**bits,
            "dead": size - used,
        }
        return {name: values.tolist() for name, values in measured.items()}
