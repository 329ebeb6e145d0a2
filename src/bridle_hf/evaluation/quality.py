"""Token quality on held-out clips, measured without training an encoder on the codes."""

import numpy as np
import torch
from torch.nn import functional as F

from ..codebook_metrics import bag_of_codes_accuracy, churn, code_counts, mutual_information, residual_energy, usage
from ..modeling_bridle import run
from .cross_validation import outer_folds
from .features import batches, patch_validity


@torch.no_grad()
def tokenize(tokenizer, examples, batch_size=32):
    """Codes of all clips.

    Args:
        tokenizer: `BridleTokenizer`; it is put in evaluation mode and not changed otherwise.
        examples: `Examples`, n of them.

    Returns:
        codes int64 array (n, N, M) and validity bool array (n, N), false where a patch is padding.
    """
    tokenizer.eval()
    codes, valid = [], []
    for values, mask in batches(examples, batch_size, tokenizer.device, "codes"):
        codes.append(tokenizer.encode(values, attention_mask=mask).cpu().numpy())
        valid.append(patch_validity(tokenizer, values, mask).cpu().numpy())
    return np.concatenate(codes), np.concatenate(valid)


@torch.no_grad()
def initialize_codebooks_(tokenizer, examples, batch_size=32, seed=0):
    """Sets a tokenizer's codebooks from clips, as the first step of pretraining does (k-means by default)."""
    tokenizer.eval()
    rows = [vectors for vectors, _ in projected(tokenizer, examples, batch_size)]
    z, generator = torch.cat(rows), torch.Generator().manual_seed(seed)
    wanted = tokenizer.quantizer.init_sample_size
    if wanted < len(z):
        z = z[torch.randperm(len(z), generator=generator)[:wanted].to(z.device)]
    tokenizer.quantizer.initialize_(z, generator=torch.Generator(z.device).manual_seed(seed))


def projected(tokenizer, examples, batch_size):
    """What the quantizer receives for the valid patches of each batch (n, d), and their validity (B, N)."""
    for values, mask in batches(examples, batch_size, tokenizer.device, "projections"):
        valid = patch_validity(tokenizer, values, mask)
        yield tokenizer.project(values, attention_mask=mask)[valid], valid


def code_norms(quantizer):
    """Norm of every code, used or unused: one array (K,) per codebook of a residual quantizer."""
    return [book.embed.detach().double().norm(dim=-1).cpu().numpy() for book in quantizer.codebooks]


@torch.no_grad()
def stage_statistics(tokenizer, examples, codes, valid, batch_size=32):
    """Norms of the chosen codes and of the residuals of each stage, in the space where the quantizer subtracts.

    Args:
        codes, valid: of `tokenize`.

    Returns:
        dict of arrays (M,): `residual_energy`, the share of the energy left after the stage; `residual_norm` and
        `code_norm`, mean length of the residual after the stage and of the codes it chose.
        Empty where the quantizer does not subtract.
    """
    quantizer = tokenizer.quantizer
    if not quantizer.codebooks:
        return {}
    tokenizer.eval()
    books = [book.embed.double().cpu().numpy() for book in quantizer.codebooks]  # M of (K_m, d)
    left, residual_norms, code_norms, total, start = 0.0, 0.0, 0.0, 0.0, 0
    for vectors, keep in projected(tokenizer, examples, batch_size):
        z = quantizer.flatten(vectors).double().cpu().numpy()  # (n, d)
        rows = codes[start : start + len(keep)][keep.cpu().numpy()]  # (n, M)
        stages = np.stack([book[index] for book, index in zip(books, rows.T, strict=True)], axis=1)  # (n, M, d)
        energy = np.square(z).sum()
        left = left + energy * residual_energy(z, stages)
        residual_norms = residual_norms + np.linalg.norm(z[:, None] - stages.cumsum(axis=1), axis=-1).sum(axis=0)
        code_norms = code_norms + np.linalg.norm(stages, axis=-1).sum(axis=0)
        total, start = total + energy, start + len(keep)
    patches = valid.sum()
    return {
        "residual_energy": left / total,
        "residual_norm": residual_norms / patches,
        "code_norm": code_norms / patches,
    }


def tokenizer_quality(tokenizer, examples, previous_codes=None, batch_size=32, tokens=None):
    """All measures of a tokenizer with a frozen codebook.

    Args:
        tokenizer: `BridleTokenizer`.
        examples: `Examples` of held-out clips, for the bag of codes with `labels`; without `folds` five are drawn.
        previous_codes: codes (n, N, M) of an earlier checkpoint for the same clips, for the churn.
        tokens: what `tokenize` gives for these clips, where it is known already.

    Returns:
        dict of JSON types. One value a codebook: `cur`, `entropy` (bits), `perplexity`, `ecu`, `ecu_table6`, `dead`;
        `residual_energy`, `residual_norm`, `code_norm` (see `stage_statistics`; None without residuals);
        `position_information` and `first_code_information` (bits shared with the patch's position and with the first
        code, bias-corrected); `churn` (None without `previous_codes`).
        And `bag_of_codes` (mean accuracy) with `bag_of_codes_per_fold` (None without labels, or with several of a
        clip), `patches` (number of patches measured).

    Raises:
        LabelError: the labels are too few to draw folds of.
    """
    codes, valid = tokens or tokenize(tokenizer, examples, batch_size)
    size = tokenizer.config.quantizer_config.codebook_sizes
    rows = codes[valid]  # (n, M)
    position = np.broadcast_to(np.arange(codes.shape[1]), valid.shape)[valid]
    quality = {"patches": len(rows)} | {name: _finite(v) for name, v in usage(code_counts(rows, size), size).items()}
    stages = stage_statistics(tokenizer, examples, codes, valid, batch_size)
    for name in ("residual_energy", "residual_norm", "code_norm"):
        quality[name] = stages[name].tolist() if stages else None
    quality["position_information"] = [mutual_information(stage, position) for stage in rows.T]
    quality["first_code_information"] = [mutual_information(stage, rows[:, 0]) for stage in rows.T]
    quality["churn"] = None if previous_codes is None else churn(previous_codes[valid], rows).tolist()
    quality["bag_of_codes"] = quality["bag_of_codes_per_fold"] = None
    if examples.labels is not None and examples.labels.ndim == 1:
        folds = outer_folds(examples.labels, examples.folds)
        per_fold = bag_of_codes_accuracy(codes, valid, size, examples.labels, folds)
        quality["bag_of_codes"], quality["bag_of_codes_per_fold"] = float(np.mean(list(per_fold.values()))), per_fold
    return quality


@torch.no_grad()
def predictor_quality(model, examples, batch_size=32, seed=0):
    """Accuracy and cross-entropy of a pretrained model on the codes of masked patches.

    Args:
        model: `BridleForPreTraining`.
        examples: `Examples` of held-out clips.
        seed (`int`): of the masks, one a clip.

    Returns:
        dict with one value a codebook: `cross_entropy` (bits), `accuracy`, and `explained`, the share of the codes'
        entropy that the predictor saves: 1 - cross-entropy / entropy of the same masked codes.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    size = model.config.quantizer_config.codebook_sizes
    nats, correct, counts = 0.0, 0.0, 0
    for values, mask in batches(examples, batch_size, model.device, "predictions"):
        noise = torch.rand(patch_validity(model.bridle, values, mask).shape, generator=generator)
        output = run(model, values, mask, noise=noise.to(values.device), phase="encoder")
        keep = output.labels[..., 0] != -100  # (B, S)
        logits, labels = output.logits[keep].float(), output.labels[keep]  # (n, M, K), (n, M)
        nats = nats + F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(0).cpu().numpy()
        correct = correct + (logits.argmax(-1) == labels).sum(0).cpu().numpy()
        counts = counts + code_counts(labels, size)
    number = counts[0].sum()
    bits = nats / number / np.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = 1 - bits / usage(counts)["entropy"]
    return {
        "cross_entropy": bits.tolist(),
        "accuracy": (correct / number).tolist(),
        "explained": _finite(explained),
    }


def _finite(values):
    """A list for JSON, which has no infinity and no NaN: None stands for both."""
    return [value if np.isfinite(value) else None for value in values.tolist()]
