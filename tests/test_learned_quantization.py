"""Quantizers that an optimizer trains: float64 numpy, hand-computed cases, finite differences, gradient estimators."""

import numpy as np
import pytest
import torch
from drawn import CODES, DIM, seeded, vectors
from torch.nn import functional as F

from bridle_hf import (
    FSQQuantizer,
    GradientQuantizer,
    SimVQQuantizer,
    SmoothedQuantizer,
    knn_regularizer,
    perplexity_regularizer,
)
from bridle_hf.learned_quantization_bridle import rotate


# --- hard codes -----------------------------------------------------------------------------------
def nearest_in_float64(z, codes, distance):
    z, codes = np.asarray(z, np.float64), np.asarray(codes, np.float64)
    if distance == "cosine":
        z, codes = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, codes))
    return np.square(z[:, None] - codes).sum(-1).argmin(-1)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("cls", [GradientQuantizer, SimVQQuantizer])
def test_residual_stages_equal_float64(cls, distance):
    quantizer = seeded(cls, DIM, 3, CODES, distance=distance, commitment_weight=0.3)
    with torch.no_grad():  # a trained map is not the identity
        for parameter in quantizer.parameters():
            parameter.add_(vectors(len(parameter), seed=8) / 3)
    z = vectors(40)
    out = quantizer(z)
    residual, total, losses = z.double().numpy(), 0, []
    for stage, book in enumerate(quantizer.codebooks):
        codes = book.embed.detach().double().numpy()
        index = nearest_in_float64(residual, codes, distance)
        np.testing.assert_array_equal(out.codes[:, stage].numpy(), index)
        losses.append(1.3 * np.square(residual - codes[index]).mean())
        residual, total = residual - codes[index], total + codes[index]
    np.testing.assert_allclose(out.quantized.detach().numpy(), total, atol=1e-5)
    named = [out.losses[f"codebook_{stage}"].item() for stage in (1, 2, 3)]
    assert named == pytest.approx(losses, rel=1e-4)
    assert out.loss.item() == out.losses["codebook"].item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_loss_moves_code_and_vector_towards_each_other():
    quantizer = seeded(GradientQuantizer, 2, 1, 2, commitment_weight=0.5)
    book = quantizer.codebooks[0]
    with torch.no_grad():
        book.embed.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    z = torch.tensor([[3.0, 1.0]], requires_grad=True)
    out = quantizer(z)
    out.loss.backward()
    # (4 + 1) / 2 dimensions; gradients 2 (c - z) / 2 and beta 2 (z - c) / 2
    assert out.loss.item() == pytest.approx(1.5 * 2.5)
    torch.testing.assert_close(book.embed.grad, torch.tensor([[-2.0, -1.0], [0.0, 0.0]]))
    torch.testing.assert_close(z.grad, torch.tensor([[1.0, 0.5]]))


def test_straight_through_is_the_identity_for_the_gradient():
    for stages in (1, 3):
        quantizer, weight = seeded(GradientQuantizer, DIM, stages, CODES), vectors(20, seed=1)
        z = vectors(20).requires_grad_()
        quantized = quantizer(z).quantized
        (gradient,) = torch.autograd.grad((quantized * weight).sum(), z)
        assert torch.equal(gradient, weight)
        assert torch.equal(quantized, quantizer.decode(quantizer.encode(z)))


def test_rotation_equals_float64():
    source, target = vectors(30).requires_grad_(), vectors(30, seed=1)
    jacobian = torch.stack(
        [torch.autograd.grad(rotate(source, target)[:, i].sum(), source)[0] for i in range(DIM)], dim=1
    ).numpy()  # (30, d, d)
    for row in range(30):
        e, q = source[row].detach().double().numpy(), target[row].double().numpy()
        # The rotation in the plane of e and q: what is orthogonal to both stays, e^ becomes q^, by the angle between.
        a = e / np.linalg.norm(e)
        b = q - (q @ a) * a
        b /= np.linalg.norm(b)
        angle = np.arccos(q @ a / np.linalg.norm(q))
        plane = np.outer(a, a) + np.outer(b, b)
        turn = np.cos(angle) * plane + np.sin(angle) * (np.outer(b, a) - np.outer(a, b))
        expected = np.linalg.norm(q) / np.linalg.norm(e) * (np.eye(DIM) - plane + turn)
        np.testing.assert_allclose(jacobian[row], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "target"), [([0.0, 0.0], [1.0, 0.0]), ([1.0, 2.0], [-1.0, -2.0]), ([1.0, 2.0], [1.0, 2.0])]
)
def test_rotation_is_exact_and_finite_where_it_is_not_defined(source, target):
    source = torch.tensor([source], requires_grad=True)
    value = rotate(source, torch.tensor([target]))
    assert torch.equal(value, torch.tensor([target]))
    value.sum().backward()
    assert source.grad.isfinite().all()


def test_every_simvq_code_moves_with_each():
    quantizer = seeded(SimVQQuantizer, DIM, 1, CODES)
    book, z = quantizer.codebooks[0], vectors(1)
    before, frozen = book.embed.detach().clone(), book.frozen.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    quantizer(z).loss.backward()
    optimizer.step()
    assert ((book.embed - before).abs().sum(-1) > 0).all() and torch.equal(book.frozen, frozen)
    assert [name for name, _ in quantizer.named_parameters()] == ["codebooks.0.weight"]


# --- smoothed codes -------------------------------------------------------------------------------
def smoothed_in_float64(rows, embed, t):
    rows, embed = np.asarray(rows, np.float64), np.asarray(embed, np.float64)
    cosine = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)) @ (
        embed / np.linalg.norm(embed, axis=-1, keepdims=True)
    ).T
    p = np.exp(cosine / t)
    return p / p.sum(-1, keepdims=True)


def test_smoothed_by_hand():
    quantizer = seeded(SmoothedQuantizer, 2, 1, 2, temperature=0.5)
    book = quantizer.codebooks[0]
    with torch.no_grad():
        book.embed.copy_(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    z = torch.tensor([[3.0, 4.0]])
    p = torch.tensor([0.6, 0.8]).div(0.5).softmax(-1)  # the cosines of (3, 4) with the axes
    out = quantizer(z)
    torch.testing.assert_close(out.quantized, torch.stack([2 * p[0], 4 * p[1]])[None])
    assert out.codes.tolist() == [[1]]
    # One assignment is the neighbour of both vertices.
    assert out.loss.item() == pytest.approx(-p.log().mean().item())
    quantizer.eval()
    assert quantizer(z).quantized.tolist() == [[0.0, 4.0]] and quantizer(z).loss == 0


@pytest.mark.parametrize("regularizer", ["knn_ce", "knn_l2", "perplexity", "none"])
def test_smoothed_stages_equal_float64(regularizer):
    options = {"regularizer": regularizer, "regularizer_weight": 0.5, "num_neighbors": 2}
    options |= {"commitment_weight": 0.3, "codebook_weight": 0.2}
    quantizer = seeded(SmoothedQuantizer, DIM, 2, CODES, temperature=0.2, **options)
    z = vectors(40)
    out = quantizer(z)
    residual, total, losses = z.double().numpy(), 0, []
    for stage, book in enumerate(quantizer.codebooks):
        codes = book.embed.detach().double().numpy()
        p = smoothed_in_float64(residual, codes, 0.2)
        np.testing.assert_array_equal(out.codes[:, stage].numpy(), p.argmax(-1))
        commitment = np.square(residual - p @ codes).mean()
        codebook = np.square(residual - codes[p.argmax(-1)]).mean()
        total, residual = total + p @ codes, residual - codes[p.argmax(-1)]  # the next stage sees the hard rest
        term = {
            "knn_ce": lambda p: knn_regularizer(p, 2),
            "knn_l2": lambda p: knn_regularizer(p, 2, "l2"),
            "perplexity": perplexity_regularizer,
            "none": lambda p: p.new_zeros(()),
        }[regularizer]
        losses.append(0.5 * term(torch.tensor(p)).item() + 0.3 * commitment + 0.2 * codebook)
    np.testing.assert_allclose(out.quantized.detach().numpy(), total, atol=1e-5)
    assert [out.losses[f"codebook_{s}"].item() for s in (1, 2)] == pytest.approx(losses, rel=1e-4)
    assert torch.equal(quantizer.encode(z), out.codes)


def test_smoothed_gradient_equals_finite_differences():
    quantizer = seeded(SmoothedQuantizer, DIM, 1, CODES, temperature=0.5).double()
    z, weight = vectors(6).double(), vectors(6, seed=1).double()
    book = quantizer.codebooks[0]

    def task(log_t, embed, z):
        cosine = F.normalize(z, dim=-1) @ F.normalize(embed, dim=-1).T
        return (((cosine / log_t.exp()).softmax(-1) @ embed) * weight).sum()

    inputs = [x.detach().double().requires_grad_() for x in (book.log_t, book.embed, z)]
    assert torch.autograd.gradcheck(task, inputs)
    inputs[2] = z.float().requires_grad_()
    quantizer.float()
    value = (quantizer(inputs[2]).quantized * weight.float()).sum()
    ours = torch.autograd.grad(value, [book.log_t, book.embed, inputs[2]])
    theirs = torch.autograd.grad(task(*inputs[:2], inputs[2].double()), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), atol=1e-4, rtol=1e-3)


def test_gumbel_soft_and_hard():
    soft = seeded(SmoothedQuantizer, DIM, 1, CODES, gumbel="soft", temperature=1.0, regularizer="none")
    hard = seeded(SmoothedQuantizer, DIM, 1, CODES, gumbel="hard", temperature=1.0, regularizer="none")
    z = vectors(1).expand(4000, -1).clone().requires_grad_()
    codes = hard.codebooks[0].embed.detach()
    torch.manual_seed(0)
    sample = hard(z).quantized
    chosen = torch.cdist(sample.detach(), codes).argmin(-1)
    torch.testing.assert_close(sample, codes[chosen], atol=1e-5, rtol=1e-4)  # one-hot forward
    # At tau 1 the sample is drawn from p.
    p = smoothed_in_float64(z[:1].detach(), codes, 1.0)[0]
    frequency = np.bincount(chosen.numpy(), minlength=CODES) / 4000
    np.testing.assert_allclose(frequency, p, atol=4 * 0.5 / 4000**0.5)
    # The same noise: soft and hard share the gradient (straight-through).
    gradients = []
    for quantizer in (soft, hard):
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(quantizer(z).quantized.sum(), z)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0 and hard(z).codes.unique().numel() == 1  # the codes carry no noise


@pytest.mark.parametrize("gumbel", ["soft", "hard"])
def test_regularizer_sees_no_gumbel_noise(gumbel):
    noisy = seeded(SmoothedQuantizer, DIM, 1, CODES, gumbel=gumbel)
    plain = seeded(SmoothedQuantizer, DIM, 1, CODES)
    z = vectors(50)
    assert torch.equal(noisy(z).loss, plain(z).loss) and not torch.equal(noisy(z).quantized, noisy(z).quantized)


def test_temperatures_cool_and_stay_in_range():
    quantizer = seeded(SmoothedQuantizer, DIM, 2, CODES, gumbel="soft", gumbel_schedule=(2.0, 0.5, 0.5))
    book = quantizer.codebooks[1]
    assert [book.temperature.item(), book.tau.item()] == pytest.approx([0.1, 2.0])
    with torch.no_grad():
        book.log_t.fill_(9)
    assert book.temperature.item() == pytest.approx(1.0)
    taus = []
    for _ in range(3):
        quantizer.update_(quantizer(vectors(20)).stats)
        taus.append(book.tau.item())
    assert taus == [1.0, 0.5, 0.5] and book.log_t.item() == 0
    quantizer(vectors(20)).loss.backward()
    assert book.log_t.grad != 0  # at the end of its range, and not stuck there
    constant = seeded(SmoothedQuantizer, DIM, 1, CODES, gumbel="soft")
    constant.update_(constant(vectors(20)).stats)
    assert constant.codebooks[0].tau == 1


@pytest.mark.parametrize(("regularizer", "least", "most"), [("knn_ce", 1.0, 1.0), ("none", 0.0, 0.9)])
def test_knn_keeps_codes_in_use(regularizer, least, most):
    """Two clusters, 32 codes, an autoencoder of nothing but the quantizer: alone, the codes of two would do."""
    quantizer = seeded(SmoothedQuantizer, 4, 1, 32, regularizer=regularizer)
    z = F.normalize(vectors(2, dim=4).repeat(200, 1) + 0.1 * vectors(400, seed=1, dim=4), dim=-1)
    scale = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam([*quantizer.parameters(), *scale.parameters()], lr=0.02)
    used = set()
    for step in range(150):
        out = quantizer(scale(z))
        used |= set(out.codes.flatten().tolist()) if step >= 100 else set()
        optimizer.zero_grad()
        (F.mse_loss(out.quantized, z) + out.loss).backward()
        optimizer.step()
        quantizer.update_(out.stats)
    assert least <= len(used) / 32 <= most


# --- finite scalar quantization -------------------------------------------------------------------
def fsq_in_float64(quantizer, z):
    """Codes, quantized vectors and the Jacobian dq / dz of rows z by the paper's formulas, level by level."""
    p_in, b_in = (x.detach().double().numpy() for x in quantizer.project_in.parameters())
    p_out, b_out = (x.detach().double().numpy() for x in quantizer.project_out.parameters())
    x = z.detach().double().numpy() @ p_in.T + b_in
    code, place, steps, slopes = 0, 1, [], []
    for i, count in enumerate(quantizer.start_levels):
        half, shift = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
        bounded = half * np.tanh(x[:, i] + np.arctanh(shift / half)) - shift
        steps.append(np.round(bounded) / (count // 2))
        slopes.append(half * (1 - np.tanh(x[:, i] + np.arctanh(shift / half)) ** 2) / (count // 2))
        code, place = code + place * (np.round(bounded) + count // 2), place * count
    jacobian = np.einsum("oi,ni,id->nod", p_out, np.stack(slopes, 1), p_in)
    return code, np.stack(steps, 1) @ p_out.T + b_out, jacobian


@pytest.mark.parametrize("levels", [(3,), (4, 3), (8, 5, 5, 5), (8, 8, 8, 6, 5)])
def test_fsq_equals_float64(levels):
    quantizer = seeded(FSQQuantizer, DIM, levels)
    z = (3 * vectors(200)).requires_grad_()
    codes, quantized, jacobian = fsq_in_float64(quantizer, z)
    out = quantizer(z)
    assert quantizer.codebook_size == np.prod(levels) and out.loss == 0 and out.stats is None
    np.testing.assert_array_equal(out.codes[:, 0].numpy(), codes)
    assert len(out.codes.unique()) > min(3, quantizer.codebook_size - 1)
    np.testing.assert_allclose(out.quantized.detach().numpy(), quantized, atol=1e-5)
    for i in range(DIM):
        (gradient,) = torch.autograd.grad(out.quantized[:, i].sum(), z, retain_graph=True)
        np.testing.assert_allclose(gradient.numpy(), jacobian[:, i], atol=1e-5)


def test_every_fsq_code_is_reached_and_comes_back():
    levels = (8, 5, 4, 3)
    quantizer = seeded(FSQQuantizer, 4, levels)
    with torch.no_grad():
        for linear in (quantizer.project_in, quantizer.project_out):
            linear.weight.copy_(torch.eye(4))
            linear.bias.zero_()
    codes = torch.arange(8 * 5 * 4 * 3)[:, None]
    vectors = quantizer.decode(codes)
    digits = torch.cartesian_prod(*(torch.arange(count) for count in reversed(levels))).flip(-1)  # the first fastest
    half = torch.tensor([4, 2, 2, 1])
    assert torch.equal(vectors, (digits - half) / half)
    # a vector that tanh takes to the middle of the step of each level
    wide = (torch.tensor(levels) - 1) * 1.001 / 2
    offset = torch.tensor([0.5, 0.0, 0.5, 0.0])
    z = ((digits - half + offset) / wide).atanh() - (offset / wide).atanh()
    assert torch.equal(quantizer.encode(z), codes) and torch.equal(quantizer(z).quantized, vectors)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 999, 1000])
def test_the_outer_levels_are_reached_and_none_beyond_them(count):
    quantizer = seeded(FSQQuantizer, 1, (count,))
    with torch.no_grad():
        quantizer.project_in.weight.fill_(1)
        quantizer.project_in.bias.zero_()
    assert quantizer.encode(torch.tensor([[-1e4], [1e4]])).tolist() == [[0], [count - 1]]


def test_fsq_learns_from_the_task_alone_and_uses_its_codes():
    quantizer = seeded(FSQQuantizer, 4, (5, 5, 5))
    z = vectors(400, dim=4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(quantizer(z).quantized, z)
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0] and quantizer.encode(z).unique().numel() > 60


@pytest.mark.parametrize("levels", [(), (8, 2), (1001,)])
def test_levels_are_checked(levels):
    with pytest.raises(ValueError, match="`levels` is .*; it takes whole numbers from 3 to 1000, one per dimension"):
        FSQQuantizer(DIM, levels)


# --- bad options ----------------------------------------------------------------------------------
def test_errors_name_what_is_wrong():
    for message, call in [
        ("`estimator` is 'soft'; it takes one of 'ste', 'rotation'", lambda: GradientQuantizer(DIM, estimator="soft")),
        ("`distance` is 'l1'; it takes one of 'euclidean', 'cosine'", lambda: SimVQQuantizer(DIM, distance="l1")),
        ("`normalize` is 'per_stage'; it takes one of 'once', 'none'",
         lambda: GradientQuantizer(DIM, normalize="per_stage")),
        ("`gumbel` is True; it takes one of 'none', 'soft', 'hard'", lambda: SmoothedQuantizer(DIM, gumbel=True)),
        ("`regularizer` is 'knn'; it takes one of 'none', 'perp", lambda: SmoothedQuantizer(DIM, regularizer="knn")),
        ("`temperature` is 2; it takes 0.01 to 1.0", lambda: SmoothedQuantizer(DIM, temperature=2)),
        ("`num_neighbors` is 9; it takes 1 to 4, the number of assignments",
         lambda: SmoothedQuantizer(DIM, 1, CODES, num_neighbors=9)(vectors(4))),
        (r"`mask` is \(4,\); it takes \(3,\)", lambda: GradientQuantizer(DIM, 1, CODES)(vectors(3), torch.ones(4))),
        (r"`codes` is in \[0, 12\]; it takes \[0, 11\]",
         lambda: GradientQuantizer(DIM, 1, CODES).decode(torch.tensor([[0], [12]]))),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_codebook_weight_moves_codes_alone_and_makes_stages_refine():
    energies = []
    for weight in (0.0, 8.0):
        quantizer = seeded(SmoothedQuantizer, 8, 3, 16, regularizer_weight=0.1, codebook_weight=weight).train()
        z = F.normalize(vectors(512, dim=8), dim=-1)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            quantizer(z).loss.backward()
            optimizer.step()
        codes, residual, left = quantizer.eval().encode(z), z, []
        for stage, book in enumerate(quantizer.codebooks):
            residual = residual - book.embed[codes[:, stage]]
            left.append(residual.square().sum(-1).mean().item())
            assert len(codes[:, stage].unique()) == 16
        energies.append(left)
    without, refined = energies
    assert refined[0] > 1.2 * refined[1] > 1.2**2 * refined[2] and refined[2] < 0.35
    assert without[2] > 2 * refined[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_weight": -1.0}, "`codebook_weight` is -1.0; it takes 0 to"),
        ({"commitment_weight": float("inf")}, "`commitment_weight` is inf; it takes 0 to"),
        ({"gumbel_schedule": (0, 0, 0)}, r"`gumbel_schedule` is \(0, 0, 0\); it takes start, end and decay, above 0"),
        ({"gumbel_schedule": (1,)}, r"`gumbel_schedule` is \(1,\)"),
        ({"codebook_size": 0}, "`codebook_size` is 0; it takes a whole number from 1 to"),
        ({"num_codebooks": -1}, "`num_codebooks` is -1; it takes a whole number from 1 on"),
    ],
)
def test_absurd_options_of_the_class_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothedQuantizer(DIM, **{"num_codebooks": 2, "codebook_size": CODES} | options)


def test_codebook_weight_passes_nothing_to_the_vectors():
    quantizer = seeded(SmoothedQuantizer, DIM, 2, CODES, regularizer="none", codebook_weight=1.0).train()
    z = vectors(20).requires_grad_()
    quantizer(z).losses["codebook_1"].backward()
    assert z.grad is None and quantizer.codebooks[0].embed.grad.any()
