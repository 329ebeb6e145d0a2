"""Where vector-quantize-pytorch has the same quantizer, the values, gradients and updates are the same."""

import pytest
import torch
import vector_quantize_pytorch as other
from torch.nn import functional as F
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from bridle_hf import (
    FSQQuantizer,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    SimVQQuantizer,
    VectorQuantizer,
)
from bridle_hf.learned_quantization_bridle import rotate

DIM, CODES = 8, 16
EMA = {"kmeans_init": False, "threshold_ema_dead_code": 0, "decay": 0.9, "eps": 1e-5}


def vectors(*shape, seed=0):
    return torch.randn(*shape, DIM, generator=torch.manual_seed(seed))


def give_codes_(theirs, book):
    """Their EMA codebook gets the codes, sums and counts of ours."""
    theirs.embed.data.copy_(book.embed[None])
    theirs.embed_avg.data.copy_(book.embed_sum[None])
    theirs.cluster_size.data.copy_(book.cluster_size[None])


def test_rotation_gives_the_same_value_and_gradient():
    source, target, weight = vectors(50).requires_grad_(), vectors(50, seed=1), vectors(50, seed=2)
    ours, theirs = rotate(source, target), rotate_to(source, target)
    assert torch.equal(ours, target)
    torch.testing.assert_close(theirs, target, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad((value * weight).sum(), source)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("estimator", ["ste", "rotation"])
def test_simvq(estimator):
    theirs = other.SimVQ(
        DIM, CODES, rotation_trick=estimator == "rotation", input_to_quantize_commit_loss_weight=0.25
    )  # fmt: skip
    ours = SimVQQuantizer(DIM, 1, CODES, estimator=estimator, commitment_weight=0.25)
    book = ours.codebooks[0]
    with torch.no_grad():
        book.frozen.copy_(theirs.frozen_codebook)
        book.weight.copy_(theirs.code_transform.weight.t())
    z, weight = vectors(3, 20, seed=3).requires_grad_(), vectors(3, 20, seed=4)
    out, (quantized, index, loss) = ours(z), theirs(z)
    assert torch.equal(out.codes[..., 0], index) and len(index.unique()) > 5
    torch.testing.assert_close(out.quantized, quantized, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.loss, loss)
    ours_z, ours_w = torch.autograd.grad((out.quantized * weight).sum() + out.loss, [z, book.weight])
    # Theirs also leads the task's gradient through the rotated codes into the linear map; eq. 3-4 leave it out.
    (theirs_z,) = torch.autograd.grad((quantized * weight).sum() + loss, z, retain_graph=True)
    (theirs_w,) = torch.autograd.grad(theirs(z)[2], theirs.code_transform.weight)
    torch.testing.assert_close(ours_z, theirs_z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours_w.t(), theirs_w, atol=1e-6, rtol=1e-4)


def test_ema_with_cosine():
    """Theirs scales the updated code to length 1, ours keeps the mean: the same directions."""
    ours = VectorQuantizer(DIM, CODES, ema_decay=0.9)
    ours.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    book = ours.codebooks[0]
    book.set_(F.normalize(book.embed, dim=-1), book.cluster_size)
    theirs = other.VectorQuantize(DIM, CODES, use_cosine_sim=True, **EMA)
    give_codes_(theirs._codebook, book)
    z = vectors(300, seed=5) * 4
    out = ours.train()(z)
    quantized, index, _ = theirs.train()(z)
    assert torch.equal(out.codes[:, 0], index)
    ours.update_(out.stats)
    torch.testing.assert_close(F.normalize(book.embed, dim=-1), theirs._codebook.embed[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.quantized, quantized, atol=1e-5, rtol=1e-4)


def test_residual_ema_over_several_steps():
    ours = ResidualQuantizer(DIM, 3, CODES, normalize="none", ema_decay=0.9)
    ours.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    theirs = other.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=CODES, commitment_weight=0.25, **EMA)
    for layer, book in zip(theirs.layers, ours.codebooks, strict=True):
        give_codes_(layer._codebook, book)
    for step in range(4):
        z = vectors(1, 200, seed=10 + step)
        out = ours.train()(z)
        quantized, index, losses = theirs.train()(z)
        assert torch.equal(out.codes, index)
        torch.testing.assert_close(out.quantized, quantized, atol=1e-5, rtol=1e-4)
        # Their loss is the commitment alone; ours adds the codebook's share, which has no gradient.
        named = torch.stack([out.losses[f"codebook_{stage}"] for stage in (1, 2, 3)])
        torch.testing.assert_close(named * 0.25 / 1.25, losses.flatten(), atol=1e-6, rtol=1e-4)
        ours.update_(out.stats)
        for layer, book in zip(theirs.layers, ours.codebooks, strict=True):
            torch.testing.assert_close(book.embed, layer._codebook.embed[0], atol=1e-5, rtol=1e-4)


def test_random_projection():
    ours = RandomProjectionQuantizer(DIM, 1, CODES, projection_dim=4)
    theirs = other.RandomProjectionQuantizer(dim=DIM, codebook_size=CODES, codebook_dim=4)
    theirs.rand_projs.copy_(ours.projection)
    theirs.vq._codebook.embed.data.copy_(ours.embed)
    z = vectors(2, 50, seed=6) * 3 + 1
    assert torch.equal(ours.encode(z)[..., 0], theirs(z))


@pytest.mark.parametrize("levels", [(3,), (5, 5), (8, 6, 5), (8, 5, 5, 5), (8, 8, 8, 5, 5, 5)])
def test_fsq(levels):
    ours, theirs = FSQQuantizer(DIM, levels), other.FSQ(list(levels), dim=DIM)
    for name in ("project_in", "project_out"):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    z, weight = (4 * vectors(3, 200, seed=7)).requires_grad_(), vectors(3, 200, seed=8)
    out, (quantized, index) = ours(z), theirs(z)
    assert torch.equal(out.codes[..., 0], index.long()) and len(index.unique()) > ours.codebook_size**0.5
    torch.testing.assert_close(out.quantized, quantized)
    every = torch.arange(ours.codebook_size)
    torch.testing.assert_close(ours.decode(every[:, None]), theirs.indices_to_codes(every))
    gradients = [
        torch.autograd.grad((value * weight).sum(), [z, *(p for p in module.parameters())])
        for value, module in ((out.quantized, ours), (quantized, theirs))
    ]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
