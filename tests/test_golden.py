"""The published reference implementation's numbers, from its weights loaded into our classes.

Tolerances are those the vectors were published with: values 1e-4, losses 1e-5, codes equal in 99.9 % of places.
"""

import copy
import re
from functools import cached_property

import pytest
import torch
from safetensors.torch import load_file

from bridle_hf import load_official
from bridle_hf.modeling_bridle import BridleForAudioClassification, BridleModel

AUDIO, IMAGE, VIDEO, FINETUNE = ("audio_rq", "audio_vq"), ("image",), ("video_rq",), ("finetune_audio",)
# what no shape tells
OPTIONS = {
    "audio_rq": {},
    "audio_vq": {},
    "image": {"decoder_num_attention_heads": 4},
    "video_rq": {"decoder_num_attention_heads": 4, "estimator_num_attention_heads": 4, "input_size": (16, 64, 64)},
    "finetune_audio": {"cls": BridleForAudioClassification},
}


# Every output is compared by a test below, or was never computed.
COMPARED = (
    "features", "masked_features", "mask", "decoder_logits(_masked)?",
    "(cold|full)_(codes(_all|_masked|_masked_only_input)?|quantized|codebook_loss|encoder_loss)",
    "estimator", "cosine_loss", "tokenizer_loss", "pooled", "logits",
    r"after_ema/(codebooks\.\d\.(weight|cluster_size_ema)|embedding\.weight|cluster_size)",
)  # fmt: skip
IDLE = r"after_ema/(codebooks\.\d\.embed_ema|embedding\.(cluster_size|embed_avg|initted))"


class Golden:
    """A file's weights in our model, its inputs in the layout our models take, and its outputs, on a device."""

    def __init__(self, path, device):
        self.device, tensors = device, load_file(path, device=str(device))

        def part(name):
            return {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}

        self.weights, self.outputs, inputs = part("weights/"), part("outputs/"), part("inputs/")
        modality, name = path.stem.replace("finetune_audio", "audio").split("_")[0], path.stem
        self.options = {"modality": modality, "num_attention_heads": 4, **OPTIONS[name]}
        model, self.report = load_official(self.weights, return_report=True, **self.options)
        self.model = model.to(device)
        if modality == "audio":
            self.values = inputs["input_values"][:, 0]  # (B, frames, mel)
        elif modality == "image":
            self.values = inputs["pixel_values"]
        else:
            self.values = inputs["pixel_values"].transpose(1, 2)  # (B, T, C, H, W)
        self.mask = {"noise": inputs["noise"]} if "noise" in inputs else {"bool_masked_pos": inputs.get("mask")}

    def run(self, part=None, **kwargs):
        """The output of a part of the model, or all of it."""
        part = self.model if part is None else part
        with torch.no_grad():
            return part(**{part.main_input_name: self.values}, **kwargs)

    def tokenizer(self, cold):
        """As the cold start of iteration 1, or with the transformer that is trained after it."""
        return self.cold.tokenizer if cold else self.model.tokenizer

    @cached_property
    def cold(self):
        """The whole model of iteration 1."""
        return load_official(self.weights, cold_start=True, **self.options).to(self.device)

    def decoder_logits(self):
        """Predictions for all patches, (B, N, M * K). A training forward computes those of the masked ones alone."""
        bridle, decoder = self.model.bridle, self.model.decoder
        patch_mask = bridle.make_patch_mask(self.values, **self.mask)
        encoded = self.run(bridle, patch_mask=patch_mask).last_hidden_state
        with torch.no_grad():
            logits = decoder.predict(decoder(encoded, patch_mask, self.model.config.grid)).flatten(-2)
        order = torch.cat([patch_mask.kept, patch_mask.masked], dim=1)  # (B, N): the patch of each row of the logits
        return torch.empty_like(logits).scatter_(1, order[..., None].expand_as(logits), logits)


@pytest.fixture(scope="module")
def load(golden_dir, device):
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = Golden(golden_dir / f"{name}.safetensors", device)
        return loaded[name]

    return load


def files(*groups):
    return pytest.mark.parametrize("name", [name for group in groups for name in group])


def assert_close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def assert_loss(actual, expected):
    assert_close(actual.reshape(1), expected, 1e-5)


def assert_codes(actual, expected):
    expected = expected.reshape(actual.shape)  # the VQ file leaves out the axis of its one codebook
    assert (actual == expected).float().mean() >= 0.999


@files(AUDIO, IMAGE, VIDEO, FINETUNE)
def test_every_key_is_accounted_for(load, name):
    used, dropped = set(load(name).report.used), set(load(name).report.dropped)
    assert used | dropped == set(load(name).weights) and not used & dropped


@files(AUDIO, IMAGE, VIDEO, FINETUNE)
def test_no_output_is_left_out(load, name):
    golden = load(name)
    for output, value in golden.outputs.items():
        if re.fullmatch(IDLE, output):  # state that the reference keeps and never moves
            weight = output.replace("after_ema/", "tokenizer.quantizer.")
            assert torch.equal(value, golden.weights[weight])
        else:
            assert any(re.fullmatch(pattern, output) for pattern in COMPARED), output


@files(AUDIO, IMAGE, VIDEO)
def test_features(load, name):
    golden = load(name)
    assert_close(golden.run(golden.model.bridle).last_hidden_state, golden.outputs["features"])


@files(AUDIO, IMAGE, VIDEO)
def test_features_of_the_encoder_alone(load, name):
    golden = load(name)
    encoder = load_official(golden.weights, **golden.options, cls=BridleModel).to(golden.device)
    assert_close(golden.run(encoder).last_hidden_state, golden.outputs["features"])


@files(AUDIO, IMAGE, VIDEO)
def test_masked_features(load, name):
    golden = load(name)
    assert_close(golden.run(golden.model.bridle, **golden.mask).last_hidden_state, golden.outputs["masked_features"])


@files(AUDIO, IMAGE)
def test_mask_from_noise(load, name):
    golden = load(name)
    patch_mask = golden.model.bridle.make_patch_mask(golden.values, **golden.mask)
    assert torch.equal(patch_mask.mask.float(), golden.outputs["mask"])


@files(AUDIO, IMAGE)
def test_decoder_logits(load, name):
    assert_close(load(name).decoder_logits(), load(name).outputs["decoder_logits"])


@files(VIDEO)
def test_decoder_logits_of_masked_patches(load, name):
    golden = load(name)
    masked = golden.mask["bool_masked_pos"]
    assert_close(golden.decoder_logits()[masked], golden.outputs["decoder_logits_masked"][0])
    assert_close(golden.run(**golden.mask).logits.flatten(-2), golden.outputs["decoder_logits_masked"])


@files(AUDIO)
@pytest.mark.parametrize("kind", ["cold", "full"])
def test_tokens(load, name, kind):
    golden = load(name)
    tokenizer = golden.tokenizer(cold=kind == "cold")
    with torch.no_grad():
        output = tokenizer.quantize(golden.values)
    assert_codes(tokenizer.encode(golden.values), golden.outputs[f"{kind}_codes"])
    assert_codes(output.codes, golden.outputs[f"{kind}_codes"])
    assert_close(output.quantized, golden.outputs[f"{kind}_quantized"])
    assert_loss(output.loss, golden.outputs[f"{kind}_codebook_loss"])


@files(VIDEO)
def test_video_tokens(load, name):
    golden, expected = load(name), load(name).outputs
    masked = golden.mask["bool_masked_pos"]
    cold = golden.tokenizer(cold=True).encode(golden.values)
    assert_codes(cold, expected["cold_codes_all"])
    assert_codes(cold[masked][None], expected["cold_codes_masked"])
    with torch.no_grad():
        output = golden.tokenizer(cold=False).quantize(golden.values)
    assert_codes(output.codes, expected["full_codes_all"])
    assert_close(output.quantized, expected["full_quantized"])
    assert_loss(output.loss, expected["full_codebook_loss"])


@files(VIDEO)
def test_video_codes_as_the_reference_computes_them(load, name):
    # its tokenizer sees the masked patches alone; ours is always given the whole clip
    golden = load(name)
    tokenizer = golden.tokenizer(cold=False)
    hidden = golden.run(tokenizer.encoder, bool_masked_pos=~golden.mask["bool_masked_pos"]).last_hidden_state
    with torch.no_grad():
        codes = tokenizer.quantizer.encode(tokenizer.quantize_layer(hidden))
    assert_codes(codes, golden.outputs["full_codes_masked_only_input"])


@files(AUDIO, VIDEO)
def test_encoder_loss(load, name):
    golden = load(name)
    for kind in ("cold", "full"):
        if f"{kind}_encoder_loss" in golden.outputs:  # the video file has the cold one only
            output = golden.run(golden.cold if kind == "cold" else golden.model, **golden.mask, phase="encoder")
            assert_loss(output.losses["encoder"].mean, golden.outputs[f"{kind}_encoder_loss"])
            assert torch.equal(output.loss, output.losses["encoder"].mean)


@files(AUDIO, VIDEO)
def test_estimator_and_tokenizer_losses(load, name):
    golden, expected = load(name), load(name).outputs
    assert_close(golden.run(golden.model.tokenizer).features, expected["estimator"])
    output = golden.run(phase="tokenizer")
    assert_loss(output.losses["cosine"].mean, expected["cosine_loss"])
    assert_loss(output.losses["codebook"].mean, expected["full_codebook_loss"])
    if "tokenizer_loss" in expected:
        assert_loss(output.loss, expected["tokenizer_loss"])


@files(AUDIO)
def test_codebooks_after_one_step(load, name):
    golden, expected = load(name), load(name).outputs
    tokenizer = copy.deepcopy(golden.model.tokenizer).train()
    tokenizer.update_(golden.run(tokenizer).quantizer_stats)
    for m, book in enumerate(tokenizer.quantizer.codebooks):
        if name == "audio_vq":
            codes, counts = expected["after_ema/embedding.weight"], expected["after_ema/cluster_size"]
        else:
            codes = expected[f"after_ema/codebooks.{m}.weight"][:-1]
            counts = expected[f"after_ema/codebooks.{m}.cluster_size_ema"]
        assert_close(book.embed, codes)
        assert_close(book.cluster_size, counts)
        # the step is much larger than the tolerance
        assert (golden.model.tokenizer.quantizer.codebooks[m].embed - codes).abs().max() > 1e-3


@files(FINETUNE)
def test_classifier(load, name):
    golden = load(name)
    pooled = golden.run(golden.model.bridle).pooler_output
    with torch.no_grad():
        assert_close(golden.model.layernorm(pooled), golden.outputs["pooled"])
    assert_close(golden.run().logits, golden.outputs["logits"])
