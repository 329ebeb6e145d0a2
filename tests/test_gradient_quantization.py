"""Hard codes that learn by gradient: float64 numpy, hand-computed cases, the rule of each estimator."""

import numpy as np
import pytest
import torch
from drawn import CODES, DIM, seeded, vectors

from bridle_hf import GradientQuantizer, SimVQQuantizer
from bridle_hf.gradient_quantization_bridle import rotate
from bridle_hf.learned_quantization_bridle import straight_through


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


def test_straight_through_gives_the_value_to_the_bit():
    source, value = vectors(50).requires_grad_(), vectors(50, seed=1) * 1e-4
    assert torch.equal(straight_through(source, value), value)
