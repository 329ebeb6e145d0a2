"""Probes by gradient descent: for large sets, several labels per clip, weights of layers, attention to patches."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .clip_patches import ClipPatches

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
EPOCHS, BATCH_SIZE, WEIGHT_DECAY = 100, 256, 1e-2
HEADS = 8  # of an attentive probe, or as many of them as divide the width


class LinearHead(nn.Module):
    """A linear classifier of a mean of layers, whose softmax weights are learned: (B, L, d) -> (B, classes)."""

    def __init__(self, layers, width, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.mix = nn.Parameter(torch.zeros(layers))

    def forward(self, rows):
        return F.linear(torch.einsum("l,bld->bd", self.mix.softmax(dim=0), rows), self.weight, self.bias)


class AttentiveHead(nn.Module):
    """One learned query that attends to the patches of a clip, in several heads, and a linear classifier of what it
    sees: (B, L, N, D) and valid (B, N) -> (B, classes). Patches that are not valid do not count.

    It is multi-head cross-attention of one query without output projection. Since there is one query, keys and values
    are never made of all patches: the query goes through the key matrix, and the values are made of the weighted means
    of the patches, which is the same (the weights sum to 1) and costs a fraction. The attention is even at the start.
    """

    def __init__(self, layers, width, classes, generator, heads=None):
        super().__init__()
        heads = heads or math.gcd(HEADS, width)
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.mix = nn.Parameter(torch.zeros(layers))
        self.query = nn.Parameter(torch.empty(heads, width // heads).normal_(0, 0.02, generator=generator))
        self.key, self.value = (
            nn.Parameter(torch.empty(width, width).normal_(0, width**-0.5, generator=generator)) for _ in range(2)
        )

    def forward(self, rows):
        patches, valid = rows
        patches = torch.einsum("l,blnd->bnd", self.mix.softmax(dim=0), patches)
        heads, width = self.query.shape
        key, value = (each.unflatten(0, (heads, width)) for each in (self.key, self.value))
        query = torch.einsum("he,hed->hd", self.query, key) / width**0.5
        scores = (patches @ query.T).masked_fill(~valid[..., None], -math.inf)  # (B, N, heads)
        seen = torch.einsum("bnh,bnd->bhd", scores.softmax(dim=1), patches)
        return F.linear(torch.einsum("bhd,hed->bhe", seen, value).flatten(1), self.weight, self.bias)


class Vectors:
    """Clips (n, L, d) that are standardised all at once, for `LinearHead`; rows are tested all at once, too."""

    device, tested_at_once = "cpu", None

    def __init__(self, x, like=None):
        x = np.ascontiguousarray(x if x.ndim == 3 else x[:, None], dtype=np.float32)
        self.mean, self.scale = (like.mean, like.scale) if like else (x.mean(axis=0), x.std(axis=0))
        if like is None:
            self.scale[self.scale < 1e-6 * np.abs(self.mean).clip(1)] = 1.0  # constant
        self.rows = torch.from_numpy((x - self.mean) / self.scale)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return self.rows[rows]

    def head(self, classes, generator):
        return LinearHead(*self.rows.shape[1:], classes)


class Patches:
    """`ClipPatches` that are standardised batch by batch, for `AttentiveHead`; on a GPU where there is one."""

    def __init__(self, x, like=None):
        self.x, self.tested_at_once = x, BATCH_SIZE
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.mean, self.scale = (like.mean, like.scale) if like else x.moments()
        if like is None:
            self.scale[self.scale < 1e-6 * self.mean.abs().clip(1)] = 1.0  # constant

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        values, valid = (each.to(self.device) for each in self.x[rows.numpy()].batch())
        return (values.float() - self.mean.to(self.device)) / self.scale.to(self.device), valid

    def head(self, classes, generator):
        return AttentiveHead(self.x.num_layers, self.x.width, classes, generator).to(self.device)


def gradient_scores(train, labels, test, rates, *, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0):
    """Scores of the test rows by classifiers that AdamW fits on standardised features, one for each rate.

    Cross-entropy, or binary cross-entropy over all classes where a row has several; cosine schedule down to zero. Of
    several layers, softmax weights of their mean are learned with the classifier.

    Args:
        train: (n, d), or (n, L, d) of L layers, for `LinearHead`; `ClipPatches` for `AttentiveHead`.
        labels: (n,) classes from 0, or multi-hot (n, classes).
        test: as train.
        rates: learning rates.
        epochs, batch_size, seed: of the training.

    Returns:
        (len(rates), test rows, classes) float32 logits; and the weights of the layers, (len(rates), L).
    """
    kind = Patches if isinstance(train, ClipPatches) else Vectors
    x = kind(train)
    x_test = kind(test, like=x)
    several = np.ndim(labels) > 1
    y = torch.as_tensor(np.asarray(labels), dtype=torch.float32 if several else torch.int64).to(x.device)
    classes = y.shape[1] if several else int(y.max()) + 1
    loss_of = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    scores, weights = [], []
    for rate in rates:
        generator = torch.Generator().manual_seed(seed)
        head = x.head(classes, generator)
        plain = [head.bias, head.mix]
        decayed = [each for each in head.parameters() if all(each is not other for other in plain)]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        steps = epochs * -(-len(x) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for _ in range(epochs):
                for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                    optimizer.zero_grad()
                    loss_of(head(x[rows]), y[rows.to(x.device)]).backward()
                    optimizer.step()
                    schedule.step()
        with torch.no_grad():
            parts = torch.arange(len(x_test)).split(x.tested_at_once or len(x_test))
            scores.append(torch.cat([head(x_test[rows]) for rows in parts]).cpu().numpy())
            weights.append(head.mix.softmax(dim=0).cpu().numpy())
    return np.stack(scores), np.stack(weights)
