"""Pictures larger than pretraining's lie at positions that it knew; sounds and time keep theirs."""

import pytest
import torch
from transformers import AutoConfig

from bridle_hf import BridleConfig, BridleForImageClassification, BridleForPreTraining, BridleModel
from bridle_hf.data import build_processor
from bridle_hf.data.modalities import load_processor
from bridle_hf.layers_bridle import BridlePositions, flat_positions, grid_positions
from bridle_hf.training import RecipeError, load_recipe

SMALL = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "decoder_type": "plain",
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
    "estimator_num_hidden_layers": 1,
}
LIKE = torch.zeros(1)


def image_config(**options):
    return BridleConfig(**SMALL, modality="image", input_size=(16, 16), patch_size=(4, 4), **options)


def positions(config, grid):
    return BridlePositions(config, 24)(grid, LIKE)[0]  # (N, 24)


def field(table, grid):
    return table.view(*grid, -1)


@pytest.mark.parametrize("layout", ["grid", "flat", "table"])
def test_at_the_size_of_pretraining_nothing_is_scaled(layout):
    for modality, size, grid in (("image", (16, 16), (4, 4)), ("video", (4, 16, 16), (2, 4, 4))):
        patch = (4, 4) if modality == "image" else (2, 4, 4)
        options = SMALL | {"modality": modality, "input_size": size, "patch_size": patch, "position_layout": layout}
        plain, scaled = (BridleConfig(**options, interpolate_positions=value) for value in (False, True))
        assert torch.equal(positions(plain, grid), positions(scaled, grid))


def test_places_of_a_larger_grid_lie_evenly_over_those_of_pretraining():
    found = field(positions(image_config(), (8, 4)), (8, 4))
    own = field(grid_positions((4, 4), 24), (4, 4))
    rates = 10000.0 ** (-torch.arange(6) / 6)
    for row in range(8):
        angle = ((row + 0.5) / 2 - 0.5) * rates
        torch.testing.assert_close(found[row, 0, 12:], torch.cat([angle.sin(), angle.cos()]))  # of the row
        assert torch.equal(found[row, :, :12], own[0, :, :12])  # of the column, which is not scaled


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (5, 4)])
def test_a_table_is_interpolated_as_vit_does(grid):
    module = BridlePositions(image_config(position_layout="table"), 24)
    module.table.normal_(generator=torch.Generator().manual_seed(0))
    planes = module.table.view(1, 4, 4, 24).permute(0, 3, 1, 2)  # as ViTEmbeddings.interpolate_pos_encoding
    planes = torch.nn.functional.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    expected = planes.permute(0, 2, 3, 1).view(1, -1, 24)
    torch.testing.assert_close(module(grid, LIKE), expected)


@pytest.mark.parametrize("layout", ["grid", "table"])
def test_a_smaller_picture_is_a_part(layout):
    config = image_config(position_layout=layout)
    own = field(positions(config, (4, 4)), (4, 4))
    assert torch.equal(field(positions(config, (2, 3)), (2, 3)), own[:2, :3])
    wider = field(positions(config, (2, 8)), (2, 8))
    torch.testing.assert_close(wider, field(positions(config, (4, 8)), (4, 8))[:2])


def test_the_flat_layout_numbers_the_patches_of_each():
    assert torch.equal(positions(image_config(position_layout="flat"), (8, 8)), flat_positions((8, 8), 24))


@pytest.mark.parametrize("layout", ["grid", "table"])
def test_time_keeps_its_places(layout):
    config = BridleConfig(
        **SMALL, modality="video", input_size=(8, 16, 16), patch_size=(2, 4, 4), position_layout=layout
    )
    whole = field(positions(config, (4, 8, 8)), (4, 8, 8))
    short = field(positions(config, (2, 8, 8)), (2, 8, 8))
    torch.testing.assert_close(short, whole[:2])
    if layout == "grid":
        torch.testing.assert_close(field(positions(config, (6, 8, 8)), (6, 8, 8))[:4], whole)
    else:
        with pytest.raises(ValueError, match=r"grid of \(6, 4, 4\) patches but the stored position table"):
            positions(config, (6, 8, 8))


def test_sounds_keep_their_places():
    config = BridleConfig(**SMALL, input_size=(32, 32), patch_size=(16, 16))
    assert config.interpolate_positions is False
    assert torch.equal(positions(config, (5, 4)), grid_positions((5, 4), 24))
    with pytest.raises(Exception, match="`interpolate_positions` is True; modality 'audio' takes False"):
        BridleConfig(**SMALL, input_size=(32, 32), patch_size=(16, 16), interpolate_positions=True)


def test_the_option_turns_it_off():
    config = image_config(interpolate_positions=False)
    assert torch.equal(positions(config, (8, 8)), grid_positions((8, 8), 24))


@pytest.mark.parametrize("layout", ["grid", "flat", "table"])
def test_a_model_is_finetuned_at_a_larger_size(tmp_path, layout):
    model = BridleForPreTraining(image_config(position_layout=layout)).eval()
    model.save_pretrained(tmp_path / "model")
    build_processor(model.config).save_pretrained(tmp_path / "model")
    small, large = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32)
    classifier = BridleForImageClassification.from_pretrained(tmp_path / "model", input_size=(32, 32)).eval()
    assert classifier.config.grid == (8, 8) and tuple(classifier.config.position_size) == (16, 16)
    with torch.no_grad():
        expected = [model.bridle(pixel_values=values).last_hidden_state for values in (small, large)]
        changed = BridleModel.from_pretrained(tmp_path / "model", input_size=(32, 32)).eval()
        for values, hidden in zip((small, large), expected, strict=True):
            torch.testing.assert_close(changed(pixel_values=values).last_hidden_state, hidden)
        classifier.save_pretrained(tmp_path / "tuned")
        tuned = BridleForImageClassification.from_pretrained(tmp_path / "tuned").eval()
        torch.testing.assert_close(tuned(pixel_values=large).logits, classifier(pixel_values=large).logits)
    config = AutoConfig.from_pretrained(tmp_path / "tuned")
    assert tuple(config.input_size) == (32, 32) and tuple(config.position_size) == (16, 16)
    processor = load_processor(str(tmp_path / "model"), {"input_size": [32, 32]})
    assert dict(processor.crop_size) == {"height": 32, "width": 32} and processor.size == {"shortest_edge": 32}


def test_a_config_saved_before_there_was_a_position_size():
    saved = image_config().to_dict()
    del saved["position_size"], saved["interpolate_positions"]
    config = BridleConfig.from_dict(saved, input_size=(32, 32))
    assert config.position_grid == (4, 4) and config.grid == (8, 8) and config.interpolate_positions


@pytest.mark.parametrize("size", [(16,), (16, 18)])
def test_position_size_is_checked(size):
    with pytest.raises(Exception, match="does not divide `position_size`"):
        image_config(position_size=size)


@pytest.mark.parametrize(("modality", "made"), [("image", 3), ("video", 3)])
def test_a_recipe_takes_the_channels_that_processors_make(tmp_path, modality, made):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: x\ndata: {{dataset: x}}\nphases: [{{steps: 1}}]\nmodel: {{modality: {modality}}}")
    assert load_recipe(recipe, [f"model.num_channels={made}"]).config().num_channels == made
    for number in {1, 3, 4} - {made}:
        with pytest.raises(RecipeError, match=f"`num_channels` is {number}; {modality} data takes {made}"):
            load_recipe(recipe, [f"model.num_channels={number}"])


def test_a_recipe_of_sounds_takes_several_channels(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: x\ndata: {dataset: x}\nphases: [{steps: 1}]")
    assert load_recipe(recipe).build_processor().num_channels == 1
    for number in (2, 64):
        assert load_recipe(recipe, [f"model.num_channels={number}"]).build_processor().num_channels == number
    with pytest.raises(RecipeError, match="`num_channels` is 65; audio data takes 1 to 64"):
        load_recipe(recipe, ["model.num_channels=65"])
    with pytest.raises(ValueError, match="num_channels of the processor is 2; the model takes 1"):
        load_recipe(recipe, ["processor.num_channels=2"]).build_processor()


def test_other_channels_are_refused_for_a_processor(tmp_path):
    config = image_config(num_channels=4)
    with pytest.raises(ValueError, match="`num_channels` is 4; image data takes 3"):
        build_processor(config)
    config = image_config()
    config.save_pretrained(tmp_path)
    build_processor(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`num_channels` is 1; image data takes 3"):
        load_processor(str(tmp_path), {"num_channels": 1})
    values = torch.zeros(1, 4, 16, 16)  # whose own pixels have other channels needs no processor
    assert BridleModel(image_config(num_channels=4))(pixel_values=values).last_hidden_state.shape == (1, 17, 24)
