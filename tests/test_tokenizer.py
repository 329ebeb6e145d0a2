"""What users do with a tokenizer: encode and decode, whatever mode it is in, and what it says about bad use."""

import pytest
import torch
from tiny import fill_codebooks_, tiny_config, values_for

from bridle_hf import modeling_bridle
from bridle_hf.codebook_training_bridle import project
from bridle_hf.data import build_processor
from bridle_hf.modeling_bridle import BridleForPreTraining, BridleTokenizer

SIZES = {
    "audio": {"input_size": (64, 32), "patch_size": (16, 16)},  # 4 x 2 patches
    "image": {"input_size": (32, 48), "patch_size": (16, 16)},
    "video": {"input_size": (4, 32, 32), "patch_size": (2, 16, 16)},
}
NOISY = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4, "drop_path_rate": 0.4}


def build(cls=BridleTokenizer, modality="audio", **options):
    torch.manual_seed(0)
    model = cls(tiny_config(modality, **SIZES[modality], **options)).eval()
    fill_codebooks_(model)
    return model


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(modeling_bridle.logger, "warning_once", said.append, raising=False)
    return said


@pytest.mark.parametrize("quantizer", [{}, {"type": "product", "num_codebooks": 2}])
def test_codebooks_that_were_never_set_are_named_and_set_ones_are_not(quantizer, warnings):
    config = {"codebook_size": 8, "codebook_dim": 8, **quantizer}
    tokenizer = build(quantizer_config=config, cold_start=False)
    values = torch.randn(4, 64, 32)
    tokenizer.encode(values)
    assert len(warnings) == 1 and "tokenizer.quantizer.initialize_(" in warnings[0]
    tokenizer.quantizer.initialize_(tokenizer.project(values))  # as it says
    tokenizer.encode(values)
    assert len(warnings) == 1


@pytest.mark.parametrize("quantizer", [{"type": "smoothed"}, {"type": "random_projection"}])
def test_codebooks_that_need_no_data_are_not_complained_about(quantizer, warnings):
    quantizer = {"codebook_size": 8, "codebook_dim": 8, **quantizer}
    build(quantizer_config=quantizer, cold_start=False).encode(torch.randn(1, 64, 32))
    assert not warnings


def test_a_compiled_encode_looks_at_no_codebook(warnings):
    tokenizer, values = build(cold_start=False, **NOISY).train(), torch.randn(2, 64, 32)
    before = modes(tokenizer)
    got = torch.compile(tokenizer.encode, fullgraph=True, backend="eager")(values)
    assert not warnings and modes(tokenizer) == before
    assert torch.equal(got, tokenizer.eval().encode(values))


def test_targets_know_no_dropout():
    model = build(BridleForPreTraining, cold_start=False, **NOISY)
    values = torch.randn(3, 64, 32)
    codes, tokens = model.tokenizer.encode(values), project(model, {"input_values": values})
    model.train()
    model.tokenizer.estimator.eval()  # a part that a user froze
    before = modes(model)
    assert torch.equal(model.tokenizer.encode(values), codes)
    assert torch.equal(model(values).codes, codes)
    assert torch.equal(project(model, {"input_values": values}), tokens)
    assert modes(model) == before


def test_modes_return_after_an_error():
    tokenizer = build().train()
    with pytest.raises(ValueError, match="input_values"):
        tokenizer.encode(torch.zeros(1, 2, 8))
    assert all(modes(tokenizer).values())
    with modeling_bridle.evaluating(tokenizer):
        assert not any(modes(tokenizer).values())


@pytest.mark.parametrize("modality", SIZES)
def test_encode_takes_what_a_processor_makes(modality):
    tokenizer = build(modality=modality)
    processor = build_processor(tokenizer.config)
    given, more = {
        "audio": (torch.randn(6000).numpy() / 10, {"sampling_rate": 16000}),
        "image": (torch.randint(256, (3, 40, 50), dtype=torch.uint8), {}),
        "video": (torch.randint(256, (4, 3, 40, 50), dtype=torch.uint8), {}),
    }[modality]
    inputs = processor(given, return_tensors="pt", **more)
    codes = tokenizer.encode(**inputs)
    assert torch.equal(codes, tokenizer.encode(*inputs.values()))
    with torch.no_grad():
        assert torch.equal(codes, tokenizer(**inputs).codes)


def test_encode_names_the_input_it_misses():
    with pytest.raises(ValueError, match="`input_values` is None; a model of modality 'audio' takes it"):
        build().encode(pixel_values=torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("frames", [16, 48, 160])
def test_codes_of_a_sound_of_any_length_are_decoded_on_its_grid(frames):
    tokenizer = build(cold_start=False)
    values = torch.randn(2, frames, 32)
    with torch.no_grad():
        expected = tokenizer(values).features
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(values)), expected)


@pytest.mark.parametrize(("modality", "size", "grid"), [("image", (48, 16), (3, 1)), ("video", (6, 16, 32), (3, 1, 2))])
def test_codes_of_another_size_are_decoded_where_the_grid_is_given(modality, size, grid):
    tokenizer = build(modality=modality, cold_start=False)
    values = values_for(tokenizer.config, size=size)
    with torch.no_grad():
        expected = tokenizer(pixel_values=values).features
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(values), grid=grid), expected)
        with pytest.raises(ValueError, match="`grid` is"):  # which the number of codes does not tell
            tokenizer.decode(tokenizer.encode(values))


@pytest.mark.parametrize(
    ("modality", "patches", "grid", "message"),
    [
        ("audio", 5, None, r"`grid` is \(2, 2\) and `codes` has shape \(1, 5, 2\).* 2 numbers whose product is the 5"),
        ("audio", 8, (3, 2), r"`grid` is \(3, 2\) and `codes` has shape \(1, 8, 2\)"),
        ("audio", 8, (8,), r"`grid` is \(8,\).*takes 2 numbers"),
        ("image", 4, None, r"`grid` is \(2, 3\) and `codes` has shape \(1, 4, 2\)"),
        ("video", 4, (2, 2), r"`grid` is \(2, 2\) .*takes 3 numbers whose product is the 4 patches"),
    ],
)
def test_a_grid_that_does_not_fit_the_codes_is_named(modality, patches, grid, message):
    with pytest.raises(ValueError, match=message):
        build(modality=modality).decode(torch.zeros(1, patches, 2, dtype=torch.long), grid)


def test_a_reset_keeps_stored_positions():
    model = build(BridleForPreTraining, position_layout="table", cold_start=False)
    tables = [model.tokenizer.encoder.embeddings.positions.table, model.tokenizer.estimator.positions.table]
    for table in tables:
        table.normal_()
    expected = [table.clone() for table in tables]
    before = model.tokenizer.estimator.head.weight.clone()
    model.tokenizer.reset_()
    after = [model.tokenizer.encoder.embeddings.positions.table, model.tokenizer.estimator.positions.table]
    assert all(torch.equal(*pair) for pair in zip(after, expected, strict=True))
    assert not torch.equal(model.tokenizer.estimator.head.weight, before)


def test_a_new_phase_keeps_the_precision_and_the_checkpointing_of_the_model():
    """The new tokenizer has the precision of the encoder, bfloat16, and activation checkpointing in its layers."""
    model = build(BridleForPreTraining, cold_start=True).to(torch.bfloat16)
    model.start_tokenizer_phase()
    layers = model.tokenizer.encoder.layers[0], model.tokenizer.estimator.layers[0]
    assert not any(layer.gradient_checkpointing for layer in layers)
    model.activation_checkpointing_enable()
    model.start_tokenizer_phase()
    layers = model.tokenizer.encoder.layers[0], model.tokenizer.estimator.layers[0]
    assert all(layer.gradient_checkpointing for layer in layers)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in model.tokenizer.quantizer.buffers()} == {torch.float32}


@pytest.mark.parametrize("inner", ["vector", "gradient", "simvq"])
def test_a_reset_keeps_the_order_of_parameters(inner):
    """Sums over all of them, as the norm of a gradient, are taken in their order: a phase that begins and one that is
    resumed, whose tokenizer is built from its weights, are equal bit for bit only if it is the same."""
    config = {"type": "residual", "inner": inner, "codebook_size": 8, "codebook_dim": 8, "num_codebooks": 2}
    began, resumed = (build(BridleForPreTraining, quantizer_config=config, cold_start=cold) for cold in (True, False))
    began.tokenizer.reset_()
    assert [name for name, _ in began.named_parameters()] == [name for name, _ in resumed.named_parameters()]
    assert list(began.state_dict()) == list(resumed.state_dict())
