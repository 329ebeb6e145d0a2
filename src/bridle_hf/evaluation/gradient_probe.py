"""Linear probe by gradient descent: for sets too large for L-BFGS or Newton, several labels per clip, mixed layers."""

import numpy as np
import torch
from torch.nn import functional as F

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
EPOCHS, BATCH_SIZE, WEIGHT_DECAY = 100, 256, 1e-2


def gradient_scores(train, labels, test, rates, *, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0):
    """Scores of the test rows by linear classifiers that AdamW fits on standardised features, one for each rate.

    Cross-entropy, or binary cross-entropy over all classes where a row has several; cosine schedule down to zero. Of
    several layers, softmax weights of their mean are learned with the classifier.

    Args:
        train: (n, d), or (n, L, d) of L layers.
        labels: (n,) classes from 0, or multi-hot (n, classes).
        test: as train.
        rates: learning rates.
        epochs, batch_size, seed: of the training.

    Returns:
        (len(rates), test rows, classes) float32 logits; and the weights of the layers, (len(rates), L).
    """
    layers = [np.ascontiguousarray(x if x.ndim == 3 else x[:, None], dtype=np.float32) for x in (train, test)]
    mean, scale = layers[0].mean(axis=0), layers[0].std(axis=0)
    scale[scale < 1e-6 * np.abs(mean).clip(1)] = 1.0  # constant
    x, x_test = (torch.from_numpy((each - mean) / scale) for each in layers)
    several = np.ndim(labels) > 1
    y = torch.as_tensor(np.asarray(labels), dtype=torch.float32 if several else torch.int64)
    classes = y.shape[1] if several else int(y.max()) + 1
    loss_of = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    scores, weights = [], []
    for rate in rates:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.zeros(classes, x.shape[-1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        mix = torch.zeros(x.shape[1], requires_grad=True)
        groups = [{"params": [weight], "weight_decay": WEIGHT_DECAY}, {"params": [bias, mix], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        steps = epochs * -(-len(x) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

        def logits_of(rows, weight=weight, bias=bias, mix=mix):
            return F.linear(torch.einsum("l,bld->bd", mix.softmax(dim=0), rows), weight, bias)

        with torch.enable_grad():
            for _ in range(epochs):
                for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                    optimizer.zero_grad()
                    loss_of(logits_of(x[rows]), y[rows]).backward()
                    optimizer.step()
                    schedule.step()
        with torch.no_grad():
            scores.append(logits_of(x_test).numpy())
            weights.append(mix.softmax(dim=0).numpy())
    return np.stack(scores), np.stack(weights)
