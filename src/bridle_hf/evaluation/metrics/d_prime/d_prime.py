"""d-prime over classes, as reported for AudioSet."""

import datasets
import evaluate
import numpy as np
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

_DESCRIPTION = """d' = sqrt(2) * probit(AUC), with AUC the mean over classes of the area under the ROC curve.
Classes with only positive or only negative examples have no AUC: they are left out and counted."""

_INPUTS = """
Args:
    predictions: scores (n, classes), any monotone scale.
    references: class indices (n,) or multi-hot labels (n, classes).
Returns:
    d_prime (infinite for a perfect AUC), auc (in [0, 1]), classes_left_out (int).
"""


class DPrime(evaluate.Metric):
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
            labels = np.eye(scores.shape[1], dtype=np.int64)[labels]  # (n, C)
        usable = labels.any(axis=0) & ~labels.all(axis=0)
        if not usable.any():
            raise ValueError("references: no class has both positive and negative examples")
        auc = float(np.mean([roc_auc_score(labels[:, c], scores[:, c]) for c in np.flatnonzero(usable)]))
        return {"d_prime": float(np.sqrt(2) * norm.ppf(auc)), "auc": auc, "classes_left_out": int((~usable).sum())}
