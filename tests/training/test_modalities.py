"""The whole schedule on pictures and videos: what a run writes is a model and a processor that fit each other."""

import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForPreTraining, AutoVideoProcessor

from bridle_hf.demo_data import write_digit_set, write_motion_set
from bridle_hf.training import RecipeError, load_recipe, pretrain

SIZES = {
    "image": {"input_size": [32, 32], "patch_size": [8, 8], "decoder_type": "swin"},
    "video": {"input_size": [8, 32, 32], "patch_size": [2, 16, 16]},
}


@pytest.fixture(scope="session")
def picture_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {
        "image": str(write_digit_set(folder / "digits")),
        "video": str(write_motion_set(folder / "motion", videos_per_class=2)),
    }


@pytest.fixture
def recipe(tiny_recipe, picture_sets, tmp_path):
    def load(modality, *overrides):
        values = yaml.safe_load(tiny_recipe.read_text())
        values["model"] |= {"modality": modality, "hidden_size": 24, "decoder_hidden_size": 24} | SIZES[modality]
        values["data"] = {"dataset": picture_sets[modality], "shuffle_buffer": 16}
        path = tmp_path / f"{modality}.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path, [f"output_dir={tmp_path / 'run'}", *overrides])

    return load


@pytest.mark.parametrize(("modality", "auto"), [("image", AutoImageProcessor), ("video", AutoVideoProcessor)])
def test_a_run_leaves_a_model_and_its_processor(recipe, modality, auto, tmp_path):
    assert pretrain(recipe(modality, "training.batch_size=8"))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in records[:: len(records) - 1]] == ["encoder-iter1", "encoder-iter2"]
    final = tmp_path / "run" / "final"
    model, processor = AutoModelForPreTraining.from_pretrained(final), auto.from_pretrained(final)
    clip = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3)[modality == "image" :], dtype=np.uint8)
    inputs = processor(clip, return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).loss.isfinite()
    assert model.tokenizer.encode(inputs["pixel_values"]).shape == (1, 16, 2)


def test_a_synthetic_dataset_is_made_for_the_modality(recipe, tmp_path):
    made = recipe("image", "data.dataset=synthetic")
    data = made.open_data()
    assert data.dataset == str(tmp_path / "run" / "synthetic")
    assert len(list((tmp_path / "run" / "synthetic" / "train").glob("*.png"))) == 1797
    assert made.open_data() == data  # left alone


@pytest.mark.parametrize(
    ("modality", "override", "message"),
    [
        ("image", "processor.mean=0", "unknown key `processor.mean`.*image_mean"),
        ("image", "processor.frame_stride=2", "unknown key `processor.frame_stride`"),
        ("video", "processor.fram_stride=2", "unknown key `processor.fram_stride`.*frame_stride"),
        ("video", "data.crop=middle", "`data.crop` is 'middle'.*'resized', 'multi_scale'"),
    ],
)
def test_settings_belong_to_a_modality(recipe, modality, override, message):
    with pytest.raises(RecipeError, match=message):
        recipe(modality, override)
