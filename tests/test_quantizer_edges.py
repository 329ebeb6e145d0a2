"""Quantizers where numbers run out: half precision, far from the origin, unused codes, vectors without length."""

import copy

import numpy as np
import pytest
import torch
from drawn import DIM, vectors
from test_quantizer_contract import KINDS, built
from torch import nn
from torch.nn import functional as F

from bridle_hf import (
    FSQQuantizer,
    GradientQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    SmoothedQuantizer,
    VectorQuantizer,
)
from bridle_hf.codebook_bridle import centred, nearest_codes
from bridle_hf.learned_quantization_bridle import nearest_directions

EVERY = pytest.mark.parametrize("kind", KINDS, ids=lambda options: "-".join(options.values()))


# --- precision ------------------------------------------------------------------------------------
@EVERY
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_any_precision_goes_through(kind, precision):
    network = nn.Sequential(nn.Linear(DIM, DIM), built(kind).train(), nn.Linear(DIM, DIM)).to(precision)
    z = network[0](vectors(30).to(precision))
    torch.manual_seed(0)
    out = network[1](z)
    torch.manual_seed(0)
    inside = network[1](z.float())
    assert out.quantized.dtype == precision and out.loss.dtype == torch.float32
    assert torch.equal(out.quantized, inside.quantized.to(precision)) and torch.equal(out.codes, inside.codes)
    (network[2](out.quantized).sum() + out.loss).backward()
    assert network[0].weight.grad.dtype == precision and network[0].weight.grad.isfinite().all()


# --- the order of calls ---------------------------------------------------------------------------
@EVERY
def test_update_before_and_after_backward_are_alike(kind):
    found = []
    for early in (True, False):
        quantizer, z = built(kind).train(), vectors(40).requires_grad_()
        torch.manual_seed(0)
        out = quantizer(z)
        value = (out.quantized * vectors(40, seed=1)).sum() + out.loss
        if early:
            quantizer.update_(out.stats)
        value.backward()
        if not early:
            quantizer.update_(out.stats)
        found.append([z.grad, *(p.grad for p in quantizer.parameters() if p.grad is not None), *quantizer.buffers()])
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


def test_update_before_backward_with_a_schedule_and_soft_codes():
    for quantizer in (
        SmoothedQuantizer(DIM, 2, 16, gumbel="hard", gumbel_schedule=(2.0, 0.5, 0.9)),
        ResidualQuantizer(DIM, 2, 16, soft_codes=3),
        ResidualQuantizer(DIM, 2, 16, ema_mode="official", normalize="per_stage"),
    ):
        z = vectors(64).requires_grad_()
        out = quantizer.train()(z)
        quantizer.update_(out.stats)
        (out.quantized.sum() + out.loss).backward()
        assert z.grad.isfinite().all() and z.grad.any()


# --- the search -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (10, 1), (100, 1), (1000, 1), (1e4, 1), (10, 0.01), (-300, 1)])
def test_the_search_is_exact_far_from_the_origin(offset, spread):
    rows, codes = vectors(2000) * spread + offset, vectors(64, seed=1) * spread + offset
    distances = torch.cdist(rows.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    found = distances.gather(1, nearest_codes(rows, codes)[:, None])[:, 0]
    least, farthest = distances.min(1).values, distances.max(1).values
    assert ((found - least) <= 1e-4 * farthest).all()
    assert (found > least).float().mean() < 2e-3
    quantizer = VectorQuantizer(DIM, 16, normalize="none")
    quantizer.initialize_(rows, generator=torch.Generator().manual_seed(0))
    inner = (rows - quantizer.decode(quantizer.encode(rows))).square().mean()
    assert inner < 0.9 * spread**2  # k-means, too: one code for all would leave the variance, 1


def test_codes_near_the_origin_are_compared_as_they_are():
    rows, codes = vectors(100), vectors(16, seed=1) + 3  # the mean is 8 long, the deviation 3
    assert all(map(torch.equal, centred(rows, codes), (rows, codes)))
    shifted, _ = centred(rows, codes + 1000)
    assert not torch.equal(shifted, rows)


def test_soft_codes_far_from_the_origin_are_those_at_it():
    z = (vectors(200) * 64).round() / 64  # exact in float32 even with 1024 added
    codes = (vectors(16, seed=1) * 64).round() / 64
    books = []
    for offset in (0, 1024):
        book = ResidualQuantizer(DIM, 1, 16, normalize="none", soft_codes=3).codebooks[0]
        book.set_(codes + offset, torch.ones(16))
        books.append(book.soft_nearest(z + offset, 3))
    assert torch.equal(books[0][0], books[1][0])
    torch.testing.assert_close(books[0][1], books[1][1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("length", [1e-30, 1e-12, 1e-6, 1e-3, 1.0, 1e6])
def test_the_length_of_a_vector_does_not_change_its_direction(length):
    rows, codes = vectors(500), vectors(64, seed=1)
    expected = (F.normalize(rows.double(), dim=-1) @ F.normalize(codes.double(), dim=-1).T).argmax(1)
    assert torch.equal(nearest_directions(rows * length, codes), expected)


# --- codes without vectors ------------------------------------------------------------------------
def test_codes_without_vectors_stay_where_they_are():
    quantizer = VectorQuantizer(DIM, 16, normalize="none")
    quantizer.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    start, book = quantizer.codebooks[0].embed.clone(), quantizer.codebooks[0]
    here = start[3] + 0.01 * vectors(64)
    for _ in range(4000):
        quantizer.update_(quantizer(here).stats)
    used = quantizer.encode(here).unique()
    unused = np.setdiff1d(np.arange(16), used.numpy())
    assert len(unused) >= 14 and book.cluster_size[unused].max() < 1e-10
    np.testing.assert_allclose(book.embed[unused], start[unused], rtol=0.02, atol=1e-3)
    there = book.embed[unused[0]] + 0.5  # one that is found again goes to what it is found by
    quantizer.update_({"counts": F.one_hot(torch.tensor([unused[0]]), 16) * 8.0, "sums": torch.zeros(1, 16, DIM)
                       .index_put((torch.tensor([0]), torch.tensor([unused[0]])), 8 * there)})  # fmt: skip
    torch.testing.assert_close(book.embed[unused[0]], there, atol=1e-2, rtol=1e-2)


def test_a_code_that_is_counted_at_all_moves_as_the_equations_say():
    book = VectorQuantizer(DIM, 4).codebooks[0]
    size = torch.tensor([0.9e-3, 1.2e-3, 5.0, 0.9e-3])
    book.set_(vectors(4), size)
    counts, sums = torch.tensor([0.0, 0.0, 2.0, 1.0]), vectors(4, seed=2)
    embed = book.averaged(counts, sums)[0]
    new = 0.99 * size.double() + 0.01 * counts
    smoothed = (new + 1e-5) * new.sum() / (new.sum() + 4e-5)
    expected = (0.99 * book.embed_sum.double() + 0.01 * sums) / smoothed[:, None]
    assert torch.equal(embed[0], book.embed[0])
    torch.testing.assert_close(embed[1:], expected[1:].float())


# --- the first codebooks --------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [ResidualQuantizer, GradientQuantizer])
def test_the_first_codes_decode_to_their_sum(cls):
    quantizer, z = cls(DIM, 4, 16).eval(), vectors(50)
    if not quantizer.initialized:
        quantizer.initialize_(vectors(200), generator=torch.Generator().manual_seed(0))
    codes = quantizer.encode(z)
    for m in (1, 2, 3, 4):
        expected = sum(book.embed[codes[:, stage]] for stage, book in enumerate(quantizer.codebooks[:m]))
        torch.testing.assert_close(quantizer.decode(codes[:, :m]), expected)
    for m in (0, 5):
        with pytest.raises(ValueError, match="it takes integers with last dimension 1 to 4"):
            quantizer.decode(torch.zeros(50, m, dtype=torch.int64))


# --- vectors without length -----------------------------------------------------------------------
EDGES = {
    "one vector": vectors(1),
    "one zero vector": torch.zeros(1, DIM),
    "zero vectors among others": torch.cat([vectors(6), torch.zeros(3, DIM)]),
    "nearly equal vectors": vectors(1, seed=5) + 1e-6 * vectors(20),
    "short vectors": 1e-3 * vectors(20),
}


@EVERY
@pytest.mark.parametrize("edge", EDGES)
def test_gradients_stay_bounded(kind, edge):
    quantizer, z = built(kind).train(), EDGES[edge].clone().requires_grad_()
    out = quantizer(z)
    (out.quantized * vectors(len(z), seed=1)).sum().add(out.loss).backward()
    shortest = z.detach().norm(dim=-1).clamp(min=1e-3).min()
    for gradient in (z.grad, *(p.grad for p in quantizer.parameters() if p.grad is not None)):
        assert gradient.isfinite().all() and gradient.abs().max() < 1000 / shortest


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("normalize", ["once", "none"])
def test_residual_gradients_are_those_of_float64(edge, normalize):
    quantizer = ResidualQuantizer(DIM, 2, 16, normalize=normalize).train()
    quantizer.initialize_(vectors(200), generator=torch.Generator().manual_seed(0))
    z, weight = EDGES[edge].clone().requires_grad_(), vectors(len(EDGES[edge]), seed=1)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.quantized * weight).sum() + out.loss, z)
    exact = EDGES[edge].double().requires_grad_()
    length = exact.norm(dim=-1, keepdim=True)
    rows = exact / length.clamp(min=1e-12) if normalize == "once" else exact
    residual, loss = rows, 0
    for book, index in zip(quantizer.codebooks, out.codes.T, strict=True):
        residual = residual - book.embed[index].double()
        loss = loss + 0.25 * residual.square().mean() / 2
    (expected,) = torch.autograd.grad((rows * weight).sum() + loss, exact)
    if normalize == "once":  # a zero vector has no direction to turn
        expected = torch.where(length > 0, expected.nan_to_num(), 0.0)
    torch.testing.assert_close(gradient, expected.float(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("estimator", ["ste", "rotation"])
def test_learned_gradients_are_those_of_float64(edge, estimator):
    torch.manual_seed(0)
    quantizer = GradientQuantizer(DIM, 1, 16, estimator=estimator).train()
    z, weight = EDGES[edge].clone().requires_grad_(), vectors(len(EDGES[edge]), seed=1)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.quantized * weight).sum() + out.loss, z)
    e, q = EDGES[edge].double(), quantizer.codebooks[0].embed[out.codes[:, 0]].detach().double()
    expected = 2 * (e - q) / e.numel()  # of the commitment loss
    for row in range(len(e)):
        g = weight[row].double()
        if estimator == "rotation" and e[row].any():
            a, b = e[row] / e[row].norm(), q[row] / q[row].norm()
            r = (a + b) / (a + b).norm()
            rotation = torch.eye(DIM, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
            g = q[row].norm() / e[row].norm() * rotation.T @ g
        expected[row] += g
    torch.testing.assert_close(gradient, expected.float(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("edge", EDGES)
def test_smoothed_gradients_are_those_of_float64(edge):
    torch.manual_seed(0)
    quantizer = SmoothedQuantizer(DIM, 1, 16, regularizer="none", commitment_weight=0.5).train()
    book = copy.deepcopy(quantizer.codebooks[0])
    z, weight = EDGES[edge].clone().requires_grad_(), vectors(len(EDGES[edge]), seed=1)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.quantized * weight).sum() + out.loss, z)
    exact, embed = EDGES[edge].double().requires_grad_(), book.embed.detach().double()
    length = exact.norm(dim=-1, keepdim=True)
    direction = torch.where(length > 0, exact / length.clamp(min=1e-300), 0.0)
    vector = (direction @ F.normalize(embed, dim=-1).T / 0.1).softmax(-1) @ embed
    loss = 0.5 * (exact - vector).square().mean()
    (expected,) = torch.autograd.grad((vector * weight).sum() + loss, exact)
    zero = ~EDGES[edge].any(-1, keepdim=True)
    plain = (exact - vector).detach() / exact.numel()  # of the commitment loss; a zero vector has no direction
    torch.testing.assert_close(gradient, torch.where(zero, plain, expected).float(), atol=1e-5, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_may_be_kept_as_small_integers(kind, dtype):
    quantizer = built(kind).eval()
    codes = quantizer.assign(vectors(9)) % 8
    assert torch.equal(quantizer.decode(codes.to(dtype)), quantizer.decode(codes))
    with pytest.raises(ValueError, match=f"`z` is .*; it takes floating point with last dimension {DIM}"):
        quantizer(torch.zeros(3, DIM + 1))


def test_the_first_codes_of_quantizers_side_by_side_are_no_coarser_vector():
    quantizer = ProductQuantizer([VectorQuantizer(4, 8), VectorQuantizer(4, 8)])
    with pytest.raises(ValueError, match="last dimension 2, the codes of all codebooks: .* residual"):
        quantizer.decode(torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="last dimension 2.$"):
        quantizer.decode(torch.zeros(3, 3, dtype=torch.long))


def test_what_is_no_tensor_or_size_is_named():
    quantizer, z = ResidualQuantizer(8, 3, 16), np.zeros((4, 8), np.float32)
    for call in (quantizer, quantizer.encode, quantizer.initialize_):
        with pytest.raises(TypeError, match="`z` is a ndarray; it takes a tensor"):
            call(z)
    for codes in (np.zeros((4, 3), int), [[0, 1, 2]]):
        with pytest.raises(TypeError, match="`codes` is a .*; it takes a tensor"):
            quantizer.decode(codes)
    for build, message in (
        (lambda: ResidualQuantizer(0, 3, 16), "`dim` is 0; it takes a whole number from 1 to"),
        (lambda: ResidualQuantizer(8.0, 3, 16), "`dim` is 8.0; it takes a whole number from 1 to"),
        (lambda: ResidualQuantizer("8", 3, 16), "`dim` is '8'; it takes a whole number from 1 to"),
        (lambda: ResidualQuantizer(8, 3, 16.0), "`codebook_size` is 16.0; it takes whole numbers"),
        (lambda: ResidualQuantizer(8, 3, True), "`codebook_size` is True; it takes a whole number from 1 to"),
        (lambda: ResidualQuantizer(8, 3, None), "`codebook_size` is None; it takes whole numbers"),
        (lambda: ResidualQuantizer(8, 2, [16.0, 8]), "`codebook_size` is 16.0; it takes a whole number from 1 to"),
        (lambda: ResidualQuantizer(8, 3.0, 16), "`num_codebooks` is 3.0; it takes a whole number from 1 on"),
        (lambda: FSQQuantizer(8, "8"), "`levels` is '8'; it takes whole numbers from 3"),
        (lambda: FSQQuantizer(8, (4.0, 3)), r"`levels` is \(4.0, 3\); it takes whole numbers from 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    assert FSQQuantizer(8, tuple(np.array([8, 5]))).codebook_sizes == (40,)
    assert ResidualQuantizer(8, 2, np.array([4, 8])).codebook_sizes == (4, 8)
