"""The models as graphs: a compiled training step and an exported model compute what the eager ones do."""

import pytest
import torch
from tiny import fill_codebooks_, tiny_config
from torch.export import Dim

import bridle_hf
from bridle_hf.quantization_bridle import QUANTIZERS

pytestmark = pytest.mark.slow  # a minute and a half
SIZES = {
    "audio": {"input_size": (32, 8), "patch_size": (4, 4)},
    "image": {"input_size": (12, 8), "patch_size": (4, 4)},
    "video": {"input_size": (4, 8, 8), "patch_size": (2, 4, 4)},
}


def build(name, modality):
    """A model of every kind of layer, whose codebooks are filled."""
    torch.manual_seed(0)
    name = f"BridleFor{modality.title()}Classification" if name == "classifier" else name
    model = getattr(bridle_hf, name)(tiny_config(modality, cold_start=False, **SIZES[modality]))
    fill_codebooks_(model)
    return model


def inputs_for(model, batch_size=2, **more):
    config = model.config
    if config.modality == "audio":
        frames = torch.tensor([32, 20, 24])[:batch_size, None]
        mask = (torch.arange(32) < frames).long()
        return {"input_values": torch.randn(batch_size, 32, 8), "attention_mask": mask, **more}
    *frames, height, width = config.input_size
    return {"pixel_values": torch.randn(batch_size, *frames, 3, height, width), **more}


@pytest.mark.parametrize("modality", SIZES)
@pytest.mark.parametrize("step", ["classifier", "encoder", "tokenizer", "joint"])
def test_a_compiled_step_has_the_gradients_of_an_eager_one(step, modality):
    """In one graph, without a break. `aot_eager` traces the backward pass too, and needs no C++ compiler."""
    torch._dynamo.reset()
    name = "classifier" if step == "classifier" else "BridleForPreTraining"
    gradients = []
    for compiled in (False, True):
        model = build(name, modality).train()
        if step == "classifier":
            inputs = inputs_for(model, labels=torch.tensor([0, 1]))
        else:
            inputs = inputs_for(model, noise=torch.rand(2, model.config.num_patches), phase=step)
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        call(**inputs).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    eager, traced = gradients
    assert len(eager) > 20
    torch.testing.assert_close(traced, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_is_one_graph(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = bridle_hf.BridleQuantizerConfig(type=name, codebook_size=12, codebook_dim=8, levels=(4, 3))
    quantizer, weight = bridle_hf.build_quantizer(config).train(), torch.randn(50, 8)
    found = []
    for call in (quantizer, torch.compile(quantizer, fullgraph=True, backend="aot_eager")):
        z = torch.randn(50, 8, generator=torch.manual_seed(1)).requires_grad_()
        output = call(z, torch.arange(50) < 40)
        (gradient,) = torch.autograd.grad((output.quantized * weight).sum() + output.loss, z)
        found.append((output.codes, output.quantized, output.loss, output.stats, gradient))
    torch.testing.assert_close(*found)


def check_export(model, example, other, dynamic_shapes=None):
    with torch.no_grad():
        program = torch.export.export(model, (), example, dynamic_shapes=dynamic_shapes)
        got, expected = program.module()(**other), model(**other)
    tensors = {key: value for key, value in expected.items() if torch.is_tensor(value)}
    assert tensors
    torch.testing.assert_close({key: got[key] for key in tensors}, tensors)


@pytest.mark.parametrize("modality", SIZES)
@pytest.mark.parametrize("name", ["BridleModel", "classifier"])
def test_an_exported_encoder_gives_the_same_for_any_batch(name, modality):
    model = build(name, modality).eval()
    example = inputs_for(model, 2)
    batch = Dim("batch", min=1, max=8)
    check_export(model, example, inputs_for(model, 3), {key: {0: batch} for key in example})


@pytest.mark.parametrize("modality", SIZES)
@pytest.mark.parametrize("name", ["BridleForPreTraining", "BridleTokenizer"])
def test_exported_codes_and_losses_are_the_same(name, modality):
    model = build(name, modality).eval()

    def example():
        noise = {"noise": torch.rand(2, model.config.num_patches)} if name == "BridleForPreTraining" else {}
        return inputs_for(model, **noise)

    check_export(model, example(), example())
