"""Every type by its config: one interface, padding, precision, saving; and the product of several."""

import itertools

import pytest
import torch
from drawn import CODES, DIM, seeded, vectors

from bridle_hf import (
    BridleQuantizerConfig,
    GradientQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    SimVQQuantizer,
    SmoothedQuantizer,
    VectorQuantizer,
    build_quantizer,
)
from bridle_hf.training import parameter_groups

INNER = ("vector", "gradient", "simvq", "smoothed")
KINDS = [{"type": kind} for kind in INNER]
KINDS += [{"type": outer, "inner": inner} for outer, inner in itertools.product(("residual", "product"), INNER)]
KINDS += [{"type": "gradient", "distance": "cosine", "estimator": "rotation"}, {"type": "random_projection"}]
KINDS += [
    {"type": "smoothed", "regularizer": regularizer, "gumbel": gumbel}
    for regularizer, gumbel in (("knn_l2", "soft"), ("perplexity", "hard"), ("none", "none"))
]


def built(options, **more):
    torch.manual_seed(3)
    several = {} if options["type"] in INNER else {"num_codebooks": 2}
    sizes = {"codebook_size": CODES, "codebook_dim": DIM, **several}
    quantizer = build_quantizer(BridleQuantizerConfig(**sizes, **options, **more))
    if not quantizer.initialized:
        quantizer.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    return quantizer


@pytest.fixture(params=KINDS, ids=lambda options: "-".join(options.values()))
def kind(request):
    return request.param


def test_one_interface(kind):
    quantizer = built(kind).train()
    z = vectors(3, 20, seed=1).requires_grad_()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    books = 1 if kind["type"] in INNER else 2
    out = quantizer(z)
    assert out.codes.shape == (3, 20, books) and out.codes.dtype == torch.int64
    assert out.quantized.shape == (3, 20, DIM) and out.quantized.dtype == out.loss.dtype == torch.float32
    assert (quantizer.num_codebooks, quantizer.codebook_size, quantizer.dim) == (books, CODES, DIM)
    assert torch.equal(quantizer.encode(z), out.codes)
    assert torch.equal(out.losses["codebook"], out.loss)
    (gradient,) = torch.autograd.grad((out.quantized * vectors(3, 20, seed=2)).sum() + out.loss, z)
    assert gradient.isfinite().all() and gradient.any()
    assert all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())
    if out.stats is not None:
        quantizer.update_(out.stats)
    quantizer.eval()
    out = quantizer(z)
    assert out.stats is None
    assert torch.equal(quantizer.decode(out.codes), out.quantized)
    assert quantizer.reset_dead_codes_(z.detach()) in range(CODES)


def test_padding_counts_for_nothing(kind):
    quantizer = built(kind).train()
    z, mask = vectors(2, 9, seed=1), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    torch.manual_seed(0)
    alone = quantizer(z[mask])
    padded = z.clone()
    padded[1, 4:] = float("nan")
    padded.requires_grad_()
    out = quantizer(padded, mask=mask)
    assert torch.equal(out.codes[mask], alone.codes)
    torch.testing.assert_close(out.loss, alone.loss)
    (gradient,) = torch.autograd.grad(out.loss + out.quantized.sum(), padded)
    assert gradient.isfinite().all() and not gradient[1, 4:].any()


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_nothing_valid_gives_zero_loss(kind, shape):
    quantizer = built(kind).train()
    z = vectors(*shape).requires_grad_()
    out = quantizer(z, mask=torch.zeros(shape))
    assert out.codes.shape[:-1] == shape and out.loss == 0
    (out.loss + 0 * out.quantized.sum()).backward()
    assert not z.grad.any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in quantizer.parameters())


def test_autocast_changes_nothing(kind):
    quantizer, z = built(kind).eval(), vectors(200, seed=4)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(z)
        assert torch.equal(quantizer.encode(z), plain.codes)
    assert torch.equal(inside.quantized, plain.quantized) and torch.equal(inside.loss, plain.loss)


def test_non_finite_input_shows(kind):
    quantizer, z = built(kind).train(), vectors(40)
    z[3, 2] = float("nan")
    with pytest.raises(ValueError, match="z holds NaN or inf, must be finite"):
        quantizer.encode(z)
    out = quantizer(z)
    assert not (out.loss + out.quantized.sum()).isfinite()


def test_state_survives_a_save(kind):
    quantizer, other = built(kind).eval(), built(kind).eval()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1.1).add_(0.1)
    other.load_state_dict(quantizer.state_dict())
    z = vectors(30)
    assert torch.equal(other(z).quantized, quantizer(z).quantized)


def test_what_learns_is_a_parameter_and_scalars_do_not_decay(kind):
    quantizer = built(kind)
    learned = {name.rsplit(".")[-1] for name, _ in quantizer.named_parameters()}
    codebook = kind.get("inner", kind["type"])
    expected = {"gradient": {"embed"}, "simvq": {"weight"}, "smoothed": {"embed", "log_t"}}
    assert learned == expected.get(codebook, set())
    decays = {
        name.rsplit(".")[-1]: group["weight_decay"]
        for group in parameter_groups(quantizer, 1.0, 0.1)
        for name in group["names"]
    }
    assert decays == {name: 0.0 if name == "log_t" else 0.1 for name in learned}
    tensors = [*quantizer.parameters(), *quantizer.buffers()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert all(parameter.ndim > 0 for parameter in quantizer.parameters())  # FSDP2 shards no scalars


def test_build_quantizer_reads_every_field():
    options = {"codebook_size": 6, "codebook_dim": 8, "normalize": "none"}
    hard = build_quantizer(
        BridleQuantizerConfig(type="residual", inner="simvq", num_codebooks=3, distance="cosine",
                              estimator="rotation", commitment_weight=0.7, **options)
    )  # fmt: skip
    assert type(hard) is SimVQQuantizer and len(hard.codebooks) == 3 and hard.normalize == "none"
    book = hard.codebooks[2]
    assert (hard.estimator, book.distance, book.commitment_weight) == ("rotation", "cosine", 0.7)
    assert not torch.equal(hard.codebooks[0].frozen, book.frozen)
    said = {"temperature": 0.2, "gumbel": "hard", "gumbel_schedule": (2.0, 0.5, 0.9), "regularizer": "knn_l2",
            "regularizer_weight": 0.3, "num_neighbors": 4, "num_vertices": 5, "commitment_weight": 0.6}  # fmt: skip
    smoothed = build_quantizer(BridleQuantizerConfig(type="product", inner="smoothed", **said, **options))
    book = smoothed.groups[1].codebooks[0]
    assert type(smoothed) is ProductQuantizer and len(smoothed.groups) == 2 and book.embed.shape == (6, 4)
    said["start_temperature"] = said.pop("temperature")
    assert {name: getattr(book, name) for name in said} == said
    default = BridleQuantizerConfig(type="product", codebook_dim=256)
    assert (default.num_codebooks, default.codebook_size, default.inner) == (2, 320, "vector")
    betas = [BridleQuantizerConfig(type=kind).commitment_weight for kind in ("gradient", "vector", "smoothed")]
    assert betas == [1.0, 0.25, 0.0]


@pytest.mark.parametrize("outer", ["residual", "product"])
def test_untrained_codes_give_way_in_the_cold_start(outer):
    config = BridleQuantizerConfig(type=outer, inner="smoothed", num_codebooks=2, codebook_size=6, codebook_dim=8)
    cold = build_quantizer(config, cold_start=True)
    assert type(cold) is ResidualQuantizer and not list(cold.parameters())
    assert (cold.num_codebooks, cold.codebook_size, cold.dim) == (2, 6, 8)
    ema = BridleQuantizerConfig(type=outer, num_codebooks=2, codebook_size=6, codebook_dim=8)
    assert type(build_quantizer(ema, cold_start=True)) is type(build_quantizer(ema))


def test_errors_name_what_is_wrong():
    for message, call in [
        ("estimator is 'soft', must be one of ste, rotation", lambda: GradientQuantizer(DIM, estimator="soft")),
        ("distance is 'l1', must be one of euclidean, cosine", lambda: SimVQQuantizer(DIM, distance="l1")),
        ("normalize is 'per_stage', must be one of once, none", lambda: GradientQuantizer(DIM, normalize="per_stage")),
        ("gumbel is True, must be one of none, soft, hard", lambda: SmoothedQuantizer(DIM, gumbel=True)),
        ("regularizer is 'knn', must be one of none, perp", lambda: SmoothedQuantizer(DIM, regularizer="knn")),
        ("temperature is 2, must be from 0.01 to 1.0", lambda: SmoothedQuantizer(DIM, temperature=2)),
        ("num_neighbors is 9, must be from 1 to the number of assignments, 4",
         lambda: SmoothedQuantizer(DIM, 1, CODES, num_neighbors=9)(vectors(4))),
        (r"mask is \(4,\), must be \(3,\)", lambda: GradientQuantizer(DIM, 1, CODES)(vectors(3), torch.ones(4))),
        (r"codes is in \[0, 12\], must be in \[0, 11\]",
         lambda: GradientQuantizer(DIM, 1, CODES).decode(torch.tensor([[0], [12]]))),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


# --- product --------------------------------------------------------------------------------------
def test_product_is_its_groups_side_by_side():
    groups = [seeded(SmoothedQuantizer, 3, 1, CODES), seeded(GradientQuantizer, 5, 2, CODES)]
    product = ProductQuantizer(groups)
    z = vectors(2, 20)
    out, parts = product(z), [groups[0](z[..., :3]), groups[1](z[..., 3:])]
    assert (product.dim, product.num_codebooks, product.codebook_size) == (8, 3, CODES)
    assert torch.equal(out.quantized, torch.cat([part.quantized for part in parts], -1))
    assert torch.equal(out.codes, torch.cat([part.codes for part in parts], -1))
    assert torch.equal(out.loss, (parts[0].loss + parts[1].loss) / 2)
    assert torch.equal(out.losses["codebook_1"], parts[0].loss)
    assert torch.equal(out.losses["codebook_3"], parts[1].losses["codebook_2"])
    assert torch.equal(product.encode(z), out.codes)
    product.eval()
    torch.testing.assert_close(product.decode(out.codes), product(z).quantized)
    with pytest.raises(ValueError, match=r"groups have codebook sizes \[3, 12\], must have one in common"):
        ProductQuantizer([groups[0], GradientQuantizer(5, 1, 3)])
    with pytest.raises(ValueError, match="z is .* must be floating point with last dimension 8"):
        product(vectors(3, dim=7))


def test_product_of_ema_codebooks_moves_each_by_its_own_statistics():
    torch.manual_seed(0)
    product, alone = (
        ProductQuantizer([VectorQuantizer(4, CODES, ema_decay=0.5) for _ in range(2)]),
        [VectorQuantizer(4, CODES, ema_decay=0.5) for _ in range(2)],
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
    with pytest.raises(ValueError, match="stats is None"):
        product.update_(None)
