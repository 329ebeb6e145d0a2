"""End to end against a stand-in of the Hub: a release, a second one, and what a user without the package loads."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hub_server import Repository, serve
from safetensors.torch import load_file

import bridle_hf
from bridle_hf.data import build_processor
from bridle_hf.evaluation import metrics
from bridle_hf.hub import release, reload

OWNER = """
import runpy
import sys
from huggingface_hub import HfApi

def release(folder, *options):
    sys.argv = ["release", folder, "--repo-id", "org/bridle-audio", *options]
    runpy.run_module("bridle_hf.hub.release", run_name="__main__", alter_sys=True)

first, second = sys.argv[1:]
release(first, "--tag", "v1", "--private")
for name in ("old.safetensors", "notes.txt", "onnx/a.json"):  # left by an earlier release, and by somebody
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id="org/bridle-audio")
try:
    release(second, "--tag", "v1")
except SystemExit:
    print("a tag twice")
release(second)
"""

USER = """
import sys
sys.path.insert(0, sys.argv[1])
import reload
reload.forbid()
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModel, pipeline
kept = {}
for revision in ("main", "v1"):
    kept[revision] = AutoModel.from_pretrained("org/bridle-audio", revision=revision, trust_remote_code=True)
classify = pipeline("audio-classification", model="org/bridle-audio", trust_remote_code=True)
scores = {each["label"]: each["score"] for each in classify(np.zeros(16000, dtype=np.float32), top_k=None)}
assert set(scores) == {"dog", "rain", "bell"} and abs(sum(scores.values()) - 1) < 1e-5
outputs = reload.outputs("org/bridle-audio")
save_file({k: m.layers[0].mlp.fc1.bias for k, m in kept.items()} | outputs, sys.argv[2])
"""


METRIC = """
import evaluate
import sys
sys.modules["bridle_hf"] = None
metric = evaluate.load("org/d_prime")
print(metric.compute(predictions=[[0, 2], [3, 1], [1, 3], [-1, 1.5]], references=[0, 0, 1, 1])["auc"])
"""


def tiny():
    config = bridle_hf.BridleConfig(
        modality="audio",
        input_size=(32, 32),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label=dict(enumerate(("dog", "rain", "bell"))),
    )
    return bridle_hf.BridleForAudioClassification(config), build_processor(config)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, repository):
    """The stand-in after two releases, the first tagged v1; `biases` are a weight of each, `folders` what was given."""
    with serve() as server:
        server.environment = os.environ | {"PYTHONPATH": str(repository / "src")} | server.environment
        server.biases, server.folders = [], []
        for number in range(2):
            folder, (model, processor) = tmp_path_factory.mktemp("model"), tiny()
            with torch.no_grad():
                server.biases.append(model.bridle.layers[0].mlp.fc1.bias.fill_(number).clone())
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            server.folders.append(str(folder))
        program = [sys.executable, "-c", OWNER, *server.folders]
        done = subprocess.run(program, cwd=repository, env=server.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        server.printed, server.complained = done.stdout, done.stderr
        yield server


def test_a_release_is_one_commit_with_all_files(hub):
    repository = hub.repositories["org/bridle-audio"]
    assert repository.private and hub.printed.strip().endswith(repository.sha("main"))
    first, last = repository.files("v1"), repository.files("main")
    package = Path(bridle_hf.__file__).parent
    others = {
        "image_processing_bridle.py",
        "video_decoding_bridle.py",
        "video_processing_bridle.py",
        "pipeline_bridle.py",
    }
    assert {name for name in first if name.endswith(".py")} == {p.name for p in package.glob("*_bridle.py")} - others
    assert {"README.md", "config.json", "preprocessor_config.json", "model.safetensors"} <= set(first)
    assert set(last) == set(first) | {"notes.txt", "onnx/a.json"}  # the old weights are gone, the others are not
    assert first["model.safetensors"] != last["model.safetensors"]
    assert "a tag twice" in hub.printed and "--tag is 'v1', which org/bridle-audio has already" in hub.complained
    assert 'pipeline("audio-classification", model="org/bridle-audio"' in first["README.md"].decode()


def test_a_user_without_the_package_loads_both_revisions_and_a_pipeline(hub, tmp_path):
    program = [sys.executable, "-I", "-c", USER, str(Path(reload.__file__).parent), str(tmp_path / "kept")]
    done = subprocess.run(program, env=hub.environment | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = load_file(tmp_path / "kept")
    assert torch.equal(kept.pop("v1"), hub.biases[0]) and torch.equal(kept.pop("main"), hub.biases[1])
    here = reload.outputs(hub.folders[1])
    assert set(kept) == set(here) and all(torch.equal(kept[name], here[name]) for name in here)


def test_the_code_of_a_release_is_its_own(tmp_path):
    for part in tiny():
        part.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    named = {name: f"other/repository--{code}" for name, code in config["auto_map"].items()}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"auto_map": named}))
    release.stage(tmp_path / "model", tmp_path / "out", "org/x")
    assert "other/repository" not in (tmp_path / "out" / "config.json").read_text()


def test_a_metric_loads_from_a_space(hub, tmp_path):
    script = files(metrics) / "d_prime" / "d_prime.py"
    hub.repositories["spaces/org/d_prime"] = space = Repository(private=False)
    space.commit("main", {"d_prime.py": script.read_bytes()}, [])
    program = [sys.executable, "-I", "-c", METRIC]
    done = subprocess.run(program, env=hub.environment | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(0.75)
