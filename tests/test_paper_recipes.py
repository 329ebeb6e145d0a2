"""The paper's recipes, and those of ViT-B on own data, at their real size: three steps of one sample of noise each.

The second paper's are in tests/quantizer_experiments/test_real_size.py.
"""

from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from made_up_data import finite_steps, write_pictures, write_sounds, write_videos
from safetensors.torch import load_file

from bridle_hf import BridleForPreTraining, BridleModel
from bridle_hf.finetuning.finetune import FinetuneRecipe, finetune
from bridle_hf.finetuning.trainer import FoldTrainer
from bridle_hf.training import load_recipe, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

PRETRAINING = [
    "audio/as2m_base",
    "audio/as2m_uniform",
    "audio/as2m_vq",
    "audio/as2m_joint",
    "audio/as2m_vq_joint",
    "image/in1k_base",
    "image/in1k_vq",
    "video/k400_base",
    "video/k400_vq",
    "audio/own_fast",
    "image/own_fast",
    "video/own_fast",
]
CLASSIFIERS = [
    "audio/as2m_finetune",
    "audio/as2m_probe",
    "audio/as20k_finetune",
    "audio/as20k_probe",
    "audio/esc50_finetune",
    "image/in1k_finetune",
    "image/in1k_probe",
    "video/k400_finetune",
    "video/k400_probe",
]
CHECK_STEP = FoldTrainer.check_step
BASES = {"audio": "audio/as2m_base", "image": "image/in1k_base", "video": "video/k400_base"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder per modality, with three samples to train on and one to test on."""
    folder = tmp_path_factory.mktemp("made_up")
    return {
        "audio": write_sounds(folder / "sounds", [5, 10, 10, 4], test=1),
        "image": write_pictures(folder / "pictures", 3, test=1),
        "video": write_videos(folder / "videos", 3, test=1),
    }


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A random ViT-B per modality, saved as pretraining saves it."""
    folder = tmp_path_factory.mktemp("encoders")
    for modality, name in BASES.items():
        recipe = load_recipe(name)
        BridleModel(recipe.config()).save_pretrained(folder / modality)
        recipe.build_processor().save_pretrained(folder / modality)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def options(datasets, name, folder):
    modality = name.partition("/")[0]
    given = [f"data.dataset={datasets[modality]}", "data.name=null", "data.num_workers=0", f"output_dir={folder}"]
    # a step in bfloat16 takes twenty times as long on CPUs without instructions for it
    return [*given, "training.batch_size=1", "training.mixed_precision=no"]


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining(name, datasets, tmp_path):
    short = ["training.max_steps_per_phase=3", "training.logging_steps=1", "training.tracker=null"]
    short += ["model.quantizer_config.kmeans_samples_per_code=2"]  # of 64: fewer clips to begin with
    recipe = load_recipe(name, [*options(datasets, name, tmp_path / "run"), *short])
    assert pretrain(recipe)
    assert finite_steps(tmp_path / "run") == [1, 2, 3] * len(recipe.phases)
    final = BridleForPreTraining.from_pretrained(tmp_path / "run" / "final")
    assert sum(p.numel() for p in final.bridle.parameters()) > 85e6
    assert final.tokenizer.cold_start is None and final.tokenizer.quantizer.initialized
    quantizer = final.config.quantizer_config
    shape = (quantizer.num_codebooks, quantizer.codebook_size)
    assert shape == ((1, 1024) if "vq" in name else (4, 256)) and quantizer.codebook_dim == 256


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, datasets, encoders, tmp_path):
    modality, run = name.partition("/")[0], tmp_path / "run"
    short = [f"model={encoders / modality}", "training.epochs=1", "data.cache=false"]
    if name == "audio/esc50_finetune":
        short.append("folds=[1]")
    if modality == "video":
        short.append("data.test_views=[2, 1]")  # of 5 x 3, which take longer than the training
    recipe = load_recipe(name, [*options(datasets, name, run), *short], FinetuneRecipe)
    if recipe.training.clips_per_epoch:
        recipe.training.clips_per_epoch = 3
    taken = []
    with mock.patch.object(FoldTrainer, "check_step", lambda self: taken.append(1) or CHECK_STEP(self)):
        results = finetune(recipe)
    assert len(taken) == (4 if "as20k" in name else 3)  # which takes the clip of ESC-50's first fold, too
    (folder,) = run.glob("*/config.json")
    trained = load_file(folder.parent / "model.safetensors")
    before = load_file(encoders / modality / "model.safetensors")
    moved = [key for key, value in before.items() if not torch.equal(value, trained.get(f"bridle.{key}", value))]
    assert bool(moved) != name.endswith("probe"), moved  # a probe leaves the encoder as it was
    assert all(np.isfinite(value) for key, value in results.items() if "accuracy" in key and "per" not in key)
