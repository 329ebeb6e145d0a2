"""What the papers discuss and do not adopt: labels of several codes, codebooks of several sizes, quantizer dropout."""

import json

import numpy as np
import pytest
import torch
from drawn import vectors
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config, values_for
from torch.nn import functional as F

from bridle_hf import (
    BridleConfig,
    BridleForPreTraining,
    BridleQuantizerConfig,
    BridleTokenizer,
    ProductQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    build_quantizer,
)
from bridle_hf.codebook_metrics import code_counts, usage
from bridle_hf.evaluation.metrics import load_metric
from bridle_hf.evaluation.tokens import code_layout
from bridle_hf.hub.export import to_official
from bridle_hf.losses_bridle import masked_cross_entropy
from bridle_hf.modeling_bridle import run
from bridle_hf.quantization_bridle import inner_types

DIM = 8


def with_codes(quantizer, *books):
    """The quantizer with these codes, each a list of numbers or of vectors."""
    for book, codes in zip(quantizer.codebooks, books, strict=True):
        embed = torch.tensor(codes, dtype=torch.float32).reshape(len(codes), -1)
        book.set_(embed, torch.ones(len(codes)))
    return quantizer


def model_of(options=None, seed=0, **more):
    quantizer = {"num_codebooks": 3, "codebook_size": 8, "codebook_dim": DIM, **(options or {})}
    torch.manual_seed(seed)
    more = {"input_size": (64, 32), "cold_start": False} | more
    model = BridleForPreTraining(tiny_config(quantizer_config=quantizer, **more)).eval()
    for _, buffer in model.named_buffers():
        if buffer.ndim == 2:
            buffer.copy_(torch.randn_like(buffer) * 0.3)
    return model


# --- labels of several codes ----------------------------------------------------------------------
def test_shares_of_three_codes_by_hand():
    quantizer = with_codes(ResidualQuantizer(1, 2, 3, normalize="none"), [0.0, 1.0, 3.0], [1.0, -0.5, 0.5])
    near, shares = quantizer.soft_assign(torch.tensor([[0.25]]), 2)
    # Stage 1: squared distances 1/16, 9/16, 121/16, so 16 : 16/9 = 9 : 1. Its hard code 0 leaves 1/4 for stage 2:
    # 9/16, 9/16, 1/16, of which the first of equals comes second.
    assert near.shape == shares.shape == (1, 2, 2)
    assert near[0, 0].tolist() == [0, 1] and near[0, 1, 0] == 2
    assert shares.flatten().tolist() == pytest.approx([0.9, 0.1, 0.9, 0.1])
    logits = torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 3.0]).view(1, 1, 2, 3)
    loss = masked_cross_entropy(logits, near[None, ..., 0], (near[None], shares[None]))
    first, second = logits.double().log_softmax(-1)[0, 0]
    by_hand = -(0.9 * first[0] + 0.1 * first[1]) - (0.9 * second[2] + 0.1 * second[near[0, 1, 1]])
    assert loss.count == 2 and loss.sum.item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_loss_is_torchs_cross_entropy_with_probabilities():
    logits = torch.randn(2, 5, 3, 8, requires_grad=True)
    near = torch.rand(2, 5, 3, 8).argsort(-1)[..., :4]
    shares = torch.rand(2, 5, 3, 4).softmax(-1)
    labels = near[..., 0].clone()
    labels[1, 3:] = -100
    targets = torch.zeros(2, 5, 3, 8).scatter(-1, near, shares)
    keep = labels != -100
    expected = F.cross_entropy(logits[keep], targets[keep], reduction="sum")
    loss = masked_cross_entropy(logits, labels, (near, shares))
    assert loss.count == keep.sum()
    torch.testing.assert_close(loss.sum, expected)
    (ours,), (theirs,) = (torch.autograd.grad(total, logits, retain_graph=True) for total in (loss.sum, expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours[1, 3:].any()


@pytest.mark.parametrize("options", [{}, {"type": "vector", "num_codebooks": 1}, {"type": "product"}])
@pytest.mark.parametrize("phase", ["encoder", "joint"])
def test_a_model_learns_labels_of_several_codes(options, phase):
    if options.get("type") == "product":
        options = options | {"num_codebooks": 2}
    hard, soft = model_of(options), model_of(options, soft_targets=3)
    values, noise = values_for(hard.config), torch.rand(2, hard.config.num_patches)
    plain, output = run(hard, values, noise=noise, phase=phase), run(soft, values, noise=noise, phase=phase)
    assert torch.equal(plain.logits, output.logits) and torch.equal(plain.codes, output.codes)
    near, shares = soft.tokenizer.quantizer.soft_assign(soft.tokenizer.project(values), 3)
    assert torch.equal(near[..., 0], output.codes)
    targets = torch.zeros(*output.codes.shape, 8).scatter(-1, near, shares).double()
    log_p, terms = output.logits.double().log_softmax(-1), []
    for row, masked in enumerate(output.mask):
        for slot, patch in enumerate(masked.nonzero().flatten()):
            terms.append(-(targets[row, patch] * log_p[row, slot]).sum(-1))
    assert output.losses["encoder"].mean.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)
    assert output.losses["encoder"].mean != plain.losses["encoder"].mean
    output.loss.backward()
    assert soft.decoder.head.weight.grad.isfinite().all() and soft.decoder.head.weight.grad.any()
    one = run(model_of(options, soft_targets=1), values, noise=noise, phase=phase)
    torch.testing.assert_close(one.loss, plain.loss)


def test_labels_of_several_codes_leave_padding_out_and_show_what_is_not_finite():
    model = model_of(soft_targets=2)
    values = values_for(model.config)
    mask = torch.ones(values.shape[:2], dtype=torch.long)
    mask[1, values.shape[1] // 2 :] = 0
    noise = torch.rand(2, model.config.num_patches)
    padded = run(model, values.masked_fill(mask[..., None] == 0, 7.0), mask, noise=noise)
    other = run(model, values.masked_fill(mask[..., None] == 0, -3.0), mask, noise=noise)
    assert torch.equal(padded.loss, other.loss) and (padded.labels == -100).any()
    values[0, 0, 0] = float("nan")
    assert run(model, values, noise=noise).loss.isnan()
    with pytest.raises(ValueError, match="`codes` is given; where `config.soft_targets` is not 0 the tokenizer makes"):
        run(model, values, codes=padded.codes)


# --- codebooks of several sizes -------------------------------------------------------------------
UNEVEN = [("residual", inner) for inner in inner_types("residual")]
UNEVEN += [("product", inner) for inner in inner_types("product") if inner != "fsq"]


@pytest.mark.parametrize(("outer", "inner"), UNEVEN)
def test_each_codebook_has_its_size(outer, inner):
    torch.manual_seed(0)
    config = BridleQuantizerConfig(type=outer, inner=inner, codebook_size=[12, 3], codebook_dim=DIM)
    assert (config.num_codebooks, config.codebook_sizes) == (2, (12, 3))
    quantizer = build_quantizer(config).train()
    quantizer.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    assert quantizer.codebook_sizes == (12, 3) and quantizer.codebook_size == 12
    z = vectors(50, seed=1).requires_grad_()
    out = quantizer(z)
    assert out.codes.amax(0).tolist() <= [11, 2] and out.codes[:, 0].max() > 2
    (out.quantized.square().sum() + out.loss).backward()
    assert z.grad.isfinite().all() and z.grad.any()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.update_(out.stats)
    quantizer.reset_dead_codes_(vectors(50, seed=2))
    assert inner != "vector" or any(not torch.equal(old, quantizer.state_dict()[n]) for n, old in before.items())
    other = build_quantizer(BridleQuantizerConfig(**json.loads(config.to_json_string())))
    other.load_state_dict(quantizer.state_dict())
    codes = other.eval().encode(z.detach())
    torch.testing.assert_close(other.decode(codes), other(z).quantized)
    with pytest.raises(ValueError, match=r"`codes` is in \[3, 3\] for codebook 2; it takes \[0, 2\]"):
        other.decode(torch.tensor([[0, 3]]))
    cold = build_quantizer(config, cold_start=True)
    assert cold.codebook_sizes == (12, 3)


def test_an_uneven_stage_is_an_even_one_of_its_size():
    """Codes, sums and averages of both stages are those of two quantizers of one stage."""
    quantizer = ResidualQuantizer(DIM, 2, [12, 3], normalize="none", ema_decay=0.5).train()
    quantizer.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    alone = [VectorQuantizer(DIM, size, normalize="none", ema_decay=0.5).train() for size in (12, 3)]
    for one, book in zip(alone, quantizer.codebooks, strict=True):
        one.codebooks[0].load_state_dict(book.state_dict())
    z = vectors(60, seed=1)
    out, first = quantizer(z), alone[0](z)
    second = alone[1](z - first.quantized)
    assert torch.equal(out.codes, torch.cat([first.codes, second.codes], -1))
    torch.testing.assert_close(out.quantized, first.quantized + second.quantized)
    torch.testing.assert_close(out.loss, (first.loss + second.loss) / 2)
    assert out.stats["counts"].shape == (2, 12) and not out.stats["counts"][1, 3:].any()
    for one, given in ((quantizer, out), (alone[0], first), (alone[1], second)):
        one.update_(given.stats)
    for one, book in zip(alone, quantizer.codebooks, strict=True):
        torch.testing.assert_close(book.state_dict(), one.codebooks[0].state_dict())


def test_a_model_predicts_codes_of_each_size(tmp_path):
    model = model_of({"num_codebooks": None, "codebook_size": [8, 2, 5]}, soft_targets=2)
    values, noise = values_for(model.config), torch.rand(2, model.config.num_patches)
    assert model.decoder.head.weight.shape[0] == 15
    output = run(model, values, noise=noise)
    assert output.logits.shape[2:] == (3, 8)
    assert output.logits[..., 1, 2:].isneginf().all() and output.logits[..., 2, 5:].isneginf().all()
    assert output.logits.isfinite().sum() == output.logits[..., 0].numel() // 3 * 15
    assert output.codes.flatten(0, 1).amax(0).tolist() <= [7, 1, 4]
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(part.any() for part in model.decoder.head.weight.grad.split((8, 2, 5)))
    plain = model_of({"num_codebooks": None, "codebook_size": [8, 2, 5]})
    head = plain.decoder.head(plain.decoder.norm(torch.randn(2, 4, plain.config.decoder_hidden_size)))
    assert head.shape[-1] == 15
    hard = run(plain, values, noise=noise)
    parts = [hard.logits[..., m, :size].flatten(0, 1) for m, size in enumerate((8, 2, 5))]
    labels = hard.labels.flatten(0, 1)
    expected = torch.stack([F.cross_entropy(part, labels[:, m]) for m, part in enumerate(parts)]).mean()
    torch.testing.assert_close(hard.loss, expected)
    model.save_pretrained(tmp_path)
    loaded = BridleForPreTraining.from_pretrained(tmp_path).eval()
    assert loaded.config.quantizer_config.codebook_sizes == (8, 2, 5) and loaded.config.soft_targets == 2
    assert torch.equal(run(loaded, values, noise=noise).loss, output.loss)
    tokenizer = BridleTokenizer.from_pretrained(tmp_path).eval()
    assert torch.equal(tokenizer.encode(values), output.codes)
    with pytest.raises(
        ValueError, match=r"`quantizer_config.codebook_size` is \[8, 2, 5\]; the reference has codebooks"
    ):
        to_official(model)


def test_the_use_of_uneven_codebooks_by_hand():
    codes = np.array([[0, 0], [1, 1], [2, 0], [3, 1]])
    counts = code_counts(codes, [8, 2])
    assert counts.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0, 0, 0]]
    used = usage(counts, [8, 2])
    assert used["cur"].tolist() == [0.5, 1.0] and used["dead"].tolist() == [4, 0]
    assert used["entropy"].tolist() == [2, 1] and used["ecu"].tolist() == pytest.approx([0.5 * 2 / 3, 1.0])
    with pytest.raises(ValueError, match=r"codes: got values 0\.\.3"):
        code_counts(codes, [8, 1])
    metric = load_metric("code_usage").compute(predictions=codes, codebook_size=[8, 2])
    assert metric == {name: used[name].tolist() for name in metric}
    config = BridleConfig(modality="image", quantizer_config={"codebook_size": [8, 2]})
    assert code_layout(config, None)["codebook_size"] == [8, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"codebook_size": [8, 4], "num_codebooks": 3},
            r"`codebook_size` is \[8, 4\]; it takes one number, or one per",
        ),
        ({"codebook_size": [8, 0]}, "`codebook_size` is 0; it takes a whole number from 1"),
        ({"type": "vector", "codebook_size": [8]}, r"`codebook_size` is \[8\]; a quantizer of type 'vector' takes one"),
        ({"codebook_size": [8, 4], "soft_codes": 5}, "`soft_codes` is 5; it takes 0 to 4, `codebook_size`"),
        ({"inner": "smoothed", "codebook_size": [8, 4], "num_vertices": 5}, "`num_vertices` is 5; it takes 1 to 4"),
        ({"type": "product", "inner": "fsq", "codebook_size": [8, 4]}, "'fsq' has 1000, the product of `levels`"),
        ({"quantizer_dropout": 1.5}, "`quantizer_dropout` is 1.5; it takes 0 to 1"),
        ({"type": "vector", "quantizer_dropout": 0.5}, "`quantizer_dropout` is 0.5; .* 'vector' takes 0"),
    ],
)
def test_what_the_quantizer_refuses(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        BridleQuantizerConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soft_targets": 300}, "`soft_targets` is 300; it takes 0 to 256, `codebook_size`"),
        ({"soft_targets": 2, "quantizer_config": {"inner": "simvq"}}, "`soft_targets` is 2; .* 'simvq' takes 0"),
    ],
)
def test_what_the_model_refuses(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        BridleConfig(**options)


# --- quantizer dropout ----------------------------------------------------------------------------
def dropping(inner, share=1.0, books=4):
    torch.manual_seed(0)
    more = {"regularizer": "none", "gumbel": "none"} if inner == "smoothed" else {}
    sizes = {"num_codebooks": books, "codebook_size": 6, "codebook_dim": DIM, "quantizer_dropout": share}
    quantizer = build_quantizer(BridleQuantizerConfig(inner=inner, normalize="none", **sizes, **more)).train()
    quantizer.initialize_(vectors(400), generator=torch.Generator().manual_seed(0))
    return quantizer


@pytest.mark.parametrize("inner", ["vector", "gradient", "simvq"])
def test_dropout_keeps_the_first_codebooks_of_a_sample(inner):
    quantizer, z = dropping(inner), vectors(40, 5, seed=1)
    torch.manual_seed(1)
    out = quantizer(z)
    assert torch.equal(out.codes, quantizer.encode(z))  # those of all stages
    decoded = torch.stack([quantizer.decode(out.codes[..., :m]) for m in range(1, 5)])  # (4, 40, 5, d)
    away = (decoded - out.quantized).abs().amax(dim=(2, 3))  # (4, 40)
    kept = away.argmin(0) + 1
    assert away.amin(0).max() < 1e-5 and set(kept.tolist()) == {1, 2, 3, 4}
    # A stage learns from the samples that reach it: mean squares over those rows and the dimensions.
    losses = []
    for stage in range(4):
        rows = kept > stage
        error = (z - decoded[stage])[rows].double().square().mean()
        losses.append(error * (1 + (0.25 if inner == "vector" else 1.0)))
        assert out.losses[f"codebook_{stage + 1}"].item() == pytest.approx(losses[-1].item(), rel=1e-5)
    assert out.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    if inner == "vector":
        for stage in range(4):
            rows = out.codes[kept > stage][..., stage]
            assert out.stats["counts"][stage].tolist() == rows.flatten().bincount(minlength=6).tolist()


@pytest.mark.parametrize("inner", ["vector", "gradient", "simvq", "smoothed"])
def test_dropout_is_for_training_and_can_befall_a_share(inner):
    quantizer, z = dropping(inner, share=0.5), vectors(400, 2, seed=1)
    out = quantizer.eval()(z)
    torch.testing.assert_close(out.quantized, quantizer.decode(out.codes))
    torch.manual_seed(1)
    weights = torch.stack(quantizer.train().stage_weights(z, None))  # (4, n)
    kept = weights.sum(0).view(400, 2)
    assert torch.equal(kept[:, 0], kept[:, 1])  # a sample as a whole
    # whole: a half, and a quarter of the other half
    assert [(kept[:, 0] == m).float().mean().item() for m in (1, 2, 3, 4)] == pytest.approx(
        [0.125] * 3 + [0.625], abs=0.05
    )


@pytest.mark.parametrize("inner", ["vector", "gradient", "simvq", "smoothed"])
def test_gradients_of_dropped_stages_are_zero(inner):
    quantizer, z = dropping(inner, books=2), vectors(30, seed=1).requires_grad_()
    valid = torch.ones(30)
    quantizer.stage_weights = lambda z, valid: [torch.ones(30), torch.zeros(30)]  # every sample stops after stage 1
    out = quantizer(z, mask=valid)
    (out.quantized.square().sum() + out.loss).backward()
    assert z.grad.isfinite().all() and z.grad.any()
    first, second = quantizer.codebooks
    assert all(p.grad is None or not p.grad.any() for p in second.parameters())
    assert inner == "vector" or any(p.grad.any() for p in first.parameters() if p.grad is not None)
    assert out.losses["codebook_2"] == 0


def test_dropout_goes_through_a_model_and_its_config(tmp_path):
    model = model_of({"quantizer_dropout": 1.0})
    assert model.tokenizer.quantizer.quantizer_dropout == 1.0
    values = values_for(model.config)
    plain = model_of()
    noise = torch.rand(2, model.config.num_patches)
    assert torch.equal(run(model, values, noise=noise).loss, run(plain, values, noise=noise).loss)  # evaluation
    torch.manual_seed(5)
    output = run(model.train(), values, phase="tokenizer")
    output.loss.backward()
    counts = output.quantizer_stats["counts"].sum(-1)
    assert counts[0] == output.codes[..., 0].numel() and (counts.diff() <= 0).all()
    model.save_pretrained(tmp_path)
    assert BridleTokenizer.from_pretrained(tmp_path).quantizer.quantizer_dropout == 1.0


def test_a_product_takes_targets_of_its_groups():
    groups = [with_codes(VectorQuantizer(1, 2, normalize="none"), codes) for codes in ([0.0, 1.0], [0.0, 4.0])]
    near, shares = ProductQuantizer(groups).soft_assign(torch.tensor([[0.25, 3.0]]), 2)
    assert near.tolist() == [[[0, 1], [1, 0]]]
    assert shares.flatten().tolist() == pytest.approx([0.9, 0.1, 0.9, 0.1])
