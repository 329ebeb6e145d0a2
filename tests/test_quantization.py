"""The quantizers against float64 numpy, themselves in two processes, and their own contract."""

import os
import tempfile

import float64
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from drawn import seeded
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bridle_hf import (
    GradientQuantizer,
    ProductQuantizer,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    SmoothedQuantizer,
    VectorQuantizer,
)
from bridle_hf.codebook_bridle import SEARCHED_ON_CPU

DIM, BOOKS, CODES = 8, 3, 16


def vectors(*shape, seed=0, dim=DIM):
    return torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed))


def ready(cls=ResidualQuantizer, *sizes, seed=0, **options):
    quantizer = cls(DIM, *(sizes or ((BOOKS, CODES) if cls is ResidualQuantizer else (CODES,))), **options)
    quantizer.initialize_(vectors(400, seed=seed) * 3, generator=torch.Generator().manual_seed(seed))
    return quantizer.eval()


def same_state(quantizer, state):
    return all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())


def copy_of_state(quantizer):
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


class Largest(TorchDispatchMode):
    """Keeps how many numbers the largest tensor holds that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(returned) if isinstance(each, torch.Tensor)]
        self.numbers = max([self.numbers, *(each.numel() for each in tensors)])
        return returned


def test_memory_does_not_grow_with_vectors_times_codes():
    quantizer, z = ResidualQuantizer(DIM, BOOKS, 256).train(), vectors(8 * SEARCHED_ON_CPU)
    with Largest() as largest:
        quantizer.initialize_(z)
        output = quantizer(z.requires_grad_())
        output.loss.backward()
        quantizer.update_(output.stats)
        quantizer.encode(z)
    assert largest.numbers <= max(SEARCHED_ON_CPU * 256, z.numel()) < len(z) * 256 / 4


# --- values ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("normalize", ["once", "per_stage", "none"])
def test_residual_quantizer_equals_float64(normalize):
    quantizer = ready(normalize=normalize)
    z = vectors(5, 7, seed=9) * 2
    books = [book.embed.double().numpy() for book in quantizer.codebooks]
    codes, quantized, residuals = float64.residual_quantization(z.reshape(-1, DIM), books, normalize)
    losses = float64.codebook_losses(residuals)
    out = quantizer(z)
    assert out.codes.shape == (5, 7, BOOKS) and out.codes.dtype == torch.int64
    np.testing.assert_array_equal(out.codes.reshape(-1, BOOKS).numpy(), codes)
    np.testing.assert_allclose(out.quantized.reshape(-1, DIM).numpy(), quantized, atol=1e-6)
    assert out.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert out.losses["codebook"].item() == out.loss.item()
    assert [out.losses[f"codebook_{m}"].item() for m in (1, 2, 3)] == pytest.approx(losses, rel=1e-5)
    assert torch.equal(quantizer.encode(z), out.codes)
    assert torch.equal(quantizer.decode(out.codes), out.quantized)
    assert out.stats is None


def test_gradient_is_straight_through_and_commitment_of_every_stage():
    quantizer = ready(normalize="none")
    z, weight = vectors(10, seed=5).requires_grad_(), vectors(10, seed=6)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.quantized * weight).sum(), z, retain_graph=True)
    assert torch.equal(gradient, weight)
    (gradient,) = torch.autograd.grad(out.loss, z)
    books = [book.embed.double().numpy() for book in quantizer.codebooks]
    _, _, residuals = float64.residual_quantization(z.detach(), books)
    np.testing.assert_allclose(gradient.numpy(), 0.25 * 2 * np.sum(residuals, 0) / (10 * DIM * BOOKS), atol=1e-7)
    for stage in (1, 2, 3):
        (gradient,) = torch.autograd.grad(quantizer(z).losses[f"codebook_{stage}"], z)
        np.testing.assert_allclose(gradient.numpy(), 0.25 * 2 * residuals[stage - 1] / (10 * DIM), atol=1e-7)


def test_energy_left_falls_with_each_stage():
    z = vectors(400) * 3
    quantizer = ResidualQuantizer(DIM, 4, CODES)
    quantizer.initialize_(z, generator=torch.Generator().manual_seed(0))
    losses = [quantizer(z).losses[f"codebook_{m}"].item() for m in (1, 2, 3, 4)]
    assert all(after < 0.8 * before for before, after in zip(losses, losses[1:], strict=False))


def test_vector_quantizer_is_one_stage():
    quantizer, residual = ready(VectorQuantizer), ready(ResidualQuantizer, 1, CODES)
    z = vectors(20, seed=3)
    assert quantizer(z).codes.shape == (20, 1)
    assert torch.equal(quantizer(z).quantized, residual(z).quantized)


def test_soft_codes_mix_the_nearest():
    hard, soft, one = ready(normalize="none"), ready(normalize="none", soft_codes=3), ready(soft_codes=1)
    soft.load_state_dict(hard.state_dict())
    z = vectors(30, seed=4)
    book = hard.codebooks[0].embed
    distance = torch.cdist(z, book).square()
    near = distance.argsort(-1)[:, :3]
    weights = 1 / distance.gather(1, near)
    first = ((weights / weights.sum(-1, keepdim=True))[..., None] * book[near]).sum(1)
    stage_1 = soft(z).losses["codebook_1"].item()
    assert stage_1 == pytest.approx(1.25 * (z - first).square().mean().item(), rel=1e-4)
    assert torch.equal(soft(z).codes[:, 0], hard(z).codes[:, 0])
    assert torch.equal(soft.encode(z), soft(z).codes)
    # One soft code has all the weight.
    torch.testing.assert_close(one(z).quantized, one.decode(one.encode(z)))


# --- statistics and state -------------------------------------------------------------------------
def test_forward_is_pure_and_update_follows_the_statistics():
    quantizer = ready(normalize="none").train()
    z, state = vectors(50, seed=7), copy_of_state(quantizer)
    out = quantizer(z)
    assert same_state(quantizer, state)
    books = [book.embed.double().numpy() for book in quantizer.codebooks]
    codes, _, residuals = float64.residual_quantization(z, books)
    keys = [z.double().numpy(), *residuals]
    for stage in range(BOOKS):
        for code in range(CODES):
            mine = codes[:, stage] == code
            assert out.stats["counts"][stage, code] == mine.sum()
            np.testing.assert_allclose(out.stats["sums"][stage, code].numpy(), keys[stage][mine].sum(0), atol=1e-5)
    given = {name: value.clone() for name, value in out.stats.items()}
    quantizer.update_(out.stats)
    assert all(torch.equal(out.stats[name], value) for name, value in given.items())
    book = quantizer.codebooks[1]
    before = state["codebooks.1.cluster_size"]
    torch.testing.assert_close(book.cluster_size, 0.99 * before + 0.01 * given["counts"][1])


@pytest.mark.parametrize("ema_mode", ["counts", "official"])
def test_without_memory_update_gives_batch_means(ema_mode):
    quantizer = ready(VectorQuantizer, ema_decay=0.0, ema_mode=ema_mode).train()
    z = F.normalize(vectors(300, seed=8), dim=-1)
    out = quantizer(z)
    quantizer.update_(out.stats)
    for code in out.codes.unique().tolist():
        mean = z[out.codes[:, 0] == code].mean(0)
        mean = mean if ema_mode == "counts" else mean / mean.norm()
        torch.testing.assert_close(quantizer.codebooks[0].embed[code], mean, rtol=1e-4, atol=1e-5)


def test_statistics_of_micro_batches_add_up():
    quantizer = ready().train()
    z = vectors(60, seed=7)
    whole, parts = quantizer(z).stats, [quantizer(part).stats for part in z.split(20)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


@pytest.mark.parametrize("ema_mode", ["counts", "official"])
def test_training_lowers_the_error_and_evaluation_changes_nothing(ema_mode):
    quantizer = ready(codebook_init="sample", ema_decay=0.8, ema_mode=ema_mode).train()
    z = vectors(400, seed=0)
    before = quantizer.eval()(z).losses["codebook_1"]
    for _ in range(15):
        quantizer.update_(quantizer.train()(z).stats)
    assert quantizer.eval()(z).losses["codebook_1"] < 0.95 * before


def test_state_survives_a_save():
    quantizer, other = ready(), ResidualQuantizer(DIM, BOOKS, CODES)
    assert quantizer.initialized and not other.initialized
    other.load_state_dict(quantizer.state_dict())
    z = vectors(30)
    assert other.initialized and torch.equal(other.encode(z), quantizer.encode(z))
    assert not list(quantizer.parameters())


def test_reset_dead_codes_counts_and_uses_stage_inputs():
    quantizer = ready(normalize="none").train()
    for book in quantizer.codebooks[1:]:
        book.embed[4] = 1000.0
        book.cluster_size[4] = 0
    z = vectors(100, seed=2)
    assert quantizer.reset_dead_codes_(z, torch.Generator().manual_seed(0)) >= 2
    first = z - quantizer.codebooks[0].embed[quantizer.codebooks[0].nearest(z)]
    assert (first == quantizer.codebooks[1].embed[4]).all(-1).any()
    assert quantizer.codebooks[2].embed[4].norm() < 10
    assert quantizer.reset_dead_codes_(z, torch.Generator().manual_seed(0)) == 0


# --- padding, batches, precision ------------------------------------------------------------------
@pytest.mark.parametrize("ema_mode", ["counts", "official"])
def test_padding_counts_for_nothing(ema_mode):
    quantizer = ready(ema_mode=ema_mode).train()
    z, mask = vectors(2, 9, seed=1), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    alone = quantizer(z[mask])
    padded = z.clone()
    padded[1, 4:] = float("nan")
    for given in (mask, mask.long()):
        out = quantizer(padded.requires_grad_(), mask=given)
        assert torch.equal(out.codes[mask], alone.codes)
        torch.testing.assert_close(out.loss, alone.loss)
        for name, value in alone.stats.items():
            torch.testing.assert_close(out.stats[name], value)
        (gradient,) = torch.autograd.grad(out.loss + out.quantized.sum(), padded)
        assert gradient.isfinite().all() and not gradient[1, 4:].any()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 3)])
def test_nothing_valid_gives_zero_loss(shape):
    quantizer = ready().train()
    z = vectors(*shape).requires_grad_()
    out = quantizer(z, mask=torch.zeros(shape))
    assert out.codes.shape == (*shape, BOOKS) and out.quantized.shape == (*shape, DIM)
    assert out.loss == 0 and not out.stats["counts"].any()
    out.loss.backward()
    assert not z.grad.any()
    state = copy_of_state(quantizer)
    quantizer.update_(out.stats)
    torch.testing.assert_close(quantizer.codebooks[0].embed, state["codebooks.0.embed"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", ["once", "per_stage", "none"])
def test_codes_are_the_same_in_batch_and_alone(normalize):
    quantizer, z = ready(normalize=normalize), vectors(6, 11, seed=3)
    together = quantizer.encode(z)
    assert torch.equal(torch.stack([quantizer.encode(one) for one in z]), together)
    assert torch.equal(torch.stack([quantizer.encode(one) for one in z[0]]), together[0])


# --- bad input ------------------------------------------------------------------------------------
def test_errors_name_what_is_wrong():
    quantizer = ready()
    with pytest.raises(
        ValueError, match=r"`z` is \(3, 7\) torch.float32; it takes floating point with last dimension 8"
    ):
        quantizer(torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"`mask` is \(4,\); it takes \(3,\)"):
        quantizer(vectors(3), mask=torch.ones(4))
    with pytest.raises(
        ValueError, match=r"`codes` is \(3, 4\) torch.int64; it takes integers with last dimension 1 to 3"
    ):
        quantizer.decode(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`codes` is in \[0, 16\]; it takes \[0, 15\]"):
        quantizer.decode(torch.tensor([[0, 1, 16]]))
    with pytest.raises(ValueError, match="`z` holds 15 vectors over all processes; .* 16, better 1024"):
        quantizer.initialize_(vectors(15))
    with pytest.raises(ValueError, match="`stats` is None; it takes the statistics of a forward in training mode"):
        quantizer.update_(quantizer(vectors(3)).stats)
    with pytest.raises(ValueError, match="`normalize` is 'l2'; it takes one of 'once', 'per_stage', 'none'"):
        ResidualQuantizer(DIM, normalize="l2")
    with pytest.raises(ValueError, match="`soft_codes` is 17; it takes 0 to 16, `codebook_size`"):
        ResidualQuantizer(DIM, BOOKS, CODES, soft_codes=17)
    with pytest.raises(ValueError, match="`ema_decay` is 1.5; it takes 0 to 1"):
        ResidualQuantizer(DIM, ema_decay=1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_shows_and_never_reaches_the_codes(value):
    quantizer, z = ready().train(), vectors(40)
    z[3, 2] = value
    state = copy_of_state(quantizer)
    for call in (quantizer.encode, quantizer.initialize_, quantizer.reset_dead_codes_):
        with pytest.raises(ValueError, match="`z` holds NaN or inf; it takes finite values"):
            call(z)
    out = quantizer(z)
    assert not out.loss.isfinite()
    with pytest.raises(ValueError, match="`stats` holds NaN or inf"):
        quantizer.update_(out.stats)
    assert same_state(quantizer, state)


# --- random projection ----------------------------------------------------------------------------
def test_random_projection_by_hand_and_frozen():
    quantizer = RandomProjectionQuantizer(DIM, 2, CODES, projection_dim=4).train()
    z = vectors(6, 5, seed=1) * 7 + 3
    rows = z.double().numpy()
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    for m in range(2):
        codes = quantizer.embed[m].double().numpy()
        np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, rtol=1e-6)
        keys = rows @ quantizer.projection[m].double().numpy()
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        nearest = ((keys[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(quantizer.encode(z)[..., m].numpy(), nearest)
    state = copy_of_state(quantizer)
    out = quantizer(z, mask=torch.ones(6, 5, dtype=torch.bool))
    assert out.quantized.shape == z.shape and out.loss == 0 and out.stats is None
    quantizer.initialize_(z)
    quantizer.update_(None)
    assert quantizer.reset_dead_codes_(z) == 0
    assert same_state(quantizer, state) and not list(quantizer.parameters())
    assert same_state(RandomProjectionQuantizer(DIM, 2, CODES, projection_dim=4), quantizer.state_dict())
    assert same_state(quantizer, quantizer.default_state())


# --- product --------------------------------------------------------------------------------------
def test_product_is_its_groups_side_by_side():
    groups = [seeded(SmoothedQuantizer, 3, 1, 12), seeded(GradientQuantizer, 5, 2, 12)]
    product = ProductQuantizer(groups)
    z = vectors(2, 20)
    out, parts = product(z), [groups[0](z[..., :3]), groups[1](z[..., 3:])]
    assert (product.dim, product.num_codebooks, product.codebook_size) == (8, 3, 12)
    assert torch.equal(out.quantized, torch.cat([part.quantized for part in parts], -1))
    assert torch.equal(out.codes, torch.cat([part.codes for part in parts], -1))
    assert torch.equal(out.loss, (parts[0].loss + parts[1].loss) / 2)
    assert torch.equal(out.losses["codebook_1"], parts[0].loss)
    assert torch.equal(out.losses["codebook_3"], parts[1].losses["codebook_2"])
    assert torch.equal(product.encode(z), out.codes)
    product.eval()
    torch.testing.assert_close(product.decode(out.codes), product(z).quantized)
    mixed = ProductQuantizer([groups[0], GradientQuantizer(5, 1, 3)])
    assert (mixed.codebook_sizes, mixed.codebook_size) == ((12, 3), 12)
    with pytest.raises(ValueError, match="`z` is .*; it takes floating point with last dimension 8"):
        product(vectors(3, dim=7))


def test_product_of_ema_codebooks_moves_each_by_its_own_statistics():
    torch.manual_seed(0)
    product, alone = (
        ProductQuantizer([VectorQuantizer(4, 12, ema_decay=0.5) for _ in range(2)]),
        [VectorQuantizer(4, 12, ema_decay=0.5) for _ in range(2)],
    )
    z = vectors(400)
    assert not product.initialized and product.init_sample_size == alone[0].init_sample_size
    product.initialize_(z, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    for quantizer, part in zip(alone, z.split(4, dim=-1), strict=True):
        quantizer.initialize_(part, generator=generator)
        quantizer.update_(quantizer(part).stats)
    out = product(z)
    product.update_({name: value.clone() for name, value in out.stats.items()})
    for group, quantizer in zip(product.groups, alone, strict=True):
        assert torch.equal(group.codebooks[0].embed, quantizer.codebooks[0].embed)
    product.groups[1].codebooks[0].cluster_size[2] = 0
    assert product.initialized and product.reset_dead_codes_(z) == 1
    with pytest.raises(ValueError, match="`stats` is None"):
        product.update_(None)


# --- two processes --------------------------------------------------------------------------------
def life(quantizer, z, share):
    """Start, two steps and a reset on the rows of `share`; returns the number of moved codes."""
    quantizer.initialize_(z[share], generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        quantizer.update_(quantizer.train()(z[share]).stats)
    quantizer.codebooks[0].cluster_size[2] = 0
    return quantizer.reset_dead_codes_(z[share], generator=torch.Generator().manual_seed(6))


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    quantizer = ResidualQuantizer(DIM, BOOKS, CODES, ema_decay=0.5)
    torch.manual_seed(rank)  # what the processes draw for themselves must not matter
    share = slice(0, 250) if rank == 0 else slice(250, 400)  # not the same number of rows
    moved = life(quantizer, vectors(400), share)
    try:
        quantizer.initialize_(vectors(400)[:6])
    except ValueError as error:
        message = str(error)
    torch.save({"state": quantizer.state_dict(), "moved": moved, "message": message}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_agree_and_equal_one_with_all_rows():
    single = ResidualQuantizer(DIM, BOOKS, CODES, ema_decay=0.5)
    moved = life(single, vectors(400), slice(None))
    with tempfile.TemporaryDirectory() as folder:
        # Forked like the workers of a DataLoader: they need no second import of everything, and use one thread each.
        mp.start_processes(process, args=(folder,), nprocs=2, start_method="fork")
        results = [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=True) for rank in (0, 1)]
    assert moved >= 1 and results[0]["moved"] == results[1]["moved"] == moved
    for name, value in single.state_dict().items():
        assert torch.equal(results[0]["state"][name], results[1]["state"][name])
        torch.testing.assert_close(results[0]["state"][name], value, rtol=1e-4, atol=1e-5)
    assert all("`z` holds 12 vectors" in result["message"] for result in results)
