"""The package against the paper's equations in float64: 1e-6 of the largest value, whatever precision ours works in."""

import float64
import numpy as np
import pytest
import torch

from bridle_hf.codebook_bridle import Codebook, code_statistics
from bridle_hf.codebook_metrics import usage
from bridle_hf.losses_bridle import cosine_loss, masked_cross_entropy
from bridle_hf.masking_bridle import mask_from_noise, num_kept, structured_noise
from bridle_hf.quantization_bridle import ResidualQuantizer, VectorQuantizer

RNG = np.random.default_rng


def agree(ours, exact, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(ours), exact, rtol=0, atol=tolerance * np.abs(exact).max())


def quantizer_with(books, **options):
    """A quantizer with these codes (M, K, d)."""
    stages, size, dim = books.shape
    cls, sizes = (VectorQuantizer, (size,)) if stages == 1 else (ResidualQuantizer, (stages, size))
    quantizer = cls(dim, *sizes, **options)
    for book, codes in zip(quantizer.codebooks, books, strict=True):
        book.set_(torch.from_numpy(codes), torch.ones(size))
    return quantizer


@pytest.mark.parametrize("stages", [1, 4])
@pytest.mark.parametrize("normalize", ["none", "once", "per_stage"])
def test_search_reconstruction_and_loss(normalize, stages):
    rng = RNG(0)
    z, books = rng.normal(size=(60, 12)).astype(np.float32), rng.normal(size=(stages, 16, 12)).astype(np.float32)
    books /= 2.0 ** np.arange(stages)[:, None, None]
    if stages == 1:
        normalize = "none" if normalize == "none" else "once"  # one stage has nothing to normalise again
    codes, quantized, residuals = float64.residual_quantization(z, books, normalize)
    output = quantizer_with(books, normalize=normalize)(torch.from_numpy(z))
    np.testing.assert_array_equal(output.codes, codes)
    agree(output.quantized, quantized)
    agree(output.loss, float64.codebook_losses(residuals).mean())
    agree([output.losses[f"codebook_{m + 1}"] for m in range(stages)], float64.codebook_losses(residuals))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moving_averages_over_steps(dtype):
    rng = RNG(1)
    codes, counts = rng.normal(size=(6, 5)), np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    codes[5] = 100.0  # too far away for any input
    book = Codebook(6, 5, decay=0.9, epsilon=1e-3).to(dtype)
    book.set_(torch.from_numpy(codes), torch.from_numpy(counts))
    size, sums = counts, counts[:, None] * codes
    for _ in range(20):
        inputs = rng.normal(size=(40, 5))
        index = np.argmin(np.sum((inputs[:, None] - codes) ** 2, axis=2), axis=1)
        codes, size, sums = float64.ema_step(size, sums, inputs, index, 0.9, 1e-3)
        book.update_(*code_statistics(torch.from_numpy(inputs).to(dtype), torch.from_numpy(index), 6))
    assert 5 not in index
    for ours, exact in ((book.embed, codes), (book.cluster_size, size), (book.embed_sum, sums)):
        agree(ours, exact, 1e-6 if dtype == torch.float32 else 1e-12)


def test_moving_averages_have_the_corrected_limit():
    # a count of exactly 0 would leave the second code where it is
    counts, sums, epsilon = np.array([5.0, 1e-13, 2.0]), RNG(2).normal(size=(3, 4)) * [[1.0], [0.0], [1.0]], 0.5
    book = Codebook(3, 4, decay=0.5, epsilon=epsilon).double()
    book.set_(torch.ones(3, 4).double(), torch.ones(3).double())
    for _ in range(60):
        book.update_(torch.from_numpy(counts), torch.from_numpy(sums))
    agree(book.embed, float64.ema_limit(counts, sums, epsilon), 1e-12)
    agree(book.cluster_size, counts, 1e-12)


@pytest.mark.parametrize("size", [3, 256])
def test_usage(size):
    rng = RNG(3)
    counts = rng.integers(1, 50, size=(2, size)) * (rng.random((2, size)) < 0.7)
    counts[0] = 7  # uniform
    measured = usage(counts)
    for stage in range(2):
        cur, entropy, ecu = float64.code_usage(counts[stage].tolist())
        agree([measured["cur"][stage], measured["ecu"][stage]], [cur, ecu], 1e-12)
        agree(
            [measured["entropy"][stage] * np.log(2), measured["perplexity"][stage]], [entropy, np.exp(entropy)], 1e-12
        )


def test_masked_cross_entropy():
    rng = RNG(4)
    logits, codes = rng.normal(size=(2, 9, 3, 8)) * 5, rng.integers(8, size=(2, 9, 3))
    mask = np.argsort(rng.random((2, 9)), axis=1) < 6
    chosen = torch.from_numpy(mask)
    ours = masked_cross_entropy(*(torch.from_numpy(x)[chosen].unflatten(0, (2, 6)) for x in (logits, codes)))
    agree(ours.mean, float64.masked_cross_entropy(logits, codes, mask))
    assert ours.count == 2 * 6 * 3


def test_cosine_loss_per_patch_is_eq_6_where_all_norms_are_equal():
    a, b = RNG(5).normal(size=(2, 30, 16))
    ours = cosine_loss(*(torch.from_numpy(x)[None] for x in (a, b))).mean
    agree(ours, float64.cosine_loss_per_patch(a, b))
    assert abs(ours - float64.cosine_loss_of_sums(a, b)) > 1e-4
    a, b = float64.unit(a), float64.unit(b)
    agree(cosine_loss(*(torch.from_numpy(x)[None] for x in (a, b))).mean, float64.cosine_loss_of_sums(a, b))


@pytest.mark.parametrize(
    ("kind", "grid"),
    [("random", (16, 8)), ("random", (4, 6, 6)), ("tube", (4, 6, 6)), ("2d", (16, 8)), ("2d", (4, 6, 6))],
)
@pytest.mark.parametrize("ratio", [0.3, 0.8, 0.99])
def test_masks(kind, grid, ratio):
    noise = RNG(6).random((3, int(np.prod(grid)))).astype(np.float32)
    plan = mask_from_noise(structured_noise(torch.from_numpy(noise), grid, ratio, kind), num_kept(grid, ratio, kind))
    for row in range(3):
        kept = float64.kept_patches(noise[row].astype(np.float64), grid, ratio, kind)
        assert set(plan.kept[row].tolist()) == kept
        assert plan.masked[row].tolist() == sorted(set(range(noise.shape[1])) - kept)
        assert plan.mask[row].nonzero()[:, 0].tolist() == plan.masked[row].tolist()
