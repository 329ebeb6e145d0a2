"""Top-1 and top-k accuracy from scores."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Share of examples whose class has the highest score (accuracy), or one of the k highest."

_INPUTS = """
Args:
    predictions: scores (n, classes).
    references: class indices (n,).
    k: how many classes count (default 5; at most the number of classes).
Returns:
    accuracy, top_k_accuracy. Ties count against the example: the true class ranks behind the classes it ties with.
"""


class TopKAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, k=5):
        scores, labels = np.asarray(predictions), np.asarray(references)
        if not 1 <= k <= scores.shape[1]:
            raise ValueError(f"k: got {k} for {scores.shape[1]} classes; it must be between 1 and their number")
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= scores.shape[1]:
            raise ValueError(
                f"references: got {labels.min()} to {labels.max()}; classes go from 0 to {scores.shape[1] - 1}"
            )
        true_score = np.take_along_axis(scores, labels[:, None], axis=1)  # (n, 1)
        # A constant model must not score 100 %, so a tie is a miss, and so is NaN.
        ahead = (~(scores < true_score)).sum(axis=1) - 1  # (n,)
        return {"accuracy": float((ahead < 1).mean()), "top_k_accuracy": float((ahead < k).mean())}
