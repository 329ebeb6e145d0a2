"""What a GPU would object to, without one: fake CUDA tensors have shapes and devices but no numbers.

Tensors of two devices in one operator are an error, and so is a number that the host reads, for which it would wait.
"""

from math import prod

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from variants import CLIPS, QUANTIZERS, SIZES, quantizer_options

from bridle_hf import BridleConfig, BridleForPreTraining
from bridle_hf.training.phases import KINDS


class OnePrecision(TorchDispatchMode):
    """Norms and products of two precisions are an error: a CPU takes some of them, a GPU none."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in ("native_layer_norm", "_fused_rms_norm", "mm", "bmm", "addmm", "convolution"):
            precisions = {each.dtype for each in args if isinstance(each, torch.Tensor)}
            assert len(precisions) == 1, f"{name} of {precisions}"
        return operator(*args, **kwargs or {})


@pytest.fixture(scope="module", autouse=True)
def autograd_has_begun():
    """It counts devices once; had it counted a fake one, no forked process could take a backward pass any more."""
    torch.ones((), requires_grad=True).backward()


def on_fake_gpu(model: torch.nn.Module, mode: FakeTensorMode) -> torch.nn.Module:
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            fake = mode.from_tensor(value).detach().to("cuda")
            module._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in module.named_buffers(recurse=False):
            module._buffers[name] = mode.from_tensor(value).to("cuda")
    return model


def run_on_fake_gpu(kind: str, modality: str = "audio", **config) -> None:
    """A forward pass as the training loop makes it: the masks are drawn on the CPU. No frame of a sound is padding."""
    config = BridleConfig(modality=modality, **CLIPS[modality], **SIZES, **config)
    model = BridleForPreTraining(config)
    if kind == "tokenizer":
        model.tokenizer.reset_()
    KINDS[kind]().set_modes_(model)
    values, valid = clips(config)
    mask = model.bridle.make_patch_mask(values, valid, torch.rand(2, prod(config.grid)))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model, mask = on_fake_gpu(model, mode), mask.to("cuda")
        valid = None if valid is None else valid.to("cuda")
        output = model(**{model.main_input_name: values.to("cuda")}, attention_mask=valid, patch_mask=mask, phase=kind)
    assert output.loss.device.type == "cuda"


def clips(config: BridleConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    *frames, height, width = config.input_size
    if config.modality == "audio":
        return torch.randn(2, height, width), torch.ones(2, height, dtype=torch.long)
    return torch.randn(2, *frames, 3, height, width), None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_passes_of_a_step_stay_on_the_gpu(quantizer, kind):
    run_on_fake_gpu(kind, quantizer_config=quantizer_options(quantizer), cold_start=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", ["swin", "plain"])
def test_decoders(decoder, kind):
    run_on_fake_gpu(kind, decoder_type=decoder)


@pytest.mark.parametrize("decoder", ["swin", "plain"])
def test_frames_that_are_not_looked_at_change_nothing(decoder, monkeypatch):
    """On a CPU the model sees that no frame is padding; elsewhere it does not look, and calculates with a mask."""
    torch.manual_seed(0)
    config = BridleConfig(modality="audio", decoder_type=decoder, **CLIPS["audio"], **SIZES)
    model = BridleForPreTraining(config).eval()
    values, valid = clips(config)
    mask = model.bridle.make_patch_mask(values, valid, torch.rand(2, prod(config.grid)))
    seen = model(values, attention_mask=valid, patch_mask=mask)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    unseen = model(values, attention_mask=valid, patch_mask=mask)
    torch.testing.assert_close(unseen.logits, seen.logits)
    assert unseen.loss.isfinite()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", CLIPS)
def test_modalities(modality, kind):
    run_on_fake_gpu(kind, modality)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", CLIPS)
def test_autocast_leaves_no_two_precisions_in_one_operator(modality, kind):
    config = BridleConfig(modality=modality, **CLIPS[modality], **SIZES)
    model = BridleForPreTraining(config)
    KINDS[kind]().set_modes_(model)
    values, valid = clips(config)
    with OnePrecision():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**{model.main_input_name: values}, attention_mask=valid, phase=kind).loss
        loss.backward()


@pytest.mark.parametrize("layout", ["grid", "table"])
def test_a_model_built_on_a_device_is_all_there(layout):
    with torch.device("meta"):
        model = BridleForPreTraining(BridleConfig(**CLIPS["audio"], **SIZES, position_layout=layout))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert "tokenizer.cold_start.projection" in tensors
    assert not [name for name, tensor in tensors.items() if not tensor.is_meta]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("phase", KINDS)
def test_a_model_built_on_a_device_runs_there(phase, training):
    with FakeTensorMode(), torch.device("cuda"):
        model = BridleForPreTraining(BridleConfig(**CLIPS["audio"], **SIZES)).train(training)
        assert model(torch.randn(2, 64, 32), phase=phase).loss.device.type == "cuda"


def test_the_mask_of_evaluation_is_the_same_whatever_device_is_the_default():
    model = BridleForPreTraining(BridleConfig(**CLIPS["audio"], **SIZES)).eval()
    values = torch.randn(2, 64, 32)
    with torch.no_grad():
        expected = model(values).mask
        with torch.device("meta"):
            noise = model._default_noise(values)
    assert torch.equal(model.bridle.make_patch_mask(values, noise=noise).mask, expected)


def test_a_number_read_and_a_tensor_elsewhere_would_show(monkeypatch):
    quantizer = "bridle_hf.quantization_bridle.ResidualQuantizer.assign"
    monkeypatch.setattr(quantizer, lambda self, z: self.encode(z + z.sum().item()))
    with pytest.raises(DataDependentOutputException):
        run_on_fake_gpu("encoder")
    monkeypatch.setattr(quantizer, lambda self, z: z @ torch.ones(z.shape[-1]))
    with pytest.raises(RuntimeError, match="device"):
        run_on_fake_gpu("encoder")
