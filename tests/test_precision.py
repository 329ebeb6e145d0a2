"""Weights in 8 bits and modules moved to another precision: what is float32 stays so, and nothing else changes."""

import copy

import pytest
import torch
from tiny import tiny_config, values_for
from torch import nn
from torch.nn import functional as F

from bridle_hf.modeling_bridle import BridleForPreTraining, BridleModel, BridleTokenizer, run
from bridle_hf.quantization_bridle import QUANTIZERS as REGISTRY

SIZES = {
    "audio": {"input_size": (32, 8), "patch_size": (4, 4)},
    "image": {"input_size": (12, 8), "patch_size": (4, 4)},
    "video": {"input_size": (4, 8, 8), "patch_size": (2, 4, 4)},
}


def build(cls, modality="audio", **options):
    torch.manual_seed(0)
    return cls(tiny_config(modality, **(SIZES[modality] | options))).eval()


class PackedLinear(nn.Linear):
    """A layer as quantizing libraries make it: codes in `weight`, of which the dtype says nothing about the inputs."""

    def __init__(self, linear, dtype):
        super().__init__(linear.in_features, linear.out_features)
        self.bias, self.exact = linear.bias, linear.weight.detach()
        self.weight = nn.Parameter(torch.zeros_like(linear.weight).to(dtype), requires_grad=False)

    def forward(self, values):
        return F.linear(values, self.exact, self.bias)


def packed(model, dtype):
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, dtype))
    return model


@pytest.mark.parametrize("weights", [torch.uint8, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modality", SIZES)
def test_packed_weights_give_what_their_layers_compute(modality, precision, weights):
    for cls, output in ((BridleModel, "last_hidden_state"), (BridleTokenizer, "features")):
        model = build(cls, modality, cold_start=False).to(precision)
        values = values_for(model.config)
        with torch.no_grad():
            expected, got = run(model, values)[output], run(packed(model, weights), values)[output]
        assert torch.equal(got, expected) and got.dtype == precision


@pytest.mark.filterwarnings("ignore")  # of the library's age
def test_dynamically_quantized_layers_stay_close():
    for cls, output in ((BridleModel, "last_hidden_state"), (BridleTokenizer, "features")):
        model = build(cls, cold_start=False)
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        values = values_for(model.config)
        with torch.no_grad():
            cosine = F.cosine_similarity(run(quantized, values)[output], run(model, values)[output], dim=-1)
        assert cosine.mean() > 0.97


QUANTIZERS = {
    "soft codes": {"soft_codes": 3},
    "official": {"ema_mode": "official", "normalize": "per_stage"},
    "rotation": {"type": "gradient", "estimator": "rotation", "distance": "cosine"},
    "simvq in residual": {"inner": "simvq"},
    "smoothed in residual": {"inner": "smoothed"},
    "gumbel": {"type": "smoothed", "gumbel": "hard", "regularizer": "perplexity"},
    "smoothed in product": {"type": "product", "inner": "smoothed"},
} | {name: {"type": name} for name in REGISTRY}
SMALL = {"codebook_size": 8, "codebook_dim": 8, "levels": (8,)}


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cold_start", [True, False])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_models_of_every_quantizer_run_in_every_precision(name, cold_start, precision):
    options = SMALL | QUANTIZERS[name]
    model = build(BridleForPreTraining, cold_start=cold_start, quantizer_config=options)
    quantizer = copy.deepcopy(model.tokenizer.quantizer)
    vectors = torch.randn(50, 8)
    model.to(precision)
    assert model.decoder.head.weight.dtype == precision
    assert torch.equal(model.tokenizer.quantizer.encode(vectors), quantizer.encode(vectors))
    for key, value in quantizer.state_dict().items():
        kept = model.tokenizer.quantizer.state_dict()[key]
        assert kept.dtype == torch.float32 and torch.equal(kept, value), key
    values = values_for(model.config)
    codes = model.tokenizer.encode(values)
    assert codes.max() < 8 and model.tokenizer.decode(codes).dtype == precision
    for phase in ("encoder", "tokenizer", "joint"):
        assert model.eval()(values, phase=phase).loss.isfinite()
        model.train()(values, phase=phase).loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_codes_follow_their_module_to_another_device():
    for name, options in QUANTIZERS.items():
        model = build(BridleTokenizer, quantizer_config=SMALL | options)
        for tensor in model.quantizer.to("meta", torch.bfloat16).state_dict().values():
            assert tensor.is_meta and tensor.dtype == torch.float32, name


@pytest.mark.parametrize("name", REGISTRY)
def test_codes_of_a_model_saved_or_loaded_in_half_precision_are_the_same(name, tmp_path):
    options = SMALL | QUANTIZERS[name]
    model = build(BridleTokenizer, cold_start=False, quantizer_config=options)
    before = copy.deepcopy(model.quantizer.state_dict())
    model.half().save_pretrained(tmp_path)
    for dtype in (None, torch.bfloat16):
        loaded = BridleTokenizer.from_pretrained(tmp_path, dtype=dtype)
        state = loaded.quantizer.state_dict()
        assert all(torch.equal(state[key], value) for key, value in before.items())
    assert loaded.quantize_layer[0].weight.dtype == torch.bfloat16
