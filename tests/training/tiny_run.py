"""A tiny run: 24 synthesized sounds, an encoder of two layers, three short phases."""

import socket

import pytest
import yaml
from accelerate.state import AcceleratorState

from bridle_hf.demo_data import write_sound_set
from bridle_hf.training import load_recipe, pretrain

TINY = {
    "data": {"shuffle_buffer": 16},
    "model": {
        "input_size": [64, 16],
        "patch_size": [16, 8],
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "drop_path_rate": 0.1,
        "decoder_type": "plain",
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "estimator_num_hidden_layers": 1,
        "quantizer_config": {"num_codebooks": 2, "codebook_size": 4, "codebook_dim": 8, "kmeans_samples_per_code": 8},
    },
    "training": {"batch_size": 4, "logging_steps": 1, "checkpoint_steps": 2, "tracker": None},
    "phases": [{"kind": "encoder", "steps": 5}, {"kind": "tokenizer", "steps": 3}, {"kind": "encoder", "steps": 4}],
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process; each run here has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    return write_sound_set(tmp_path_factory.mktemp("data") / "sounds", clips_per_class=2)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory, sounds):
    """Path of the recipe of the tiny run; it lacks an `output_dir`."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"dataset": str(sounds)}}))
    return path


@pytest.fixture
def train(tiny_recipe):
    """Run the tiny recipe with overrides in this process."""

    def run(folder, *overrides, stop=None):
        AcceleratorState._reset_state(reset_partial_state=True)
        return pretrain(load_recipe(tiny_recipe, [f"output_dir={folder}", *overrides]), stop=stop)

    return run


@pytest.fixture
def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
