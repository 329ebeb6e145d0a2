"""Tokenizer and pretraining: losses against float64, what each phase trains, padding, precision, saving and loading."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import padded_pair, tiny_config, values_for

from bridle_hf.modeling_bridle import (
    BridleForAudioClassification,
    BridleForPreTraining,
    BridleModel,
    BridleTokenizer,
    run,
)

SIZES = {
    "audio": {"input_size": (64, 8), "patch_size": (4, 4), "decoder_window_size": (4, 2)},  # 16 x 2 patches
    "image": {"input_size": (12, 16), "patch_size": (4, 4)},
    "video": {"input_size": (4, 8, 8), "patch_size": (2, 4, 4)},
}
PHASES = ("encoder", "tokenizer", "joint")


def tiny(modality="audio", **options):
    quantizer = {"num_codebooks": 3, "codebook_size": 8, "codebook_dim": 6}
    return tiny_config(modality, **({**SIZES[modality], "quantizer_config": quantizer} | options))


def build(cls=BridleForPreTraining, seed=0, **options):
    """A model in eval mode whose every weight and codebook differs from its initial value."""
    torch.manual_seed(seed)
    model = cls(tiny(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("embed"):
                buffer.copy_(torch.randn_like(buffer) * 0.3)
    return model


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", SIZES)
def test_encoder_loss_is_the_mean_over_masked_patches_and_codebooks(modality):
    model = build(modality=modality)
    values = values_for(model.config)
    noise = torch.rand(2, model.config.num_patches)
    with torch.no_grad():
        output = run(model, values, noise=noise)
        codes = model.tokenizer.encode(values)
    assert torch.equal(output.codes, codes) and codes.shape == (2, model.config.num_patches, 3)
    terms = []
    for row in range(2):
        masked = output.mask[row].nonzero().flatten().tolist()
        assert torch.equal(output.labels[row], codes[row, masked])
        for slot, patch in enumerate(masked):
            for stage in range(3):
                log_p = log_softmax(output.logits[row, slot, stage].double().numpy())
                terms.append(-log_p[codes[row, patch, stage]])
    assert output.loss.item() == pytest.approx(np.mean(terms), abs=1e-5)
    assert output.losses.keys() == {"encoder"} and torch.equal(output.losses["encoder"].mean, output.loss)
    assert next(iter(output)) == "loss"  # Trainer takes the first


@pytest.mark.parametrize("cold_start", [False, True])
def test_tokenizer_loss_is_codebook_and_cosine(cold_start):
    model = build(cold_start=cold_start, codebook_loss_weight=0.7, cosine_loss_weight=2.0)
    values = values_for(model.config)
    with torch.no_grad():
        output = run(model, values, phase="tokenizer")
        teacher = run(model.bridle, values).last_hidden_state[:, 1:].double().numpy()
        z = model.tokenizer.project(values)
        student = model.tokenizer.decode(model.tokenizer.encode(values)).double().numpy()
    cosine = (teacher * student).sum(-1) / np.linalg.norm(teacher, axis=-1) / np.linalg.norm(student, axis=-1)
    # z of unit length through the stages; 1 + beta times the mean squared residual, mean over the stages
    residual = z.double().numpy()
    residual = residual / np.linalg.norm(residual, axis=-1, keepdims=True)
    stages = []
    for stage, book in enumerate(model.tokenizer.quantizer.codebooks):
        embed = book.embed.double().numpy()
        index = ((residual[:, :, None] - embed) ** 2).sum(-1).argmin(-1)
        assert (index == output.codes[..., stage].numpy()).all()
        residual = residual - embed[index]
        stages.append(1.25 * (residual**2).mean())
    losses = {name: loss.mean.item() for name, loss in output.losses.items()}
    assert losses["codebook"] == pytest.approx(np.mean(stages), abs=1e-5)
    assert losses["cosine"] == pytest.approx((1 - cosine).mean(), abs=1e-5)
    assert output.loss.item() == pytest.approx(0.7 * np.mean(stages) + 2.0 * (1 - cosine).mean(), abs=1e-5)


def test_joint_loss_adds_a_share_of_the_tokenizers():
    model = build(cold_start=False, joint_tokenizer_weight=0.3)
    values, noise = values_for(model.config), torch.rand(2, 32)
    with torch.no_grad():
        apart = [run(model, values, noise=noise, phase=phase).loss.item() for phase in ("encoder", "tokenizer")]
        joint = run(model, values, noise=noise, phase="joint")
    assert joint.loss.item() == pytest.approx(apart[0] + 0.3 * apart[1], abs=1e-6)
    assert {"encoder", "codebook", "cosine"} <= joint.losses.keys()


def test_known_codes_are_taken_as_targets():
    model = build()
    values, noise = values_for(model.config), torch.rand(2, 32)
    codes = torch.randint(8, (2, 32, 3))
    with torch.no_grad():
        output = run(model, values, noise=noise, codes=codes)
    masked = output.mask.nonzero()[:, 1].view(2, -1)
    expected = torch.stack([codes[row, masked[row]] for row in range(2)])
    assert torch.equal(output.labels, expected) and torch.equal(output.codes, codes)


@pytest.mark.parametrize("decoder_type", ["swin", "plain"])
def test_masks_per_sample_equal_separate_masks(decoder_type):
    model = build(decoder_type=decoder_type)
    values, noise = values_for(model.config), torch.rand(6, 32)
    with torch.no_grad():
        shared = run(model, values, noise=noise)
        apart = [run(model, values, noise=noise[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(shared.logits, torch.cat([o.logits for o in apart]))
    assert torch.equal(shared.labels, torch.cat([o.labels for o in apart]))
    assert torch.equal(shared.mask, torch.cat([o.mask for o in apart])) and shared.codes.shape == (2, 32, 3)
    assert shared.loss.item() == pytest.approx(sum(o.loss.item() for o in apart) / 3, abs=1e-6)


def test_predicting_a_share_gives_the_same_predictions_on_the_grid():
    noise, values = torch.rand(2, 32), torch.randn(2, 64, 8)
    with torch.no_grad():
        whole, share = (build(predict_ratio=ratio)(values, noise=noise) for ratio in (1.0, 0.5))
    assert whole.logits.shape[1] == 26 and share.logits.shape[1] == 13
    assert torch.equal(whole.mask, share.mask)
    for row in range(2):
        masked = whole.mask[row].nonzero().flatten()
        slots = noise[row, masked].argsort()[:13].sort().values
        torch.testing.assert_close(share.logits[row], whole.logits[row, slots])


# ---------------------------------------------------------------------------------------------------------------------
# Padding, sizes, precision
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cold_start", [True, False])
@pytest.mark.parametrize("decoder_type", ["swin", "plain"])
def test_padded_losses_equal_unpadded_ones(decoder_type, cold_start):
    model = build(decoder_type=decoder_type, cold_start=cold_start).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    clip, batch, attention_mask = padded_pair(40, 64)
    batch, attention_mask = batch[:1], attention_mask[:1]
    masked = torch.rand(1, 20).argsort() < 13
    padded_mask = torch.cat([masked, torch.zeros(1, 12, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        alone = model(clip, bool_masked_pos=masked, phase="joint")
        padded = model(batch, attention_mask=attention_mask, bool_masked_pos=padded_mask, phase="joint")
    assert torch.equal(padded.codes[:, :20], alone.codes)
    torch.testing.assert_close(padded.logits, alone.logits, atol=1e-5, rtol=0)
    for name, value in alone.losses.items():
        assert padded.losses[name].mean.item() == pytest.approx(value.mean.item(), abs=1e-5), name
        assert torch.equal(padded.losses[name].count, value.count)
    for name, value in alone.quantizer_stats.items():
        torch.testing.assert_close(padded.quantizer_stats[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoder_type", ["swin", "plain"])
def test_padded_rows_predict_their_own_patches(decoder_type):
    model = build(decoder_type=decoder_type)
    clip, batch, attention_mask = padded_pair(40, 64)
    noise = torch.rand(2, 32)
    with torch.no_grad():
        output = model(batch, attention_mask=attention_mask, noise=noise)
        alone = model(clip, bool_masked_pos=output.mask[:1, :20])
        longer = model(batch[1:], noise=noise[1:])
    assert output.mask[0, 20:].sum() == 0 and output.mask.sum(1).tolist() == [17, 26]  # 3 of 20 and 6 of 32 kept
    real = output.labels[0, :, 0] != -100
    assert real.sum() == 17
    torch.testing.assert_close(output.logits[0][real], alone.logits[0], atol=1e-5, rtol=0)
    assert torch.equal(output.labels[0][real], alone.labels[0])
    expected = (17 * alone.loss + 26 * longer.loss) / 43
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("cold_start", [True, False])
def test_codes_are_the_same_in_a_batch_alone_and_padded(cold_start):
    tokenizer = build(BridleTokenizer, cold_start=cold_start)
    values = torch.randn(5, 64, 8)
    codes = tokenizer.encode(values)
    assert codes.shape == (5, 32, 3) and codes.dtype == torch.int64 and codes.unique().numel() == 8
    assert torch.equal(codes, torch.cat([tokenizer.encode(clip[None]) for clip in values]))
    _, batch, attention_mask = padded_pair(38, 64)  # two frames into the tenth row of patches
    clip = torch.cat([batch[:1, :38], torch.zeros(1, 2, 8)], dim=1)
    assert torch.equal(tokenizer.encode(batch, attention_mask)[:1, :20], tokenizer.encode(clip))


@pytest.mark.parametrize("cold_start", [True, False])
def test_codes_are_the_same_under_autocast(cold_start):
    model = build(cold_start=cold_start)
    values = torch.randn(16, 64, 8)
    codes = model.tokenizer.encode(values)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (model.tokenizer.encode(values) == codes).float().mean() >= 0.999
        if cold_start:  # also where a phase makes them
            assert (model(values).codes == codes).float().mean() >= 0.999


def test_codes_of_another_shape_are_named():
    model, values = build(), torch.randn(2, 32, 8)
    codes = model.tokenizer.encode(values)
    assert torch.isfinite(model(values, codes=codes).loss)
    for bad in (codes.repeat(2, 1, 1), codes[:, :-1], codes[..., :1]):
        with pytest.raises(ValueError, match=r"`codes` is \(.*; it takes \(B, N, M\), N = 16"):
            model(values, codes=bad)


@pytest.mark.parametrize("decoder_type", ["swin", "plain"])
@pytest.mark.parametrize(("modality", "size"), [("audio", (128, 8)), ("image", (20, 8)), ("image", (56, 56))])
def test_any_size_whose_grid_is_whole(modality, size, decoder_type):
    model = build(modality=modality, decoder_type=decoder_type, cold_start=False)
    with torch.no_grad():
        output = run(model, values_for(model.config, size=size), phase="joint")
    patches = math.prod(size) // 16
    assert output.mask.shape == (2, patches) and torch.isfinite(output.loss)
    assert output.logits.shape == (2, patches - int(patches * (1 - model.config.mask_ratio)), 3, 8)


# ---------------------------------------------------------------------------------------------------------------------
# What trains, what stays
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder_type", ["swin", "plain"])
def test_each_phase_reaches_its_own_parts(decoder_type):
    trained = {"encoder": {"bridle", "decoder"}, "tokenizer": {"tokenizer"}}
    trained["joint"] = trained["encoder"] | trained["tokenizer"]
    for phase in PHASES:
        model = build(decoder_type=decoder_type, cold_start=False).train()
        model(torch.randn(2, 64, 8), phase=phase).loss.backward()
        for name, parameter in model.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (name.split(".")[0] in trained[phase]), (phase, name)


@pytest.mark.parametrize("phase", PHASES)
def test_forward_changes_no_state_and_evaluation_is_deterministic(phase):
    model = build(cold_start=False, hidden_dropout_prob=0.3, drop_path_rate=0.3)
    values, before = torch.randn(2, 64, 8), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first, second = model(values, phase=phase), model(values, phase=phase)
        assert torch.equal(first.loss, second.loss) and first.quantizer_stats is None
        trained = model.train()(values, phase=phase)
    assert (trained.quantizer_stats is None) == (phase == "encoder")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if phase != "tokenizer":
        assert torch.equal(first.mask, second.mask) and torch.equal(first.mask[0], first.mask[1])
        assert not torch.equal(trained.mask[0], trained.mask[1])


@pytest.mark.parametrize("decoder_type", ["swin", "plain"])
def test_gradient_checkpointing_changes_nothing(decoder_type):
    runs = []
    for checkpointing in (False, True):
        model = build(decoder_type=decoder_type, cold_start=False, drop_path_rate=0.3, hidden_dropout_prob=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        output = model(torch.randn(2, 64, 8), phase="joint")
        output.loss.backward()
        runs.append((output, {name: p.grad for name, p in model.named_parameters()}))
    (plain, gradients), (saved, saved_gradients) = runs
    assert {n: v.mean.item() for n, v in plain.losses.items()} == {n: v.mean.item() for n, v in saved.losses.items()}
    assert torch.equal(plain.quantizer_stats["counts"], saved.quantizer_stats["counts"])
    for name, gradient in gradients.items():
        torch.testing.assert_close(saved_gradients[name], gradient, msg=name)


def test_update_moves_the_codebooks_alone():
    model = build(cold_start=False).train()
    before = copy.deepcopy(model.state_dict())
    model.tokenizer.update_(model(torch.randn(2, 64, 8), phase="tokenizer").quantizer_stats)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    books = [f"tokenizer.quantizer.codebooks.{stage}." for stage in range(3)]
    assert changed == {book + name for book in books for name in ("embed", "embed_sum", "cluster_size")}


def test_reset_redraws_the_tokenizer_and_ends_the_cold_start(tmp_path):
    model = build()
    before, values = copy.deepcopy(model.state_dict()), torch.randn(2, 64, 8)
    books = [copy.deepcopy(book.default_state()) for book in model.tokenizer.quantizer.codebooks]
    torch.manual_seed(5)
    model.tokenizer.reset_()
    after = model.state_dict()
    for name, value in after.items():
        if not name.startswith("tokenizer."):
            assert torch.equal(before[name], value), name
    assert not [name for name in after if name.startswith("tokenizer.cold_start.")]
    for book, fresh in zip(model.tokenizer.quantizer.codebooks, books, strict=True):
        assert all(torch.equal(getattr(book, name), value) for name, value in fresh.items())
    assert model.tokenizer.cold_start is None and model.tokenizer.estimator is not None
    full = model.tokenizer.encode(values)
    model.save_pretrained(tmp_path)
    loaded = BridleForPreTraining.from_pretrained(tmp_path)
    assert not loaded.config.cold_start and loaded.tokenizer.cold_start is None
    assert torch.equal(loaded.tokenizer.encode(values), full)

    first = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}
    torch.manual_seed(5)
    model.tokenizer.reset_()
    assert all(torch.equal(first[name], value) for name, value in model.tokenizer.state_dict().items())
    model.tokenizer.reset_()  # from another random state
    assert not torch.equal(first["quantize_layer.0.weight"], model.tokenizer.quantize_layer[0].weight)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer, saving and loading, errors
# ---------------------------------------------------------------------------------------------------------------------


def test_positions_enter_the_cold_start_only_where_wanted():
    values = torch.randn(1, 64, 8)
    without, with_positions = (build(BridleTokenizer, cold_start_positions=flag) for flag in (False, True))
    difference = with_positions.project(values) - without.project(values)
    positions = with_positions.cold_start.positions((16, 2), values)
    torch.testing.assert_close(difference, positions @ without.cold_start.projection.t(), atol=1e-5, rtol=1e-4)
    same = values[:, :4].repeat(1, 16, 1)  # one frame of patches over and over
    assert torch.unique(without.encode(same)[0].view(16, 2, 3), dim=0).shape[0] == 1
    assert torch.unique(with_positions.encode(same)[0].view(16, 2, 3), dim=0).shape[0] > 1


@pytest.mark.parametrize("modality", SIZES)
def test_decode_of_encode_is_what_forward_returns(modality):
    tokenizer = build(BridleTokenizer, modality=modality, cold_start=False)
    values = values_for(tokenizer.config)
    with torch.no_grad():
        output = run(tokenizer, values)
        features = tokenizer.decode(tokenizer.encode(values))
    assert features.shape == (2, tokenizer.config.num_patches, 24)
    torch.testing.assert_close(features, output.features, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("modality", SIZES)
def test_parts_load_from_a_pretraining_checkpoint_bit_for_bit(modality, tmp_path):
    model = build(modality=modality, num_labels=3)
    model.save_pretrained(tmp_path)
    encoder, tokenizer = BridleModel.from_pretrained(tmp_path), BridleTokenizer.from_pretrained(tmp_path)
    for part, loaded in [(model, BridleForPreTraining.from_pretrained(tmp_path)), (model.bridle, encoder)]:
        assert part.state_dict().keys() == loaded.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in part.state_dict().items())
    assert all(torch.equal(v, tokenizer.state_dict()[name]) for name, v in model.tokenizer.state_dict().items())


def test_a_classifier_starts_from_a_pretraining_checkpoint_or_an_encoder(tmp_path):
    model = build(num_labels=3)
    model.save_pretrained(tmp_path / "pretraining")
    model.bridle.save_pretrained(tmp_path / "encoder")
    for folder in ("pretraining", "encoder"):
        loaded, report = BridleForAudioClassification.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert (report["missing_keys"], report["unexpected_keys"]) == ({"classifier.weight", "classifier.bias"}, set())
        # its norm stands after the pooling, and begins as the encoder's last one
        found = {**loaded.bridle.state_dict(), **loaded.layernorm.state_dict(prefix="layernorm.")}
        assert found.keys() == model.bridle.state_dict().keys()
        assert all(torch.equal(value, found[name]) for name, value in model.bridle.state_dict().items())


def test_wrong_arguments_are_named():
    model = build()
    with pytest.raises(ValueError, match="`phase` is 'decoder'; it takes one of 'encoder', 'tokenizer', 'joint'"):
        model(torch.zeros(1, 64, 8), phase="decoder")
    for module in (model, model.tokenizer):
        with pytest.raises(ValueError, match="`input_values` is None"):
            module()
    with pytest.raises(ValueError, match=r"`noise` has shape \(2, 31\); it takes \(2, 32\)"):
        model(torch.zeros(2, 64, 8), noise=torch.rand(2, 31))
    with pytest.raises(ValueError, match=r"`bool_masked_pos` masks \[1, 2\] patches"):
        model(torch.zeros(2, 64, 8), bool_masked_pos=torch.arange(32) < torch.tensor([[1], [2]]))
    with pytest.raises(ValueError, match=r"`attention_mask` has shape \(2, 32\); it takes \(2, 64\)"):
        model.tokenizer.encode(torch.zeros(2, 64, 8), torch.ones(2, 32))
    with pytest.raises(ValueError, match=r"`input_values` measures \(2, 8\)"):
        model.tokenizer.encode(torch.zeros(1, 2, 8))
