"""A run that begins from a model that is there."""

import re

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig

from bridle_hf import BridleForAudioClassification, BridleForPreTraining, BridleModel, BridleTokenizer
from bridle_hf.hub.convert import convert
from bridle_hf.saved_models import check_model, is_whole
from bridle_hf.training import RecipeError, load_recipe, pretrain

SOURCE = {"hidden_size": 24, "num_attention_heads": 2, "mask_ratio": 0.6}


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """A recipe whose steps change nothing."""

    def build(*overrides):
        frozen = ["training.max_steps_per_phase=1", "training.weight_decay=0", "encoder.learning_rate=0"]
        return load_recipe(tiny_recipe, [f"output_dir={tmp_path}/run", *frozen, *overrides])

    return build


@pytest.fixture
def saved(tiny_recipe, tmp_path):
    """A saved encoder of another width; its weights are those of no seed."""
    config = load_recipe(tiny_recipe, ["output_dir=x", *(f"model.{k}={v}" for k, v in SOURCE.items())]).config()
    model = BridleModel(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, generator=torch.manual_seed(5))
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_encoder_is_the_saved_one_and_what_the_recipe_does_not_say_is_as_there(recipe, saved, tmp_path):
    made = recipe(f"start_from={saved}", "model.hidden_size=24", "phases=[{kind: encoder}]", "model.mask_ratio=0.5")
    assert made.config().num_attention_heads == 2 and made.config().mask_ratio == 0.5
    pretrain(made)
    begun, ended = BridleModel.from_pretrained(saved), BridleModel.from_pretrained(tmp_path / "run" / "final")
    for (name, before), after in zip(begun.state_dict().items(), ended.state_dict().values(), strict=True):
        assert torch.equal(before, after), name


def test_what_is_left_behind_of_a_classifier_is_said(recipe, saved, tmp_path, caplog):
    caplog.set_level("INFO")
    BridleForAudioClassification.from_pretrained(saved).save_pretrained(tmp_path / "classifier")
    made = recipe(f"start_from={tmp_path / 'classifier'}", "model.hidden_size=24", "phases=[{kind: encoder}]")
    pretrain(made)
    said = f"of {tmp_path / 'classifier'}, a BridleForAudioClassification, the encoder is taken and nothing else"
    assert said in caplog.text


def test_the_tokenizer_goes_along_where_it_is_asked_for(recipe, tmp_path):
    pretrain(recipe())  # three phases: its tokenizer is trained
    first = (tmp_path / "run").rename(tmp_path / "first") / "final"
    pretrain(recipe(f"start_from={first}", "start_tokenizer=true", "phases=[{kind: encoder}]"))
    before, after = (BridleForPreTraining.from_pretrained(folder) for folder in (first, tmp_path / "run" / "final"))
    assert before.tokenizer.cold_start is None
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    # and without: a random projection again
    config = recipe(f"start_from={first}", "phases=[{kind: encoder}]").config()
    assert config.cold_start and not recipe(f"start_from={first}", "start_tokenizer=true").config().cold_start


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["start_from={tmp}/none"], "`start_from` is '.*none', no folder here, and not to be had from the Hub: "),
        (
            ["start_from={tmp}/vit"],
            "`start_from` is '.*vit', a model of type 'vit_mae'; `bridle convert` makes one of it",
        ),
        (["start_from={tmp}"], "`start_from` is '.*', a folder without a config.json; it takes that of a model"),
        (
            ["start_from={tmp}/saved", "start_tokenizer=true"],
            "`start_tokenizer` is true; .* holds no trained tokenizer",
        ),
        (["start_tokenizer=true"], "`start_tokenizer` is true; it takes a model in `start_from`"),
        (["start_from={tmp}/saved", "encoder.from_scratch=true"], "`phases.0.from_scratch` is true; with `start_from`"),
    ],
)
def test_what_cannot_be_begun_from_is_refused(recipe, saved, tmp_path, overrides, message):
    ViTMAEConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(RecipeError, match=message):
        recipe(*(each.format(tmp=tmp_path) for each in overrides))


def test_weights_of_other_sizes_are_refused(recipe, saved):
    said = r"`start_from` is .*, whose weights do not fit `model`: it has hidden_size 24"
    with pytest.raises(RecipeError, match=said):
        recipe(f"start_from={saved}", "model.hidden_size=32")
    config = BridleModel.from_pretrained(saved).config
    heads = f"model.num_attention_heads={config.num_attention_heads}"
    recipe(f"start_from={saved}", "model.hidden_size=24", f"model.patch_size={list(config.patch_size)}", heads)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_attention_heads=1", "it has num_attention_heads 2, and the recipe num_attention_heads 1"),
        ("hidden_act=relu", "it has hidden_act gelu, and the recipe hidden_act relu"),
        ("layer_norm_eps=1e-12", "it has layer_norm_eps 1e-06, and the recipe layer_norm_eps 1e-12"),
    ],
)
def test_weights_are_not_used_in_another_function(recipe, saved, override, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe(f"start_from={saved}", "model.hidden_size=24", f"model.{override}")


def test_a_converted_encoder_is_trained_further(golden_dir, tiny_recipe, tmp_path):
    """Weights under AudioMAE's names, positions and all: the recipe says nothing of the encoder."""
    golden = load_file(golden_dir / "finetune_audio.safetensors").items()
    weights = {name.removeprefix("weights/"): value for name, value in golden if name.startswith("weights/")}
    convert(weights, tmp_path / "audiomae", source="audiomae", num_attention_heads=4)
    recipe = yaml.safe_load(tiny_recipe.read_text())
    kept = ("decoder_type", "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads")
    recipe["model"] = {"modality": "audio"} | {key: recipe["model"][key] for key in kept}
    recipe |= {"start_from": str(tmp_path / "audiomae"), "output_dir": str(tmp_path / "run"), "processor": {}}
    recipe["model"]["quantizer_config"] = {"codebook_size": 8, "codebook_dim": 8}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pretrain(load_recipe(tmp_path / "recipe.yaml", ["training.max_steps_per_phase=1", "encoder.learning_rate=1e-30"]))
    begun, ended = (
        BridleModel.from_pretrained(tmp_path / "audiomae"),
        BridleModel.from_pretrained(tmp_path / "run/final"),
    )
    assert begun.config.position_layout == ended.config.position_layout == "table"
    for (name, before), after in zip(begun.state_dict().items(), ended.state_dict().values(), strict=True):
        torch.testing.assert_close(before, after, msg=name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights, name: weights.pop(name), "weights of a BridleModel are missing: layers.0.mlp.fc1.weight"),
        (lambda weights, name: weights.update({name: torch.ones(2)}), r"fc1.weight is \(2,\), not"),
        (lambda weights, name: weights[name].fill_(torch.nan), "weights hold NaN or inf: layers.0.mlp.fc1.weight"),
    ],
)
def test_damaged_weights_are_named_before_the_run(recipe, saved, damage, message):
    file = saved / "model.safetensors"
    weights = load_file(file)
    damage(weights, "layers.0.mlp.fc1.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RecipeError, match=f"`start_from` is '.*', whose weights cannot be used: .*{message}"):
        recipe(f"start_from={saved}", "model.hidden_size=24")
    with pytest.raises(ValueError, match=f"^model is '.*', which cannot be read: .*{message}"):
        check_model(saved, "model", weights="values")
    check_model(saved, "model", weights=None)  # random weights take none of them
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RecipeError, match="`start_from` is '.*', whose weights cannot be used: "):
        recipe(f"start_from={saved}", "model.hidden_size=24")
    with pytest.raises(RecipeError, match="`start_from` is '.*safetensors', a file; it takes the folder of a model"):
        recipe(f"start_from={file}")


def test_of_a_whole_model_the_encoder_is_enough(recipe, tmp_path):
    made = recipe("phases=[{kind: encoder}]")
    BridleForPreTraining(made.config()).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    weights = load_file(file)
    encoder = {name: weight for name, weight in weights.items() if name.startswith("bridle.")}
    spoiled = weights | {"decoder.embed.weight": weights["decoder.embed.weight"] * torch.nan}
    for kept in (encoder, spoiled):
        save_file(kept, file, {"format": "pt"})
        recipe(f"start_from={tmp_path / 'saved'}")
        check_model(tmp_path / "saved", "model", weights="values")
    assert not is_whole(tmp_path / "saved")
    BridleTokenizer(made.config()).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(RecipeError, match="`start_from` is '.*', a tokenizer alone; it takes a model with an encoder"):
        recipe(f"start_from={tmp_path / 'tokenizer'}")


def test_the_folder_of_a_run_stands_for_its_final_and_another_modality_is_named(recipe, saved, tmp_path):
    (tmp_path / "earlier").mkdir()
    saved.rename(tmp_path / "earlier" / "final")
    made = recipe(f"start_from={tmp_path / 'earlier'}", "model.hidden_size=24")
    assert made.start_from == str(tmp_path / "earlier" / "final")
    with pytest.raises(RecipeError, match="`start_from` is '.*final', a model of audio; the recipe is of image"):
        recipe(f"start_from={tmp_path / 'earlier'}", "model.hidden_size=24", "model.modality=image")
