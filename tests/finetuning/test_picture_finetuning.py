"""Fine-tuning on images and videos, from files to transformers' pipelines."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import TrainingArguments, pipeline

from bridle_hf import BridleConfig, BridleForPreTraining
from bridle_hf.data import DataArguments, Examples, build_processor
from bridle_hf.demo_data.motion import write_video
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune, predict

LAYERS = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "decoder_type": "plain",
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "estimator_num_hidden_layers": 1,
    "quantizer_config": {"num_codebooks": 2, "codebook_size": 8, "codebook_dim": 8},
}
SIZES = {
    "image": {"input_size": (16, 16), "patch_size": (8, 8)},
    "video": {"input_size": (4, 16, 16), "patch_size": (2, 8, 8)},
}


def clip(modality, kind, rng):
    """Falling or rising brightness: from left to right in a picture, from frame to frame in a video."""
    ramp = np.linspace(60, 180, 24)[:: (1, -1)[kind]]
    ramp = ramp[None, :, None] if modality == "image" else ramp[:, None, None, None]
    size = (24, 24, 3) if modality == "image" else (24, 24, 24, 3)
    return (ramp + rng.normal(0, 10, size)).clip(0, 255).astype(np.uint8)


def write_clips(folder, modality, count, rng):
    for number in range(count):
        kind = number % 2
        path = folder / ("falling", "rising")[kind]
        path.mkdir(parents=True, exist_ok=True)
        if modality == "image":
            Image.fromarray(clip(modality, kind, rng)).save(path / f"{number}.png")
        else:
            write_video(path / f"{number}.mp4", clip(modality, kind, rng), rate=12)


@pytest.fixture(params=["image", "video"])
def modality(request):
    return request.param


@pytest.fixture
def recipe(modality, tmp_path):
    rng = np.random.default_rng(0)
    write_clips(tmp_path / "set" / "train", modality, 16, rng)
    write_clips(tmp_path / "set" / "test", modality, 8, rng)
    torch.manual_seed(0)
    config = BridleConfig(modality=modality, **SIZES[modality], **LAYERS)
    BridleForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    build_processor(config).save_pretrained(tmp_path / "pretrained")
    data = {"dataset": str(tmp_path / "set"), "test_split": "test", "label_column": "label"}
    data |= {"crop_scale": (0.8, 1.0), "flip": False, "cache_dir": str(tmp_path / "cache")}
    training = {"epochs": 8, "batch_size": 8, "warmup_epochs": 1, "learning_rate": 1e-2, "layer_decay": 1.0}

    def make(**changes):
        return FinetuneRecipe(
            model=str(tmp_path / "pretrained"),
            output_dir=str(tmp_path / "run"),
            data=DataArguments(**data | changes.pop("data", {})),
            training=FinetuneTraining(**training | {"mixup": 0.0} | changes.pop("training", {})),
            **changes,
        )

    return make


def test_a_test_split_is_learned_reported_and_saved_for_the_pipeline(recipe, modality, tmp_path):
    views = {"test_views": (3, 2)} if modality == "video" else {}
    results = finetune(recipe(data={"in_memory": False, **views}))
    assert results["folds"] == ["test"] and results["accuracy"] == 1.0
    classify = pipeline(f"{modality}-classification", model=str(tmp_path / "run" / "fold-test"))
    rng = np.random.default_rng(1)
    for kind, label in enumerate(("falling", "rising")):
        if modality == "image":
            given = Image.fromarray(clip(modality, kind, rng))
        else:
            given = str(tmp_path / f"{label}.mp4")
            write_video(given, clip(modality, kind, rng), rate=12)
        assert classify(given)[0]["label"] == label


def test_every_augmentation_and_loss_takes_a_step(recipe):
    training = {"mixup": 1.0, "cutmix": 0.5, "label_smoothing": 0.1, "loss": "binary_cross_entropy", "epochs": 2}
    results = finetune(recipe(training=training, data={"rand_augment": 9, "erase": 0.5}))
    assert 0 <= results["accuracy"] <= results["top_5_accuracy"] <= 1


@pytest.mark.parametrize("modality", ["video"], indirect=True)
def test_one_frame_does_not_tell_a_motion(recipe, tmp_path):
    results = finetune(recipe(processor={"frame_stride": 0}))
    assert results["accuracy"] < 1.0  # brightness rises in one class and falls in the other, and is the same on average
    processor = build_processor(BridleConfig(modality="video", **SIZES["video"], **LAYERS))
    assert type(processor).from_pretrained(tmp_path / "run" / "fold-test").frame_stride == 0


@pytest.mark.parametrize("modality", ["video"], indirect=True)
@pytest.mark.parametrize(("batch_size", "videos"), [(4, [2, 2, 2, 2]), (1, [1] * 8)])
def test_views_take_the_place_of_clips_in_a_test_batch(recipe, monkeypatch, batch_size, videos):
    taken, batch = [], Examples.batch
    monkeypatch.setattr(Examples, "batch", lambda self, rows, **o: taken.append(len(rows)) or batch(self, rows, **o))
    finetune(recipe(training={"epochs": 1, "batch_size": batch_size}, data={"in_memory": False, "test_views": (3, 2)}))
    assert taken == videos


def test_logits_of_several_views_are_averaged(tmp_path):
    class Views:
        """Two rows a clip; the second stands for a view one brighter."""

        window = None

        def whole(self, rows, views):
            assert views == (2, 1)
            return {"pixel_values": np.array([[float(row + view)] for row in rows for view in range(2)])}

    class Trainer:
        args = TrainingArguments(tmp_path, per_device_eval_batch_size=2, use_cpu=True, dataloader_pin_memory=False)
        model, accelerator = torch.nn.Identity(), Accelerator(cpu=True)

        def prediction_step(self, model, batch, prediction_loss_only):
            return None, torch.cat([batch["pixel_values"], -batch["pixel_values"]], dim=1), None

    logits = predict(Trainer(), Views(), [4, 7, 9], views=(2, 1))
    np.testing.assert_allclose(logits, [[4.5, -4.5], [7.5, -7.5], [9.5, -9.5]])
