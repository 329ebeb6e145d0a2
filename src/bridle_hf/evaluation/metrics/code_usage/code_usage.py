"""Codebook usage: CUR, UE, ECU and perplexity of each codebook."""

import datasets
import evaluate
import numpy as np

from bridle_hf.evaluation.codebooks import code_counts, usage

_DESCRIPTION = """How evenly each of M codebooks is used (ECU: arXiv 2502.02118, eq. 31):
CUR = used / K, UE = entropy of the codes, ECU = CUR * UE / log K (1 = uniform), perplexity = exp(UE)."""

_INPUTS = """
Args:
    predictions: codes (n, M), integers in [0, codebook_size).
    codebook_size: K.
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
        measured = usage(code_counts(np.asarray(predictions), codebook_size))
        return {name: measured[name].tolist() for name in ("cur", "entropy", "ecu", "perplexity", "dead")}
