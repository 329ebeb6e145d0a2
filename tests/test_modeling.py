"""Encoder and classification heads: padding, sizes, masks, outputs, precision, errors."""

import copy

import numpy as np
import pytest
import torch
from tiny import padded_pair, tiny_config, values_for

from bridle_hf.layers_bridle import BridleAttention
from bridle_hf.losses_bridle import masked_mean
from bridle_hf.modeling_bridle import (
    BridleForAudioClassification,
    BridleForImageClassification,
    BridleForPreTraining,
    BridleForVideoClassification,
    BridleModel,
    BridleTokenizer,
    run,
)

SIZES = {
    "audio": {"input_size": (32, 8), "patch_size": (4, 4)},  # 8 x 2 patches
    "image": {"input_size": (12, 8), "patch_size": (4, 4)},
    "video": {"input_size": (4, 8, 8), "patch_size": (2, 4, 4)},
}
CLASSIFIERS = {
    "audio": BridleForAudioClassification,
    "image": BridleForImageClassification,
    "video": BridleForVideoClassification,
}


def tiny(modality="audio", **options):
    return tiny_config(modality, **(SIZES[modality] | options))


def build(cls, config=None, seed=0, **options):
    """A model in eval mode whose every weight differs from its initial value, so that none is forgotten."""
    torch.manual_seed(seed)
    model = cls(config or tiny(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"use_cls_token": False}, {"pooling": "cls"}, {"position_layout": "table"}])
def test_padded_equals_unpadded(options, implementation):
    model = build(BridleModel, attn_implementation=implementation, **options)
    clip, batch, attention_mask = padded_pair(20, 32)
    with torch.no_grad():
        alone = model(clip)
        padded = model(batch, attention_mask=attention_mask)
        longer = model(batch[1:])
    length = alone.last_hidden_state.shape[1]
    torch.testing.assert_close(padded.last_hidden_state[:1, :length], alone.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.pooler_output[:1], alone.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.last_hidden_state[1:], longer.last_hidden_state, atol=1e-5, rtol=0)


def test_a_patch_padded_in_part_counts_and_its_padding_is_zero():
    model = build(BridleModel)
    clip, batch, attention_mask = padded_pair(18, 32)  # two frames into the fifth patch
    zeros = torch.cat([clip, torch.zeros(1, 2, 8)], dim=1)
    with torch.no_grad():
        padded, alone = model(batch, attention_mask=attention_mask), model(zeros)
    torch.testing.assert_close(padded.last_hidden_state[:1, :11], alone.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.pooler_output[:1], alone.pooler_output, atol=1e-5, rtol=0)


def test_masked_and_padded_equals_masked_and_unpadded():
    model = build(BridleModel)
    clip, batch, attention_mask = padded_pair(20, 32)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, [1, 4, 5, 8]] = True
    with torch.no_grad():
        padded = model(batch, attention_mask=attention_mask, bool_masked_pos=masked)
        alone = model(clip, bool_masked_pos=masked[:1, :10])
    torch.testing.assert_close(padded.last_hidden_state[:1, :7], alone.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.pooler_output[:1], alone.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("modality", "size"),
    [("audio", (4, 8)), ("audio", (48, 8)), ("image", (4, 20)), ("image", (16, 4)), ("video", (2, 12, 4))],
)
def test_any_size_whose_grid_is_whole(modality, size):
    config = tiny(modality)
    model = build(BridleModel, config)
    with torch.no_grad():
        output = run(model, values_for(config, size=size))
    patches = np.prod(size) // np.prod(config.patch_size)
    assert output.last_hidden_state.shape == (2, 1 + patches, 24)
    assert output.pooler_output.shape == (2, 24)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 1:].mean(1))


def test_a_shorter_clip_has_the_positions_of_its_own_frames():
    model = build(BridleModel)
    values = torch.randn(1, 32, 8)
    longer, shorter = model.embeddings(values), model.embeddings(values[:, :12])
    torch.testing.assert_close(longer[:, :7], shorter)


@pytest.mark.parametrize("modality", SIZES)
def test_hidden_states_and_attentions(modality):
    config = tiny(modality, attn_implementation="eager")
    model, values = build(BridleModel, config), values_for(config)
    with torch.no_grad():
        output = run(model, values, output_hidden_states=True, output_attentions=True)
        states = [model.embeddings(values)]
        for layer in model.layers:
            states.append(layer(states[-1]))
    length = 1 + config.num_patches
    assert [tuple(s.shape) for s in output.hidden_states] == [(2, length, 24)] * 3
    for found, expected in zip(output.hidden_states, states, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(output.last_hidden_state, model.layernorm(states[-1]))
    assert [tuple(a.shape) for a in output.attentions] == [(2, 2, length, length)] * 2
    for attention in output.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, length))


def test_noise_drops_patches_and_shares_a_sample_between_masks():
    config = tiny(mask_ratio=0.5)
    model, values = build(BridleModel, config), values_for(config)
    noise = torch.rand(6, 16)  # three masks for each of two samples
    with torch.no_grad():
        shared = model(values, noise=noise).last_hidden_state
        apart = [model(values, noise=noise[i : i + 2]).last_hidden_state for i in (0, 2, 4)]
        everything = model.embeddings(values)
        kept = model.embeddings(values, model.make_patch_mask(values, noise=noise[:2]))
    assert shared.shape == (6, 1 + 8, 24)
    torch.testing.assert_close(shared, torch.cat(apart))
    for row in range(2):
        order = noise[row].argsort()[:8]
        torch.testing.assert_close(kept[row, 1:], everything[row, 1 + order])


def test_the_attention_implementation_reaches_every_layer():
    config = tiny()
    for name in ("eager", "sdpa"):
        model = BridleModel._from_config(config, attn_implementation=name)
        layers = [m for m in model.modules() if isinstance(m, BridleAttention)]
        assert len(layers) == 2 and {m.config._attn_implementation for m in layers} == {name}


def test_a_tokenizer_gives_the_same_with_either_attention():
    _, batch, attention_mask = padded_pair(20, 32)
    outputs = []
    for name in ("eager", "sdpa"):
        config = tiny(attn_implementation=name, cold_start=False, estimator_num_hidden_layers=1)
        with torch.no_grad():
            outputs.append(build(BridleTokenizer, config)(batch.nan_to_num(), attention_mask=attention_mask))
    eager, sdpa = outputs
    torch.testing.assert_close(eager.features, sdpa.features)
    assert torch.equal(eager.codes, sdpa.codes)


def test_stochastic_depth_grows_with_depth():
    model = BridleModel(tiny(num_hidden_layers=5, drop_path_rate=0.2))
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_evaluation_is_deterministic_and_changes_nothing():
    config = tiny(drop_path_rate=0.5, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model, values = build(BridleForAudioClassification, config, num_labels=3), values_for(config)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first, second = model(values).logits, model(values).logits
        model.train()
        assert not torch.equal(model(values).logits, first)
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Classification
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", SIZES)
def test_classifier_is_mean_norm_linear(modality):
    config = tiny(modality, num_labels=5)
    model, values = build(CLASSIFIERS[modality], config), values_for(config, 3)
    labels = torch.tensor([4, 0, 2])
    with torch.no_grad():
        output = model(values, labels=labels)
        hidden = run(model.bridle, values, output_hidden_states=True).hidden_states[-1].double().numpy()
        weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    pooled = hidden[:, 1:].mean(1)
    centred = pooled - pooled.mean(1, keepdims=True)
    normed = centred / np.sqrt(centred.var(1, keepdims=True) + config.layer_norm_eps)
    normed = normed * weights["layernorm.weight"] + weights["layernorm.bias"]
    logits = normed @ weights["classifier.weight"].T + weights["classifier.bias"]
    np.testing.assert_allclose(output.logits.numpy(), logits, atol=1e-5)
    log_sum = np.log(np.exp(logits).sum(1))
    assert output.loss.item() == pytest.approx((log_sum - logits[np.arange(3), labels]).mean(), abs=1e-5)


def test_several_labels_per_clip_are_trained_with_binary_cross_entropy():
    config = tiny(num_labels=4, problem_type="multi_label_classification")
    model, values = build(BridleForAudioClassification, config), values_for(config)
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    with torch.no_grad():
        output = model(values, labels=labels)
    p = 1 / (1 + np.exp(-output.logits.double().numpy()))
    expected = -np.where(labels.numpy() > 0, np.log(p), np.log(1 - p)).mean()
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


def test_padding_does_not_change_the_logits():
    model = build(BridleForAudioClassification, num_labels=3)
    clip, batch, attention_mask = padded_pair(20, 32)
    with torch.no_grad():
        alone, padded = model(clip).logits, model(batch, attention_mask=attention_mask).logits
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=0)


def test_training_hides_rows_and_columns_and_evaluation_hides_nothing():
    config = tiny(input_size=(32, 16), num_labels=3, classifier_mask_ratio=(0.25, 0.5))  # 8 x 4 patches
    model, values = build(BridleForAudioClassification, config), values_for(config, 4)
    plain = build(BridleForAudioClassification, tiny(input_size=(32, 16), num_labels=3))
    with torch.no_grad():
        assert torch.equal(model(values).logits, plain(values).logits)
        model.train()
        states = model(values, output_hidden_states=True).hidden_states
        assert states[0].shape[1] == 1 + 6 * 2
        kept = model._training_mask(values, None).kept
    for row in kept:
        assert len(set((row // 4).tolist())) == 6 and len(set((row % 4).tolist())) == 2


def test_one_ratio_hides_patches_at_random():
    """The paper's 1D masking: a share of the patches, whatever their rows and columns; of padded clips of their own."""
    config = tiny(input_size=(32, 16), num_labels=3, classifier_mask_ratio=(0.25,))  # 8 x 4 patches
    model, values = build(BridleForAudioClassification, config).train(), values_for(config, 64)
    kept = model._training_mask(values, None).kept
    assert kept.shape == (64, 24) and all(len(set(row.tolist())) == 24 for row in kept)
    hidden = 1 - torch.zeros(64, 32).scatter(1, kept, 1).mean(0)
    assert (hidden - 0.25).abs().max() < 0.25  # every patch is hidden at times: 5 standard errors
    assert hidden.min() > 0
    rows = (torch.zeros(64, 32).scatter(1, kept, 1).view(64, 8, 4).sum(2) > 0).sum()
    assert rows > 0.9 * 64 * 8  # nearly no row of the grid is hidden as a whole
    with torch.no_grad():
        assert model(values, output_hidden_states=True).hidden_states[0].shape[1] == 1 + 24
    model = build(BridleForAudioClassification, tiny(num_labels=3, classifier_mask_ratio=(0.25,))).train()
    _, batch, attention_mask = padded_pair(16, 32)
    plan = model._training_mask(batch, model.bridle.patch_layer.real_patches(batch, attention_mask))
    assert plan.kept_valid.sum(1).tolist() == [6, 12]  # of 8 real patches and of 16
    assert plan.kept[0][plan.kept_valid[0]].max() < 8


def test_training_mask_leaves_padding_out():
    config = tiny(num_labels=3, classifier_mask_ratio=(0.25, 0.5))
    model = build(BridleForAudioClassification, config).train()
    _, batch, attention_mask = padded_pair(16, 32)
    plan = model._training_mask(batch, model.bridle.patch_layer.real_patches(batch, attention_mask))
    assert plan.kept_valid.sum(1).tolist() == [3, 6]  # 6 of 16 patches, 3 of the 8 real ones
    assert plan.kept[0][plan.kept_valid[0]].max() < 8
    assert torch.isfinite(model(batch, attention_mask=attention_mask).logits).all()


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

LAYOUT = {
    "audio": "(batch, frames, mel bins)",
    "image": "(batch, channels, height, width)",
    "video": "(batch, frames, channels, height, width)",
}


@pytest.mark.parametrize(
    ("modality", "shape", "message"),
    [
        ("audio", (2, 1, 32, 8), "`input_values` has shape (2, 1, 32, 8); the model takes " + LAYOUT["audio"]),
        ("audio", (32,), "`input_values` has shape (32,); the model takes " + LAYOUT["audio"]),
        ("image", (3, 8, 8), "`pixel_values` has shape (3, 8, 8); the model takes " + LAYOUT["image"]),
        ("video", (2, 3, 8, 8), "`pixel_values` has shape (2, 3, 8, 8); the model takes " + LAYOUT["video"]),
        ("image", (2, 1, 8, 8), "`pixel_values` has 1 channels; the model takes 3: " + LAYOUT["image"]),
        ("video", (2, 3, 4, 8, 8), "`pixel_values` has 4 channels; the model takes 3: " + LAYOUT["video"]),
        ("audio", (2, 3, 8), "`input_values` measures (3, 8); the model takes one or more whole patches of (4, 4)"),
        ("audio", (2, 32, 4), "`input_values` has 4 mel bins; the model takes 8: " + LAYOUT["audio"]),
        ("audio", (0, 32, 8), "`input_values` holds no sample; the model takes " + LAYOUT["audio"]),
        ("audio", (2, 0, 8), "`input_values` measures (0, 8)"),
        ("image", (2, 3, 8, 9), "`pixel_values` measures (8, 9)"),
        ("video", (2, 1, 3, 8, 8), "`pixel_values` measures (1, 8, 8)"),  # shorter than a tubelet
    ],
)
def test_wrong_shapes_are_named(modality, shape, message):
    config = tiny(modality, num_labels=2)
    for model in (BridleModel(config), CLASSIFIERS[modality](config)):
        with pytest.raises(ValueError) as error:
            model(**{model.main_input_name: torch.zeros(shape)})
        assert message in str(error.value)


@pytest.mark.parametrize("modality", SIZES)
def test_a_missing_input_is_named(modality):
    name = "input_values" if modality == "audio" else "pixel_values"
    message = f"`{name}` is None; a model of modality '{modality}' takes it"
    config = tiny(modality, num_labels=2, classifier_mask_ratio=(0.5,) * len(SIZES[modality]["input_size"]))
    for cls in (BridleModel, CLASSIFIERS[modality]):
        with pytest.raises(ValueError, match=message):
            cls(config).train()()


@pytest.mark.parametrize("shape", [(2, 31), (3, 32), (2, 8), (2, 32, 1), (32,)])
def test_a_wrong_attention_mask_is_named(shape):
    with pytest.raises(ValueError) as error:
        build(BridleModel)(torch.zeros(2, 32, 8), attention_mask=torch.ones(shape))
    assert f"`attention_mask` has shape {shape}; it takes (2, 32): one number per frame" in str(error.value)


def test_images_take_no_attention_mask():
    with pytest.raises(ValueError, match="`attention_mask` is given; images have no frames"):
        build(BridleModel, modality="image")(pixel_values=torch.zeros(1, 3, 12, 8), attention_mask=torch.ones(1, 12))


@pytest.mark.parametrize("name", ["noise", "bool_masked_pos"])
@pytest.mark.parametrize("shape", [(2, 15), (3, 16), (2, 16, 1)])
def test_a_wrong_mask_is_named(name, shape):
    with pytest.raises(ValueError) as error:
        build(BridleModel)(torch.zeros(2, 32, 8), **{name: torch.zeros(shape)})
    assert f"`{name}` has shape {shape}; it takes (2, 16), one row per sample" in str(error.value)


def test_two_masks_are_refused():
    both = {"noise": torch.rand(2, 16), "bool_masked_pos": torch.zeros(2, 16)}
    with pytest.raises(ValueError, match="`noise` and `bool_masked_pos` are both given; a mask takes one"):
        build(BridleModel)(torch.zeros(2, 32, 8), **both)


def test_a_classifier_mask_of_another_rank_is_named():
    model = BridleForVideoClassification(tiny("video", classifier_mask_ratio=(0.2, 0.2))).train()
    with pytest.raises(
        ValueError, match=r"`classifier_mask_ratio` is \(0.2, 0.2\); it takes 3 numbers, one per axis, or 1"
    ):
        model(torch.zeros(1, 4, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_mean_over_real_patches_is_that_of_the_patches_alone_in_every_precision(dtype):
    """The sum over 511 patches overflows float16, and bfloat16 cannot represent the count 511."""
    tokens = torch.tensor([1.0, 60.0, 200.0], dtype=dtype).expand(1, 600, 3)
    for count in (301, 511):
        mean = masked_mean(tokens, torch.arange(600)[None] < count)
        assert mean.dtype == dtype and torch.equal(mean, tokens[:, 0])


@pytest.mark.parametrize("cls", [BridleForPreTraining, BridleForAudioClassification, BridleTokenizer])
def test_a_config_that_asks_for_tuples_gets_them(cls):
    """Outer models read the outputs of inner models by name, also with `return_dict=False` in the config."""
    model, values = build(cls, tiny(cold_start=cls is not BridleTokenizer)), values_for(tiny())
    expected = [value for value in model(values).to_tuple() if torch.is_tensor(value)]
    model.config.return_dict = False
    found = model(values)
    assert isinstance(found, tuple)
    found = [value for value in found if torch.is_tensor(value)]
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
