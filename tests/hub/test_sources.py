"""AudioMAE, ViT-MAE and VideoMAE encoders: transformers' own models say what the features are.

The names of the original code are written here from its public listings, not from our key maps.
"""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoVideoProcessor,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from bridle_hf import load_official
from bridle_hf.hub import to_official
from bridle_hf.hub.convert import convert
from bridle_hf.modeling_bridle import (
    BridleForAudioClassification,
    BridleForPreTraining,
    BridleForVideoClassification,
    BridleModel,
)

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
# what no shape tells: the heads, and the epsilon of transformers' copies
DECODER = {"decoder_num_attention_heads": 2}
OPTIONS = {"num_attention_heads": 2, "layer_norm_eps": 1e-12, **DECODER}
MODALITIES = {"audiomae": "audio", "vit-mae": "image", "videomae": "video"}
INPUTS = {"audiomae": (2, 64, 128), "vit-mae": (2, 3, 32, 32), "videomae": (2, 4, 3, 32, 32)}


def perturbed(model):
    """Every weight away from its initial value, positions included: transformers leaves those of ViT-MAE at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def theirs(source, **options):
    """A random model of transformers."""
    if source == "videomae":
        return perturbed(
            VideoMAEModel(VideoMAEConfig(**SIZES | options, image_size=32, num_frames=4, use_mean_pooling=False))
        )
    size = {"image_size": (64, 128), "num_channels": 1} if source == "audiomae" else {"image_size": 32}
    return perturbed(ViTMAEModel(ViTMAEConfig(**SIZES | size | options, mask_ratio=0.0)))


def inputs(source):
    return torch.randn(INPUTS[source], generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model, values):
    """Of any of the models, in the order of the patches."""
    if isinstance(model, BridleModel):
        return model(**{model.main_input_name: values}).last_hidden_state
    if isinstance(model, VideoMAEModel):
        return model(values).last_hidden_state
    values = values[:, None] if values.dim() == 3 else values
    patches = model.embeddings.position_embeddings.shape[1] - 1
    noise = torch.arange(float(patches)).expand(len(values), -1)  # it sorts the patches by it
    return model(values, noise=noise, interpolate_pos_encoding=False).last_hidden_state


ORIGINAL = [
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)", r"attn.\2"),
    (r"attention\.(o_proj|output\.dense)", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head"),
]


def original_names(state) -> dict[str, torch.Tensor]:
    """The weights of a transformers encoder as the original code names and joins them."""
    names = {}
    for name, tensor in state.items():
        for pattern, original in ORIGINAL:
            name = re.sub(pattern, original, name)
        names[name] = tensor
    for name in [name for name in names if ".attn.q." in name]:
        query, key, value = (names.pop(name.replace(".q.", part), None) for part in (".q.", ".k.", ".v."))
        block = name.partition(".q.")[0]
        if key is None:  # VideoMAE
            names[f"{block}.q_bias"], names[f"{block}.v_bias"] = query, value
        else:
            names[f"{block}.qkv.{name.rsplit('.', 1)[1]}"] = torch.cat([query, key, value])
    return names


DECODERS = {
    "audiomae": [
        "decoder_embed.weight",
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks.0.attn.tau",
        "decoder_pred.bias",
    ],
    "vit-mae": [
        "decoder_embed.weight",
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks.0.norm1.bias",
        "decoder_norm.bias",
    ],
    "videomae": ["encoder_to_decoder.weight", "mask_token", "decoder.blocks.0.attn.q_bias", "decoder.head.bias"],
}


@pytest.mark.parametrize("source", MODALITIES)
def test_original_pretraining_files(source, tmp_path):
    model, values = theirs(source), inputs(source)
    prefix = "encoder." if source == "videomae" else ""
    encoder = {prefix + name: tensor for name, tensor in original_names(model.state_dict()).items()}
    decoder = {name: torch.ones(3) for name in DECODERS[source]}
    torch.save({"model": encoder | decoder, "epoch": 3}, tmp_path / "pretrained.pth")
    ours, report = load_official(
        tmp_path / "pretrained.pth", BridleModel, MODALITIES[source], source=source, return_report=True, **OPTIONS
    )
    torch.testing.assert_close(features(ours, values), features(model, values), rtol=0, atol=1e-4)
    assert set(report.used) == set(encoder)
    assert set(report.dropped) == {*decoder, "epoch"} and "predicts pixels" in report.dropped["mask_token"]
    back = to_official(ours, source)
    if source != "videomae":  # the position of the CLS token has joined the token
        encoder["cls_token"] = encoder["cls_token"] + encoder["pos_embed"][:, :1]
        encoder["pos_embed"][:, 0] = 0
    assert back.keys() == encoder.keys() and all(torch.equal(back[name], encoder[name]) for name in encoder)


@pytest.mark.parametrize("source", ["vit-mae", "videomae"])
def test_transformers_models_and_their_files(source, tmp_path):
    model, values = theirs(source), inputs(source)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) != set(model.state_dict())  # transformers names them otherwise in memory
    for state in (model.state_dict(), saved, {f"{model.base_model_prefix}.{name}": saved[name] for name in saved}):
        ours, report = load_official(state, BridleModel, MODALITIES[source], return_report=True, **OPTIONS)
        torch.testing.assert_close(features(ours, values), features(model, values), rtol=0, atol=1e-4)
        assert set(report.used) == set(state) and not report.dropped and not report.initialised


@pytest.mark.parametrize("source", ["vit-mae", "videomae"])
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_folder_of_transformers_says_what_no_weight_tells(source, file, tmp_path, caplog):
    """The features are transformers', with heads, activation and epsilon that are not our defaults."""
    model, values = theirs(source, num_attention_heads=3, hidden_act="relu", layer_norm_eps=0.1), inputs(source)
    model.save_pretrained(tmp_path / "theirs")
    caplog.set_level("INFO")
    report = convert(tmp_path / "theirs" / file, tmp_path / "ours", source=source, **DECODER)
    assert "config.json says num_attention_heads=3, hidden_act=relu, layer_norm_eps=0.1" in caplog.text
    assert not report.assumed
    ours = BridleModel.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(features(ours, values), features(model, values), rtol=0, atol=1e-4)
    other = load_official(tmp_path / "theirs", BridleModel, MODALITIES[source], **DECODER, layer_norm_eps=1e-12)
    assert other.config.layer_norm_eps == 1e-12 and other.config.num_attention_heads == 3  # what is given counts
    (tmp_path / "theirs" / "config.json").write_text("[1")
    with pytest.raises(ValueError, match=r"config\.json is damaged: "):
        load_official(tmp_path / "theirs", BridleModel, MODALITIES[source], **DECODER)


def test_without_config_the_heads_are_assumed():
    options = {name: value for name, value in OPTIONS.items() if name != "num_attention_heads"}
    report = load_official(theirs("vit-mae").state_dict(), BridleModel, "image", return_report=True, **options)[1]
    assert report.assumed == {"num_attention_heads": "12: no weight tells"}


@pytest.mark.parametrize(("source", "auto"), [("vit-mae", AutoImageProcessor), ("videomae", AutoVideoProcessor)])
def test_the_processor_is_saved_with_the_model(source, auto, tmp_path):
    sizes = OPTIONS | {"input_size": (32, 32) if source == "vit-mae" else (4, 32, 32)}
    convert(theirs(source).state_dict(), tmp_path, source=source, processor={"image_mean": [0.5] * 3}, **sizes)
    processor = auto.from_pretrained(tmp_path)
    assert processor.crop_size["height"] == 32 and tuple(processor.image_mean) == (0.5, 0.5, 0.5)
    clip = np.zeros((9, 40, 40, 3)[source == "vit-mae" :], dtype=np.uint8)
    assert processor(clip, return_tensors="np")["pixel_values"].shape[1:] == INPUTS[source][1:]


def test_fine_tuned_videomae():
    config = VideoMAEConfig(**SIZES, image_size=32, num_frames=4, num_labels=5)
    model, values = perturbed(VideoMAEForVideoClassification(config)), inputs("videomae")
    original = original_names({name.removeprefix("videomae."): t for name, t in model.state_dict().items()})
    assert {"fc_norm.weight", "head.weight", "blocks.1.attn.v_bias"} <= set(original)
    for state in (model.state_dict(), {"module": original}):
        ours = load_official(state, BridleForVideoClassification, "video", **OPTIONS)
        with torch.no_grad():
            torch.testing.assert_close(ours(pixel_values=values).logits, model(values).logits, rtol=0, atol=1e-4)


def test_a_folder_of_a_fine_tuned_videomae_names_its_classes(tmp_path):
    names = {0: "up", 1: "down", 2: "left"}
    config = VideoMAEConfig(
        **SIZES, image_size=32, num_frames=4, id2label=names, label2id={n: i for i, n in names.items()}
    )
    model, values = perturbed(VideoMAEForVideoClassification(config)), inputs("videomae")
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", source="videomae", **DECODER)
    ours = BridleForVideoClassification.from_pretrained(tmp_path / "ours")
    assert ours.config.id2label == names and ours.config.label2id == {"up": 0, "down": 1, "left": 2}
    with torch.no_grad():
        torch.testing.assert_close(ours(pixel_values=values).logits, model(values).logits, rtol=0, atol=1e-4)
    file, numbered = tmp_path / "theirs" / "config.json", {number: f"LABEL_{number}" for number in range(3)}
    for found, expected in (
        ({0: "crane", 1: "down", 2: "crane"}, {0: "crane (0)", 1: "down", 2: "crane (2)"}),  # as ImageNet has it
        ({1: "up", 2: "down", 3: "left"}, numbered),
        (["up", "down", "left"], numbered),
        (None, numbered),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": found}))
        again = load_official(tmp_path / "theirs", BridleForVideoClassification, "video", **DECODER)
        assert again.config.id2label == expected


def test_fine_tuned_audiomae_has_the_names_of_fine_tuned_bridle():
    state = original_names(theirs("audiomae").state_dict())
    head = {"fc_norm.weight": torch.ones(24), "fc_norm.bias": torch.zeros(24)}
    head |= {"head.weight": torch.ones(5, 24), "head.bias": torch.zeros(5)}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")} | head
    for source in ("audiomae", "bridle", None):
        ours, report = load_official(state, BridleForAudioClassification, source=source, return_report=True, **OPTIONS)
        assert set(report.used) == set(state) and ours.config.num_labels == 5
        back = to_official(ours, source or "bridle")
        assert back.keys() == state.keys()


def test_an_encoder_whose_norm_is_the_heads(caplog):
    model, values = perturbed(VideoMAEModel(VideoMAEConfig(**SIZES, image_size=32, num_frames=4))), inputs("videomae")
    ours = load_official(model.state_dict(), BridleModel, "video", **OPTIONS)  # use_mean_pooling is the default there
    torch.testing.assert_close(features(ours, values), features(model, values), rtol=0, atol=1e-4)
    assert "no final norm" in caplog.text
    state = {
        name: t for name, t in original_names(theirs("vit-mae").state_dict()).items() if not name.startswith("norm.")
    }
    with pytest.raises(ValueError, match="norm.bias is missing; norm.weight is missing"):
        load_official(state, BridleModel, "image", **OPTIONS)


def test_a_third_of_the_attention_is_missing():
    state = theirs("vit-mae").state_dict()
    del state["layers.1.attention.k_proj.weight"]
    with pytest.raises(
        ValueError, match=r"lacks encoder.layer.1.attention.attention.key.weight beside .*q_proj.weight"
    ):
        load_official(state, BridleModel, "image", **OPTIONS)


def test_sources_that_do_not_fit():
    state = original_names(theirs("vit-mae").state_dict())
    with pytest.raises(ValueError, match="`source` is 'mae'; it takes one of 'bridle', 'audiomae'"):
        load_official(state, BridleModel, "image", source="mae")
    with pytest.raises(ValueError, match="`modality` is 'audio'; a checkpoint of vit-mae takes 'image'"):
        load_official(state, BridleModel, source="vit-mae")
    with pytest.raises(ValueError, match="`cls` is BridleForPreTraining; the checkpoint holds no decoder"):
        load_official(state, BridleForPreTraining, "image", **OPTIONS)
    with pytest.raises(ValueError, match="unknown keys.*mask_token"):
        load_official({**state, "mask_token": torch.ones(1)}, BridleModel, "image", source="bridle", **OPTIONS)
    ours = load_official(state, BridleModel, "image", **OPTIONS)
    with pytest.raises(ValueError, match="`source` is 'videomae'; it takes a model of modality 'video', not 'image'"):
        to_official(ours, "videomae")
    with pytest.raises(ValueError, match="`source` is 'mae'; it takes one of"):
        to_official(ours, "mae")
