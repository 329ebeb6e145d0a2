"""Reading reference checkpoints: files and wrappers, what is inferred, what is an error, where every key went."""

import argparse
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridle_hf import load_official
from bridle_hf.modeling_bridle import (
    BridleForAudioClassification,
    BridleForImageClassification,
    BridleForPreTraining,
    BridleModel,
    BridleTokenizer,
)

HEADS = {"num_attention_heads": 4}


@pytest.fixture(scope="module")
def weights(golden_dir):
    """name -> a new dict of that file's reference weights."""
    loaded = {}

    def weights(name):
        if name not in loaded:
            tensors = load_file(golden_dir / f"{name}.safetensors")
            loaded[name] = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
        return dict(loaded[name])

    return weights


@pytest.fixture
def image(weights):
    return weights("image")


def load_image(source, cls=BridleModel, **kwargs):
    return load_official(source, cls, "image", **HEADS, decoder_num_attention_heads=4, **kwargs)


def features(model, size=(96, 96), seed=0):
    values = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(pixel_values=values).last_hidden_state


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2), "holds a Tensor; it takes a mapping"),
        ({"model": Path("x")}, "which is damaged or holds other things than tensors and numbers.$"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"`state_dict_or_path` is .*other.pth.*{message}"):
        load_official(tmp_path / "other.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(TypeError, match="`state_dict_or_path` is a int; it takes a mapping or a path"):
        load_official(2**31)
    with pytest.raises(ValueError, match="`state_dict_or_path` is .*cut.safetensors, which is damaged"):
        load_official(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="takes named tensors.*these are none: 0"):
        load_official({0: torch.zeros(2)})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w, "epoch": 3, "args": argparse.Namespace(lr=0.1, model="vit")},
        lambda w: {"module": w},
        lambda w: {"model": {f"module.{name}": tensor for name, tensor in w.items()}},
    ],
)
def test_torch_files_and_their_wrappers(image, tmp_path, wrap):
    torch.save(wrap(image), tmp_path / "checkpoint.pth")
    model, report = load_image(tmp_path / "checkpoint.pth", return_report=True)
    assert torch.equal(features(model), features(load_image(image)))
    assert set(image) <= set(report.used) | set(report.dropped)
    assert set(report.dropped) - set(image) <= {"epoch", "args"}


def test_safetensors_file(image, tmp_path):
    save_file(image, tmp_path / "model.safetensors")
    assert torch.equal(features(load_image(str(tmp_path / "model.safetensors"))), features(load_image(image)))


class Payload:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_code_in_a_file_is_not_run(image, tmp_path):
    torch.save({"model": image, "args": Payload()}, tmp_path / "checkpoint.pth")
    with pytest.raises(Exception, match="holds other things than tensors"):
        load_image(tmp_path / "checkpoint.pth")


def test_what_is_no_checkpoint(image):
    with pytest.raises(ValueError, match="named tensors.*none: epoch"):
        load_image({**image, "epoch": 3})
    with pytest.raises(ValueError, match="named tensors.*empty"):
        load_image({"model": {}})


# --- every key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        "encoder_decoder.gamma",
        "decoder_norm.weight",
        "encoder_decoder.blocks.0.attn.qkv.scale",
        "encoder_decoder.blocks.x.norm1.bias",
    ],
)
def test_unknown_keys_are_listed(image, extra):
    with pytest.raises(ValueError, match=f"unknown.*: another, {extra}"):
        load_image({**image, extra: torch.zeros(1), "another": torch.zeros(1)})


def test_a_name_of_the_map_that_the_model_has_no_place_for(weights):
    # decoder and estimator of a video checkpoint share their names, but an estimator masks nothing
    video = {**weights("video_rq"), "tokenizer.mask_token": torch.zeros(1, 1, 24)}
    with pytest.raises(ValueError, match="tokenizer.mask_token is unknown"):
        load_official(video, modality="video", input_size=(16, 64, 64), **HEADS)


def test_missing_keys_are_listed(image):
    names = "encoder_decoder.blocks.1.attn.qkv.bias", "encoder_decoder.norm.weight"
    for name in names:
        del image[name]
    with pytest.raises(ValueError, match=f"{names[0]} is missing; {names[1]} is missing"):
        load_image(image)


@pytest.mark.parametrize(
    "name",
    ["encoder_decoder.patch_embed.proj.weight", "encoder_decoder.pos_embed", "encoder_decoder.decoder_embed.weight"],
)
def test_missing_keys_that_sizes_are_read_from(image, name):
    del image[name]
    with pytest.raises(ValueError, match=f"no key {name}"):
        load_image(image)


def test_missing_key_of_the_tokenizer(weights):
    broken = weights("audio_vq")
    del broken["tokenizer.quantizer.embedding.embed_avg"]
    with pytest.raises(ValueError, match="tokenizer.quantizer.embedding.embed_avg is missing"):
        load_official(broken, **HEADS)


def test_half_a_bias_is_missing(weights):
    broken = weights("video_rq")
    del broken["encoder_decoder.encoder.blocks.0.attn.v_bias"]
    with pytest.raises(ValueError, match="lacks.*encoder.blocks.0.attn.v_bias"):
        load_official(broken, modality="video", input_size=(16, 64, 64), **HEADS)


def test_weights_of_another_shape(image):
    image["encoder_decoder.blocks.1.norm1.weight"] = torch.ones(47)
    with pytest.raises(ValueError, match=r"blocks.1.norm1.weight is \(47,\) where \(48,\) is wanted"):
        load_image(image)


def test_file_without_tokenizer(image, caplog):
    with caplog.at_level(logging.WARNING):
        model, report = load_image(image, BridleForPreTraining, return_report=True)
    assert "no tokenizer" in caplog.text
    assert set(report.initialised) == {f"tokenizer.{name}" for name in model.tokenizer.state_dict()}
    assert model.config.quantizer_config.num_codebooks == 4 and model.config.quantizer_config.codebook_size == 16
    assert not model.tokenizer.quantizer.initialized
    two = load_image(image, BridleForPreTraining, quantizer_config={"num_codebooks": 2}).config.quantizer_config
    assert (two.num_codebooks, two.codebook_size) == (2, 32)
    with pytest.raises(ValueError, match="num_codebooks.*is 5.*64"):
        load_image(image, BridleForPreTraining, quantizer_config={"num_codebooks": 5})


def test_parts_alone(weights):
    audio = weights("audio_rq")
    whole = load_official(audio, **HEADS)
    for cls, part, prefix in (
        (BridleModel, whole.bridle, "encoder_decoder."),
        (BridleTokenizer, whole.tokenizer, "tokenizer."),
    ):
        model, report = load_official(audio, cls, return_report=True, **HEADS)
        assert all(torch.equal(value, part.state_dict()[name]) for name, value in model.state_dict().items())
        assert set(report.used) | set(report.dropped) == set(audio)
        assert all(name.startswith(prefix) for name in report.used)
        assert report.dropped["encoder_decoder.mask_token"] == f"no part of {cls.__name__}"
    only = {name: tensor for name, tensor in audio.items() if name.startswith("tokenizer.")}
    assert load_official(only, BridleTokenizer, **HEADS).config.hidden_size == 48


def test_the_cold_start_is_a_choice_that_the_report_names(weights):
    audio = weights("audio_rq")
    for cls in (BridleForPreTraining, BridleTokenizer):
        trained, report = load_official(audio, cls, return_report=True, **HEADS)
        assert getattr(trained, "tokenizer", trained).cold_start is None
        assert report.assumed == {"cold_start": "False: the tokenizer is taken to be trained, not the cold start"}
        assert report.dropped["tokenizer.cold_start_encoder.weight"].startswith("of the cold start")
        cold, report = load_official(audio, cls, return_report=True, cold_start=True, **HEADS)
        assert report.assumed == {} and set(report.used) | set(report.dropped) == set(audio)
        assert not set(report.used) & set(report.dropped)
        assert report.used["tokenizer.cold_start_encoder.weight"].endswith("cold_start.projection")
        assert report.dropped["tokenizer.quantize_layer.0.weight"].startswith("of the trained tokenizer")
        tokenizer = getattr(cold, "tokenizer", cold)
        assert tokenizer.encoder is None and tokenizer.estimator is None
        assert torch.equal(tokenizer.cold_start.projection, audio["tokenizer.cold_start_encoder.weight"])
    assert load_official(audio, BridleModel, return_report=True, **HEADS)[1].assumed == {}


def test_pretraining_file_lacks_a_classifier(image):
    with pytest.raises(ValueError, match="classifier.bias.*missing"):
        load_image(image, BridleForImageClassification)


# --- sizes and overrides ---------------------------------------------------------------------------------------------


def test_sizes_are_inferred(weights):
    config = load_official(weights("audio_vq"), **HEADS).config
    assert (config.preset, config.decoder_type, config.position_layout) == ("official", "swin", "table")
    assert tuple(config.input_size) == (1024, 128) and tuple(config.patch_size) == (16, 16)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (48, 2, 192)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (32, 16)
    assert (config.decoder_num_attention_heads, config.estimator_num_hidden_layers) == (16, 3)
    codes = config.quantizer_config
    assert (codes.type, codes.num_codebooks, codes.codebook_size, codes.codebook_dim) == ("vector", 1, 64, 16)
    assert codes.ema_mode == "official"


def test_labels_are_inferred(weights):
    model = load_official(weights("finetune_audio"), BridleForAudioClassification, **HEADS)
    assert model.config.num_labels == 7 and tuple(model.config.input_size) == (512, 128)
    names = {i: f"sound {i}" for i in range(7)}
    model = load_official(weights("finetune_audio"), BridleForAudioClassification, id2label=names, **HEADS)
    assert model.config.id2label == names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 96}, "`hidden_size` is 96; the checkpoint's weights say 48"),
        ({"patch_size": (8, 8)}, "`patch_size` is.*say"),
        ({"heads": 4}, "`heads` is no field"),
        ({"estimator_num_attention_heads": 5}, "^`estimator_hidden_size` 48 is not a multiple of"),
        ({"quantizer_config": {"codes": 4}}, "`quantizer_config.codes` is no field"),
        ({"quantizer_config": {"codebook_size": 8}}, "`quantizer_config.codebook_size` is 8.*say 16"),
        ({"input_size": (96, 80)}, "`input_size` is.*36 patches"),
        ({"position_layout": "flat"}, "`position_layout` is 'flat'"),
    ],
)
def test_overrides_that_do_not_fit(image, overrides, message):
    if "codebook_size" in str(overrides):
        overrides["quantizer_config"]["num_codebooks"] = 4
    with pytest.raises(ValueError, match=message):
        load_image(image, BridleForPreTraining, **overrides)


def test_wrong_modality(image, weights):
    with pytest.raises(ValueError, match="`modality` is 'sound'; it takes one of 'audio', 'image', 'video'"):
        load_official(image, modality="sound")
    with pytest.raises(ValueError, match="unknown keys for modality 'video'"):
        load_official(image, modality="video")
    with pytest.raises(ValueError, match="`modality` is 'video'; the checkpoint's patches have 2 axes"):
        load_official(weights("finetune_audio"), BridleForAudioClassification, modality="video")


# --- positions -------------------------------------------------------------------------------------------------------


def test_wrapped_tables_are_carried_and_can_be_computed(weights):
    audio = weights("audio_rq")
    stored = load_official(audio, BridleModel, **HEADS)
    assert torch.equal(stored.embeddings.positions.table, audio["encoder_decoder.pos_embed"][0, 1:])
    computed, report = load_official(audio, BridleModel, position_layout="wrapped", return_report=True, **HEADS)
    assert "computed" in report.dropped["encoder_decoder.pos_embed"]
    clip = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(computed(clip)[0], stored(clip)[0], rtol=0, atol=1e-4)


def hidden(model, values, seen):
    """Features of an encoder that sees only the patches `seen`, ascending: (1 + n, D)."""
    masked = torch.ones(1, model.config.num_patches, dtype=torch.bool)
    masked[0, seen] = False
    with torch.no_grad():
        return model(**{model.main_input_name: values}, bool_masked_pos=masked).last_hidden_state[0]


@pytest.mark.parametrize("layout", [None, "wrapped"])
def test_a_patch_of_a_shorter_clip_is_the_same_patch(weights, layout):
    model = load_official(weights("audio_rq"), BridleModel, **HEADS, **({"position_layout": layout} if layout else {}))
    clip = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        short = model(clip[:, :512]).last_hidden_state[0]
    torch.testing.assert_close(short, hidden(model, clip, range(256)), rtol=0, atol=1e-5)
    if layout is None:
        with pytest.raises(ValueError, match=r"grid of \(65, 8\).*table is for \(64, 8\)"):
            model(torch.randn(1, 1040, 128))
    else:
        assert model(torch.randn(1, 1040, 128)).last_hidden_state.shape == (1, 1 + 520, 48)


def test_a_patch_of_a_smaller_image_is_the_same_patch(image):
    trained = 0.1 * torch.randn(37, 48, generator=torch.Generator().manual_seed(0))
    image["encoder_decoder.pos_embed"] = image["encoder_decoder.pos_embed"] + trained
    model = load_image(image)
    values = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        small = model(pixel_values=values[..., :64, :48]).last_hidden_state[0]
    seen = [6 * row + column for row in range(4) for column in range(3)]
    torch.testing.assert_close(small, hidden(model, values, seen), rtol=0, atol=1e-5)


def test_the_slice_the_reference_fine_tunes_on_esc50(weights):
    """It cuts rows 128 to 383 out of a table that begins with CLS: its patch 0 stands where patch 127 stood."""
    audio, prefix = weights("audio_rq"), "encoder_decoder."
    model = load_official(audio, BridleModel, **HEADS)
    names = [name for name in audio if name.startswith(prefix) and "decoder_" not in name.removeprefix(prefix)]
    state = {name.removeprefix(prefix): audio[name] for name in names if "mask_token" not in name}
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 128:384]], dim=1)
    esc50 = load_official(state, BridleModel, **HEADS)
    assert tuple(esc50.config.input_size) == (512, 128) and esc50.config.position_layout == "table"
    clip = torch.randn(1, 512, 128, generator=torch.Generator().manual_seed(0))
    patches = torch.zeros(512, 16, 16)
    patches[127:383] = clip.view(32, 16, 8, 16).transpose(1, 2).reshape(256, 16, 16)
    placed = patches.view(64, 8, 16, 16).transpose(1, 2).reshape(1, 1024, 128)
    with torch.no_grad():
        torch.testing.assert_close(esc50(clip)[0][0], hidden(model, placed, range(127, 383)), rtol=0, atol=1e-5)


def test_the_sincos_table_of_the_grid_is_computed_for_any_size(image):
    model = load_image(image)
    assert model.config.position_layout == "grid"
    assert features(model, (128, 64)).shape == (1, 1 + 32, 48)


def test_a_trained_table_is_carried(image):
    image["encoder_decoder.pos_embed"] = image["encoder_decoder.pos_embed"] + 0.01
    model = load_image(image)
    assert model.config.position_layout == "table"
    assert torch.equal(model.embeddings.positions.table, image["encoder_decoder.pos_embed"][0, 1:])


def test_the_position_of_cls_joins_the_token(weights):
    finetune = weights("finetune_audio")
    model = load_official(finetune, BridleForAudioClassification, **HEADS)
    assert finetune["pos_embed"][0, 0].abs().max() > 0.01
    assert torch.equal(model.bridle.embeddings.cls_token, finetune["cls_token"] + finetune["pos_embed"][:, :1])


def test_a_position_of_cls_in_the_plain_decoder_is_refused(image):
    image["encoder_decoder.decoder_pos_embed"] = image["encoder_decoder.decoder_pos_embed"] + 0.01
    with pytest.raises(ValueError, match="decoder_pos_embed.*CLS"):
        load_image(image, BridleForPreTraining)


# --- codebooks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audio_rq", "audio_vq"])
def test_the_papers_averages_continue_from_loaded_codes(weights, name):
    model = load_official(weights(name), BridleTokenizer, quantizer_config={"ema_mode": "counts"}, **HEADS)
    quantizer = model.quantizer
    before = [book.embed.clone() for book in quantizer.codebooks]
    shape = (quantizer.num_codebooks, quantizer.codebook_size)
    quantizer.update_({"counts": torch.zeros(shape), "sums": torch.zeros(*shape, quantizer.dim)})
    for book, codes in zip(quantizer.codebooks, before, strict=True):
        assert book.initialized
        torch.testing.assert_close(book.embed, codes, rtol=1e-3, atol=0)  # nothing came in, so nothing moves


def test_a_converted_model_survives_saving(weights, tmp_path):
    model = load_official(weights("audio_rq"), **HEADS)
    model.save_pretrained(tmp_path)
    again = BridleForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    clip = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(BridleModel.from_pretrained(tmp_path)(clip)[0], model.bridle(clip)[0])
