"""The regularisers of smoothed assignments against hand-computed cases and float64 numpy."""

import math

import numpy as np
import pytest
import torch

from bridle_hf import knn_regularizer, learned_quantization_bridle, perplexity_regularizer

HAND = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.5, 0.2]])


def assignments(rows=50, codes=7, seed=0, sharpness=3.0):
    return (sharpness * torch.randn(rows, codes, generator=torch.manual_seed(seed), dtype=torch.float64)).softmax(-1)


def knn_in_float64(p, k, divergence):
    """Eq. 13 as it is printed: every distance of every assignment to every vertex, sorted."""
    p = np.asarray(p, np.float64)
    rows, codes = p.shape
    if divergence == "ce":
        distance = -np.log(p)
    else:
        distance = np.array([[np.square(np.eye(codes)[m] - p[i]).sum() for m in range(codes)] for i in range(rows)])
    return np.sort(distance, axis=0)[:k].mean()


def test_cross_entropy_by_hand():
    # vertex 1: .7 and .6, vertex 2: .5 and .3, vertex 3: .8 and .2
    assert knn_regularizer(HAND, 1).item() == pytest.approx(-(math.log(0.7) + math.log(0.5) + math.log(0.8)) / 3)
    two = -(math.log(0.7 * 0.6) + math.log(0.5 * 0.3) + math.log(0.8 * 0.2)) / 6
    assert knn_regularizer(HAND, 2).item() == pytest.approx(two, rel=1e-6)


def test_squared_distance_by_hand_has_an_order_of_its_own():
    # vertex 1: .09 + .04 + .01, vertex 2: .09 + .25 + .04, vertex 3: .01 + .01 + .04
    assert knn_regularizer(HAND, 1, "l2").item() == pytest.approx((0.14 + 0.38 + 0.06) / 3, rel=1e-6)
    # Vertex 1: .5 lies nearer than .52, because the rest of it is spread out.
    p = torch.tensor([[0.52, 0.48, 0.0, 0.0], [0.5, 0.2, 0.15, 0.15], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    nearest = [0.25 + 0.04 + 2 * 0.15**2, 2 * 0.52**2, 0.0, 0.0]
    assert knn_regularizer(p, 1, "l2").item() == pytest.approx(sum(nearest) / 4, rel=1e-6)


@pytest.mark.parametrize("divergence", ["ce", "l2"])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_knn_equals_float64(divergence, k, monkeypatch):
    p = assignments()
    expected = knn_in_float64(p, k, divergence)
    assert knn_regularizer(p.float(), k, divergence).item() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(learned_quantization_bridle, "BLOCK", 110)  # two vertices at a time
    assert knn_regularizer(p.float(), k, divergence).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("divergence", ["ce", "l2"])
def test_gradient_reaches_the_neighbours_and_equals_finite_differences(divergence):
    logits = (2 * torch.randn(8, 5, generator=torch.manual_seed(1), dtype=torch.float64)).requires_grad_()

    def loss(logits):
        return knn_regularizer(logits.softmax(-1), 2, divergence)

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    step = 1e-2  # float32 inside: no smaller
    for i, j in ((0, 0), (3, 2), (7, 4), (5, 1)):
        moved = [logits.detach().clone() for _ in range(2)]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        expected = (loss(moved[0]) - loss(moved[1])) / (2 * step)
        assert gradient[i, j].item() == pytest.approx(expected.item(), abs=2e-4)
    assert gradient.abs().max() > 0.01


def test_log_p_keeps_what_has_underflowed():
    logits = torch.tensor([[0.0, -300.0], [0.0, -200.0]], requires_grad=True)
    log_p = logits.log_softmax(-1)
    loss = knn_regularizer(log_p.exp(), 1, log_p=log_p)
    assert loss.item() == pytest.approx(100.0)  # vertex 1: 0, vertex 2: 200
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0], [0.5, -0.5]]))
    assert knn_regularizer(log_p.exp(), 1).isfinite()


def knn_ce(p, mask=None):
    return knn_regularizer(p, 3, mask=mask)


def knn_l2(p, mask=None):
    return knn_regularizer(p, 3, "l2", mask)


@pytest.mark.parametrize("function", [knn_ce, knn_l2, perplexity_regularizer])
def test_masked_assignments_do_not_count(function):
    p, mask = assignments().float(), torch.rand(50, generator=torch.manual_seed(2)) < 0.6
    expected = function(p[mask])
    for given in (mask, mask.long()):
        assert function(p, given).item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = p.clone().requires_grad_()
    loss = function(nothing, torch.zeros(50))
    assert loss.item() == 0
    loss.backward()
    assert not nothing.grad.any()


def test_fewer_valid_assignments_than_neighbours_are_all_taken():
    p = assignments(rows=6).float()
    mask = torch.tensor([True, False, True, False, False, False])
    assert knn_regularizer(p, 4, mask=mask).item() == pytest.approx(-p[mask].log().mean().item(), rel=1e-6)


def test_random_vertices_are_a_subset_and_right_on_average():
    p = assignments().float()
    # k = 1, one vertex: what comes out is that vertex's term
    terms = {round(-value, 5) for value in p.log().max(0).values.tolist()}
    generator = torch.Generator().manual_seed(0)
    drawn = [knn_regularizer(p, 1, num_vertices=1, generator=generator).item() for _ in range(100)]
    assert {round(value, 5) for value in drawn} == terms
    every = knn_regularizer(p, 2, "l2", num_vertices=7, generator=generator)
    torch.testing.assert_close(every, knn_regularizer(p, 2, "l2"))


def test_perplexity_equals_float64_and_its_ends():
    p = assignments()
    mean = p.numpy().mean(0)
    expected = 1 - np.exp(-(mean * np.log(mean)).sum()) / 7
    assert perplexity_regularizer(p.float()).item() == pytest.approx(expected, rel=1e-5)
    assert perplexity_regularizer(torch.eye(7)).item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.eye(7)[:1].repeat(9, 1).requires_grad_()
    loss = perplexity_regularizer(collapsed)
    loss.backward()
    assert loss.item() == pytest.approx(6 / 7, rel=1e-6) and collapsed.grad.isfinite().all()


def test_minimising_perplexity_loss_spreads_the_codes():
    """The sign: the paper's eq. 11 taken as a loss would collapse them."""
    logits = torch.randn(40, 6, generator=torch.manual_seed(3)).requires_grad_()
    with torch.no_grad():
        logits[:, 0] += 3
    optimizer = torch.optim.SGD([logits], lr=30)
    before = perplexity_regularizer(logits.softmax(-1)).item()
    for _ in range(50):
        optimizer.zero_grad()
        perplexity_regularizer(logits.softmax(-1)).backward()
        optimizer.step()
    assert perplexity_regularizer(logits.softmax(-1)).item() < 0.2 * before


def test_autocast_changes_nothing():
    p = assignments().float()
    plain = [knn_regularizer(p, 2), knn_regularizer(p, 2, "l2"), perplexity_regularizer(p)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [knn_regularizer(p, 2), knn_regularizer(p, 2, "l2"), perplexity_regularizer(p)]
        assert knn_regularizer(p.bfloat16(), 2).dtype == torch.float32
    assert plain == inside


def test_many_codes_and_neighbours_need_little_memory():
    """K neighbours of M vertices gathered as vectors would be 16 x 4096 x 4096 numbers, a gigabyte."""
    p = torch.full((64, 4096), 1 / 4096).requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        knn_regularizer(p, 16, "l2").backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 30 * p.numel() * 4


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="`divergence` is 'kl'; it takes one of 'ce', 'l2'"):
        knn_regularizer(HAND, 1, "kl")
    with pytest.raises(ValueError, match="`num_neighbors` is 5; it takes 1 to 4, the number of assignments"):
        knn_regularizer(HAND, 5)
    with pytest.raises(ValueError, match="`num_neighbors` is 0"):
        knn_regularizer(HAND, 0)
    with pytest.raises(ValueError, match="`num_vertices` is 4; it takes 1 to 3, the number of codes"):
        knn_regularizer(HAND, 1, num_vertices=4)
    for function in (lambda p, m=None: knn_regularizer(p, 1, mask=m), perplexity_regularizer):
        with pytest.raises(ValueError, match=r"`p` is \(2, 4, 3\) torch.float32; it takes floating point \(N, K\)"):
            function(HAND.expand(2, 4, 3))
        with pytest.raises(ValueError, match=r"`mask` is \(3,\); it takes \(4,\), one per assignment"):
            function(HAND, torch.ones(3))
