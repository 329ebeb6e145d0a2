"""Mean average precision over classes, as reported for AudioSet."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score

_DESCRIPTION = """Mean over classes of the average precision (area under the precision-recall curve, step-wise).
Classes without a positive example have no average precision: they are left out and counted in `classes_left_out`."""

_INPUTS = """
Args:
    predictions: scores (n, classes), any monotone scale.
    references: class indices (n,) or multi-hot labels (n, classes).
Returns:
    mean_average_precision (in [0, 1]), classes_left_out (int).
"""


class MeanAveragePrecision(evaluate.Metric):
    def _info(self):
        scores = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": scores, "references": datasets.Sequence(datasets.Value("int64"))}),
                datasets.Features({"predictions": scores, "references": datasets.Value("int64")}),
            ],
        )

    def _compute(self, predictions, references):
        scores, labels = np.asarray(predictions), np.asarray(references)
        if labels.ndim == 1:
            if labels.min(initial=0) < 0 or labels.max(initial=0) >= scores.shape[1]:
                classes = scores.shape[1] - 1
                raise ValueError(f"references: got {labels.min()} to {labels.max()}; classes go from 0 to {classes}")
            labels = np.eye(scores.shape[1], dtype=np.int64)[labels]  # (n, C)
        present = labels.any(axis=0)
        if not present.any():
            raise ValueError("references: no class has a positive example")
        precisions = [average_precision_score(labels[:, c], scores[:, c]) for c in np.flatnonzero(present)]
        return {"mean_average_precision": float(np.mean(precisions)), "classes_left_out": int((~present).sum())}
