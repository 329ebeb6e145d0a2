"""The contract, over every type of the registry and inside each other: members, verbs, precision, saving, config."""

import copy
from types import SimpleNamespace

import pytest
import torch
from drawn import CODES, DIM, vectors
from torch import nn

from bridle_hf import (
    BridleQuantizerConfig,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    build_quantizer,
)
from bridle_hf.quantization_bridle import (
    QUANTIZERS,
    ProductQuantizer,
    Quantizer,
    QuantizerOutput,
    arguments,
    inner_types,
    register,
)
from bridle_hf.training import parameter_groups

STRUCTURES = ("residual", "product")
KINDS = [{"type": name} for name in QUANTIZERS if name not in STRUCTURES]
KINDS += [{"type": outer, "inner": inner} for outer in STRUCTURES for inner in inner_types(outer)]
KINDS += [{"type": "gradient", "distance": "cosine", "estimator": "rotation"}]
KINDS += [
    {"type": "smoothed", "regularizer": regularizer, "gumbel": gumbel}
    for regularizer, gumbel in (("knn_l2", "soft"), ("perplexity", "hard"), ("none", "none"))
]
SIZES = {"codebook_size": CODES, "codebook_dim": DIM, "levels": (4, 3)}  # the levels of FSQ have CODES combinations


def config_of(options, **more):
    several = {"num_codebooks": 2} if QUANTIZERS[options["type"]].num_codebooks > 1 else {}
    return BridleQuantizerConfig(**SIZES | several | options | more)


def built(options, **more):
    torch.manual_seed(3)
    quantizer = build_quantizer(config_of(options, **more))
    if not quantizer.initialized:
        quantizer.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    return quantizer


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def is_ema(options):
    return options.get("inner", options["type"]) == "vector"


@pytest.fixture(params=KINDS, ids=lambda options: "-".join(options.values()))
def kind(request):
    return request.param


# --- the contract ---------------------------------------------------------------------------------
def test_the_base_class_has_every_member_and_its_verbs_do_nothing():
    quantizer = Quantizer(DIM, 1, CODES)
    assert (quantizer.dim, quantizer.num_codebooks, quantizer.codebook_size) == (DIM, 1, CODES)
    assert quantizer.initialized and quantizer.init_sample_size == 0 and len(quantizer.codebooks) == 0
    assert quantizer.initialize_(vectors(3)) is None and quantizer.update_(None) is None
    assert quantizer.reset_dead_codes_(vectors(3)) == 0
    for call in (quantizer.assign, quantizer.decode, quantizer, lambda z: quantizer.soft_assign(z, 2)):
        with pytest.raises(NotImplementedError):
            call(vectors(3))


def test_one_interface(kind):
    quantizer = built(kind).train()
    z = vectors(3, 20, seed=1).requires_grad_()
    state = state_of(quantizer)
    books = config_of(kind).num_codebooks
    out = quantizer(z)
    assert isinstance(quantizer, Quantizer) and isinstance(out, QuantizerOutput)
    assert out.codes.shape == (3, 20, books) and out.codes.dtype == torch.int64
    assert out.codes.min() >= 0 and 3 < out.codes.unique().numel() <= CODES
    assert out.quantized.shape == (3, 20, DIM) and out.quantized.dtype == out.loss.dtype == torch.float32
    assert (quantizer.num_codebooks, quantizer.codebook_size, quantizer.dim) == (books, CODES, DIM)
    assert quantizer.initialized is True and (quantizer.init_sample_size > 0) == is_ema(kind)
    assert len(quantizer.codebooks) in (0, books)
    assert all(book.embed.shape == (CODES, DIM) for book in quantizer.codebooks)
    assert torch.equal(quantizer.encode(z), out.codes) and torch.equal(quantizer.assign(z), out.codes)
    assert torch.equal(out.losses["codebook"], out.loss)
    assert set(out.losses) <= {"codebook", *(f"codebook_{stage}" for stage in range(1, books + 1))}
    (gradient,) = torch.autograd.grad((out.quantized * vectors(3, 20, seed=2)).sum() + out.loss, z)
    assert gradient.isfinite().all() and gradient.any()
    assert same(state, state_of(quantizer))
    quantizer.eval()
    out = quantizer(z)
    assert out.stats is None
    assert torch.equal(quantizer.decode(out.codes), out.quantized)
    assert same(state, state_of(quantizer))


def test_verbs_move_ema_codebooks_alone(kind):
    quantizer, z = built(kind).train(), vectors(100, seed=1)
    for verb in ("initialize_", "update_", "reset_dead_codes_"):
        state = state_of(quantizer)
        given = quantizer(z).stats if verb == "update_" else 2 * z
        if verb == "update_" and is_ema(kind):
            with pytest.raises(ValueError, match="`stats` is None"):
                quantizer.update_(None)
        returned = getattr(quantizer, verb)(given)
        assert same(state, state_of(quantizer)) != is_ema(kind) or verb == "reset_dead_codes_"
        assert returned is None if verb != "reset_dead_codes_" else returned in range(CODES)
    if not is_ema(kind):
        assert quantizer.reset_dead_codes_(z) == 0 and same(state, state_of(quantizer))
        quantizer.update_(None)
        assert same(state, state_of(quantizer))


def test_codes_are_the_same_in_batch_and_alone(kind):
    quantizer, z = built(kind).eval(), vectors(6, 11, seed=3)
    together = quantizer.encode(z)
    assert torch.equal(torch.stack([quantizer.encode(one) for one in z]), together)
    assert torch.equal(torch.stack([quantizer.encode(one) for one in z[0]]), together[0])


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
    quantizer, z = built(kind).eval(), vectors(500, seed=4)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, low = quantizer(z), quantizer(z.bfloat16())
        assert torch.equal(quantizer.encode(z), plain.codes)
        assert quantizer.decode(plain.codes).dtype == torch.float32
    assert torch.equal(inside.codes, plain.codes)
    assert torch.equal(inside.quantized, plain.quantized) and torch.equal(inside.loss, plain.loss)
    assert low.quantized.dtype == low.loss.dtype == torch.float32
    assert torch.equal(low.codes, quantizer(z.bfloat16().float()).codes)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_leaves_the_state_in_float32(kind, precision):
    quantizer, z = built(kind).eval(), vectors(50, seed=4)
    model = nn.ModuleDict({"quantizer": copy.deepcopy(quantizer)}).to(precision)
    state = state_of(model["quantizer"])
    assert all(value.dtype == torch.float32 for value in state.values()) and same(state, state_of(quantizer))
    assert torch.equal(model["quantizer"].encode(z), quantizer.encode(z))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_shows(kind, value):
    quantizer, z = built(kind).train(), vectors(40)
    z[3, 2] = value
    with pytest.raises(ValueError, match="`z` holds NaN or inf; it takes finite values"):
        quantizer.encode(z)
    out = quantizer(z)
    assert not (out.loss + out.quantized.sum()).isfinite()
    assert 0 <= out.codes.min() <= out.codes.max() < CODES


def test_bad_input_is_named(kind):
    quantizer, books = built(kind), config_of(kind).num_codebooks
    for call, message in [
        (lambda: quantizer.encode(vectors(3, dim=7)), r"`z` is \(3, 7\) torch.float32; .* last dimension 8"),
        (lambda: quantizer.encode(torch.zeros(3, DIM, dtype=torch.int64)), r"`z` is .*int64; it takes floating point"),
        (lambda: quantizer.decode(torch.zeros(3, books)), r"`codes` is .*float32; it takes integers"),
        (lambda: quantizer.decode(torch.full((3, books), CODES)), r"`codes` is in \[12, 12\]; it takes \[0, 11\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_state_survives_a_save(kind):
    quantizer, other = built(kind).eval(), built(kind).eval()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1.1).add_(0.1)
    other.load_state_dict(quantizer.state_dict())
    z = vectors(30)
    assert torch.equal(other(z).quantized, quantizer(z).quantized)


NAMES = {
    "vector": {"embed", "embed_sum", "cluster_size", "initialized"},
    "gradient": {"embed"},
    "simvq": {"frozen", "weight"},
    "smoothed": {"embed", "log_t", "tau"},
}
WHOLE = {
    "random_projection": {"projection", "embed"},
    "fsq": {"levels", "project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias"},
}
LEARNED = {
    "gradient": {"embed"},
    "simvq": {"weight"},
    "smoothed": {"embed", "log_t"},
    "fsq": {"weight", "bias"},
}


def test_names_in_checkpoints_stay(kind):
    books, inner = config_of(kind).num_codebooks, kind.get("inner", kind["type"])
    product = kind["type"] == "product"
    stages = [f"codebooks.{stage}.{name}" for stage in range(1 if product else books) for name in NAMES.get(inner, ())]
    names = WHOLE.get(inner, stages)
    expected = {f"groups.{group}.{name}" for group in range(books) for name in names} if product else set(names)
    assert set(built(kind).state_dict()) == expected


def test_what_learns_is_a_parameter_and_vectors_do_not_decay(kind):
    quantizer, inner = built(kind), kind.get("inner", kind["type"])
    learned = {name.rsplit(".")[-1] for name, _ in quantizer.named_parameters()}
    assert learned == LEARNED.get(inner, set())
    assert QUANTIZERS[inner].cls.learned == bool(learned)
    decays = {
        name.rsplit(".")[-1]: group["weight_decay"]
        for group in parameter_groups(quantizer, 1.0, 0.1)
        for name in group["names"]
    }
    assert decays == {name: 0.0 if name in ("log_t", "bias") else 0.1 for name in learned}
    tensors = [*quantizer.parameters(), *quantizer.buffers()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert all(parameter.ndim > 0 for parameter in quantizer.parameters())  # FSDP2 shards no scalars


# --- from a config --------------------------------------------------------------------------------
EMA = (
    "ema_decay ema_epsilon ema_mode commitment_weight normalize codebook_init kmeans_iterations "
    "kmeans_samples_per_code reset_threshold reset_min_count soft_codes quantizer_dropout"
)
OPTIONS = {
    "residual": f"num_codebooks codebook_size {EMA}",
    "vector": f"codebook_size {EMA}",
    "gradient": "num_codebooks codebook_size distance estimator commitment_weight normalize quantizer_dropout",
    "simvq": "num_codebooks codebook_size distance estimator commitment_weight normalize quantizer_dropout",
    "smoothed": "num_codebooks codebook_size temperature gumbel gumbel_schedule regularizer regularizer_weight "
    "num_neighbors num_vertices commitment_weight codebook_weight normalize quantizer_dropout",
    "random_projection": "num_codebooks codebook_size projection_dim",
    "product": "groups",
    "fsq": "levels",
}


def test_options_are_the_arguments_of_the_classes():
    ours = {name: entry.cls for name, entry in QUANTIZERS.items() if entry.cls.__module__.startswith("bridle_hf.")}
    assert {name: set(arguments(cls)) - {"dim"} for name, cls in ours.items()} == {
        name: set(options.split()) for name, options in OPTIONS.items()
    }
    fields = set(BridleQuantizerConfig().to_dict())
    unset = {option for options in OPTIONS.values() for option in options.split()} - fields
    assert unset == {"projection_dim", "groups"}  # all others can be set by a config


def test_build_quantizer_reads_every_field():
    options = {"codebook_size": 6, "codebook_dim": 8, "normalize": "none"}
    hard = build_quantizer(
        BridleQuantizerConfig(type="residual", inner="simvq", num_codebooks=3, distance="cosine",
                              estimator="rotation", commitment_weight=0.7, **options)
    )  # fmt: skip
    assert type(hard) is QUANTIZERS["simvq"].cls and len(hard.codebooks) == 3 and hard.normalize == "none"
    book = hard.codebooks[2]
    assert (hard.estimator, book.distance, book.commitment_weight) == ("rotation", "cosine", 0.7)
    assert not torch.equal(hard.codebooks[0].frozen, book.frozen)
    said = {"temperature": 0.2, "gumbel": "hard", "gumbel_schedule": (2.0, 0.5, 0.9), "regularizer": "knn_l2",
            "regularizer_weight": 0.3, "num_neighbors": 4, "num_vertices": 5, "commitment_weight": 0.6,
            "codebook_weight": 0.8}  # fmt: skip
    smoothed = build_quantizer(BridleQuantizerConfig(type="product", inner="smoothed", **said, **options))
    book = smoothed.groups[1].codebooks[0]
    assert type(smoothed) is ProductQuantizer and len(smoothed.groups) == 2 and book.embed.shape == (6, 4)
    said["start_temperature"] = said.pop("temperature")
    assert {name: getattr(book, name) for name in said} == said
    fsq = build_quantizer(BridleQuantizerConfig(type="fsq", codebook_dim=8, levels=(5, 4)))
    assert fsq.project_in.weight.shape == (2, 8) and fsq.levels.tolist() == [5, 4]


def test_build_quantizer_reads_every_field_of_ema_codebooks():
    config = BridleQuantizerConfig(
        num_codebooks=2, codebook_size=8, codebook_dim=4, ema_decay=0.5, ema_epsilon=0.1, ema_mode="official",
        commitment_weight=1.0, normalize="none", codebook_init="sample", kmeans_iterations=3,
        kmeans_samples_per_code=5, reset_threshold=0.2, reset_min_count=3, soft_codes=2,
    )  # fmt: skip
    quantizer = build_quantizer(config)
    book = quantizer.codebooks[1]
    assert type(quantizer) is ResidualQuantizer and len(quantizer.codebooks) == 2
    assert (book.num_codes, book.dim, book.decay, book.epsilon, book.rule) == (8, 4, 0.5, 0.1, "blend")
    assert (quantizer.commitment_weight, quantizer.normalize, quantizer.codebook_init) == (1.0, "none", "sample")
    assert (quantizer.kmeans_iterations, quantizer.init_sample_size) == (3, 40)
    assert (quantizer.reset_threshold, quantizer.reset_min_count, quantizer.soft_codes) == (0.2, 3, 2)
    vector = build_quantizer(BridleQuantizerConfig(type="vector", codebook_dim=4, ema_mode="official"))
    assert type(vector) is VectorQuantizer and vector.codebooks[0].rule == "blend_unit"
    product = build_quantizer(BridleQuantizerConfig(type="product", codebook_dim=4, ema_mode="official"))
    assert [type(group) for group in product.groups] == [ResidualQuantizer] * 2
    random = build_quantizer(BridleQuantizerConfig(type="random_projection", codebook_dim=4))
    assert type(random) is RandomProjectionQuantizer and random.encode(torch.randn(3, 4)).shape == (3, 4)


@pytest.mark.parametrize("name", [name for name, entry in QUANTIZERS.items() if entry.cls.learned])
def test_untrained_codes_give_way_in_the_cold_start(name):
    for options in [{"type": name}, *({"type": outer, "inner": name} for outer in STRUCTURES)]:
        if options["type"] == "residual" and name not in inner_types("residual"):
            continue
        cold = build_quantizer(config_of(options), cold_start=True)
        assert type(cold) is ResidualQuantizer and not list(cold.parameters())
        sizes = (config_of(options).num_codebooks, CODES, DIM)
        assert (cold.num_codebooks, cold.codebook_size, cold.dim) == sizes


def test_codes_that_start_from_data_are_the_same_in_the_cold_start():
    for options in KINDS:
        if not QUANTIZERS[options.get("inner", options["type"])].cls.learned:
            quantizers = [build_quantizer(config_of(options), cold_start=cold) for cold in (True, False)]
            assert type(quantizers[0]) is type(quantizers[1])
            assert same(state_of(quantizers[0]), state_of(quantizers[1]))


def test_an_unknown_type_is_named():
    with pytest.raises(ValueError, match="`type` is 'gumble'; it takes one of 'residual', 'vector', 'product'"):
        build_quantizer(SimpleNamespace(type="gumble"))


def test_a_registered_class_is_a_type_of_the_config():
    @register("sign", codebook_size=2)
    class SignQuantizer(Quantizer):
        """The sign of the first number, in units of an option that a config has."""

        def __init__(self, dim, *, temperature=1.0):
            super().__init__(dim, 1, 2)
            self.temperature = temperature

        def assign(self, z):
            return (z[..., :1] > 0).long()

    try:
        quantizer = build_quantizer(BridleQuantizerConfig(type="sign", codebook_dim=4, temperature=0.5))
        assert type(quantizer) is SignQuantizer and quantizer.temperature == 0.5
        assert quantizer.encode(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])).tolist() == [[1], [0]]
        product = build_quantizer(BridleQuantizerConfig(type="product", inner="sign", codebook_size=2, codebook_dim=4))
        assert product.encode(torch.tensor([[1.0, 0, -1, 0]])).tolist() == [[1, 0]]
        with pytest.raises(Exception, match="`inner` is 'sign'; type 'residual' takes 'vector' or 'gradient'"):
            BridleQuantizerConfig(inner="sign")
    finally:
        del QUANTIZERS["sign"]


@pytest.mark.parametrize("inner", inner_types("product"))
def test_every_inner_type_stands_in_a_product_as_it_stands_alone(inner):
    product, z = built({"type": "product", "inner": inner}).eval(), vectors(20)
    assert [type(group) for group in product.groups] == [QUANTIZERS[inner].inner_class] * 2
    parts = [group(part) for group, part in zip(product.groups, z.split(DIM // 2, dim=-1), strict=True)]
    assert torch.equal(product(z).codes, torch.cat([part.codes for part in parts], -1))
    assert torch.equal(product(z).quantized, torch.cat([part.quantized for part in parts], -1))
