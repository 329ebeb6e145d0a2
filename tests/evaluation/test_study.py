"""The study script from pretraining to its tables, on two kinds of tones."""

import json
import os
import subprocess
import sys

import pytest
import yaml

TINY = [
    "model.input_size=[48, 64]",
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.decoder_hidden_size=16",
    "model.decoder_num_hidden_layers=1",
    "model.decoder_num_attention_heads=2",
    "model.quantizer_config={codebook_size: 8, codebook_dim: 8}",
    "training.batch_size=8",
    "training.max_steps_per_phase=2",
    "training.tracker=null",
]


@pytest.fixture
def study(repository, tones, tmp_path):
    recipes = repository / "examples" / "recipes" / "audio"
    finetune = {
        "base": str(recipes / "demo_finetune.yaml"),
        "model": "",
        "output_dir": "",
        "data": {"dataset": "", "label_column": "sound"},
        "training": {"epochs": 1, "batch_size": 8},
        "folds": [1],
    }
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(finetune))

    def run(*options):
        command = [sys.executable, str(repository / "examples" / "study.py"), "--recipe", str(recipes / "demo.yaml")]
        command += ["--label-column", "sound", *options, f"data.dataset={tones}", "output_dir=runs", *TINY]
        paths = os.environ | {"PYTHONPATH": str(repository / "src")}
        done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, json.loads((tmp_path / "runs" / "results.json").read_text())

    return run


def test_one_table_from_pretraining_to_fine_tuning(study, tmp_path):
    out, results = study("--finetune", "finetune.yaml")
    names = {row["encoder"] for row in results["encoders"]}
    assert names >= {"random weights", "iteration 1", "iteration 2", "fine-tuned", "fine-tuned from random weights"}
    logmel = results["encoders"][0]
    assert logmel["encoder"] == "logmel"
    assert logmel["accuracy"] == 1.0  # low and high tones: any spectral average tells them apart
    assert set(results["tokens"]) == {"cold start", "trained"}
    assert "| logmel |  | 100.0 | 1 |" in out
    assert "100.0" in (tmp_path / "runs" / "report.html").read_text()


def test_inductive_runs_do_not_see_the_test_fold(study, tmp_path):
    _, results = study("--inductive", "--jobs", "2", "phases=[{kind: encoder}]")
    for fold in (1, 2, 3):
        recipe = yaml.safe_load((tmp_path / "runs" / f"seed-0-fold-{fold}" / "recipe.yaml").read_text())
        assert recipe["data"]["exclude"] == {"fold": [fold]}
    trained = [row for row in results["encoders"] if row["encoder"] == "iteration 1"]
    assert all(set(row["per_fold"]) == {"1", "2", "3"} and len(row["correct"]) == 24 for row in trained)
