"""The study script from pretraining to its tables, on two kinds of tones."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from bridle_hf.cli import study
from bridle_hf.cli.main import main as bridle
from bridle_hf.demo_data.motion import write_video

SPECTROGRAM = "model.input_size=[48, 64]"
TINY = [
    "model.hidden_size=24",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.decoder_hidden_size=24",
    "model.decoder_num_hidden_layers=1",
    "model.decoder_num_attention_heads=2",
    "model.quantizer_config={codebook_size: 8, codebook_dim: 8}",
    "training.batch_size=8",
    "training.max_steps_per_phase=2",
    "training.tracker=null",
]


@pytest.fixture
def run_study(repository, tones, tmp_path):
    finetune = {
        "base": "audio/demo_finetune",
        "model": "",
        "output_dir": "",
        "data": {"dataset": "", "label_column": "sound"},
        "training": {"epochs": 1, "batch_size": 8},
        "folds": [1],
    }
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(finetune))

    return lambda *options: start(
        repository, tmp_path, "audio", "--label-column", "sound", *options, f"data.dataset={tones}", SPECTROGRAM
    )


def start(repository, folder, modality, *options):
    """What the study of a demo prints, cut down to a few steps, and its results."""
    command = [sys.executable, str(repository / "examples" / "study.py"), "--recipe", f"{modality}/demo"]
    paths = os.environ | {"PYTHONPATH": str(repository / "src")}
    command += [*options, "output_dir=runs", *TINY]
    done = subprocess.run(command, cwd=folder, env=paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads((folder / "runs" / "results.json").read_text())


def test_one_table_from_pretraining_to_fine_tuning(run_study, tmp_path):
    out, results = run_study("--finetune", "finetune.yaml", "--seeds", "0")  # key=value follows
    names = {row["encoder"] for row in results["encoders"]}
    assert names >= {"random weights", "iteration 1", "iteration 2", "fine-tuned", "fine-tuned from random weights"}
    logmel = results["encoders"][0]
    assert logmel["encoder"] == "logmel"
    assert logmel["accuracy"] == 1.0  # low and high tones: any spectral average tells them apart
    assert set(results["tokens"]) == {"cold start", "trained"}
    assert "| logmel |  | 100.0 | 1 |" in out
    assert "100.0" in (tmp_path / "runs" / "report.html").read_text()
    recipes = [yaml.safe_load((tmp_path / "runs" / run / "finetune.yaml").read_text())
               for run in ("finetune-seed-0", "finetune-seed-0-scratch")]  # fmt: skip
    assert [each["from_scratch"] for each in recipes] == [False, True]
    # Layers that change slowly suit pretrained weights and handicap random ones.
    assert recipes[0]["training"]["layer_decay"] < 1 and recipes[1]["training"]["layer_decay"] is None


def test_a_study_fine_tunes_anew_what_is_of_another_recipe(tones, pretrained, tmp_path, monkeypatch):
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "final").symlink_to(pretrained)
    settings = {"model": "", "output_dir": "", "data": {"label_column": "sound", "fold_column": "fold"}, "folds": [1]}

    def run_here(jobs, commands, folders):
        for command in commands:
            bridle(command)

    monkeypatch.setattr(study, "run_all", run_here)
    given = SimpleNamespace(seeds=[0], inductive=False, finetune=str(tmp_path / "finetune.yaml"))
    recipe = SimpleNamespace(output_dir=str(tmp_path), data=SimpleNamespace(dataset=str(tones), exclude={}))
    for layer_decay in (0.75, 0.75, 0.5):  # from random weights it is always null
        settings["training"] = {"epochs": 1, "layer_decay": layer_decay}
        (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(settings))
        assert [row["encoder"] for row in study.finetune_rows(given, recipe)][0] == "fine-tuned"
    assert sorted(path.name for path in tmp_path.glob("finetune-seed-0/fold-*")) == ["fold-1", "fold-1.old-1"]
    assert sorted(path.name for path in tmp_path.glob("finetune-seed-0-scratch/fold-*")) == ["fold-1"]


@pytest.mark.slow
def test_inductive_runs_do_not_see_the_test_fold(run_study, tmp_path):
    _, results = run_study("--inductive", "--jobs", "2", "phases=[{kind: encoder}]", "data.exclude={sound: [none]}")
    for fold in (1, 2, 3):
        recipe = yaml.safe_load((tmp_path / "runs" / f"seed-0-fold-{fold}" / "recipe.yaml").read_text())
        assert recipe["data"]["exclude"] == {"sound": ["none"], "fold": [fold]}
    trained = [row for row in results["encoders"] if row["encoder"] == "iteration 1"]
    assert all(set(row["per_fold"]) == {"1", "2", "3"} and len(row["correct"]) == 24 for row in trained)


@pytest.mark.parametrize("modality", [pytest.param("image", marks=pytest.mark.slow), "video"])
def test_pictures_and_a_test_split(repository, tmp_path, modality):
    """Dark and bright ones: any mean tells them apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for number in range(count):
            folder = tmp_path / "set" / split / ("dark", "bright")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 100, (24, 32, 32, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
            if modality == "image":
                Image.fromarray(pixels[0]).save(folder / f"{number}.png")
            else:
                write_video(folder / f"{number}.mp4", pixels, rate=12)
    options = ["--test-split", "test", "phases=[{kind: encoder}]", f"data.dataset={tmp_path / 'set'}"]
    _, results = start(repository, tmp_path, modality, *options)
    scores = {(row["encoder"], row["pooling"]): row for row in results["encoders"]}
    baseline = {"image": "colours", "video": "one-frame"}[modality]
    assert scores[baseline, ""]["accuracy"] == 1.0 and scores[baseline, ""]["per_fold"] == {"test": 1.0}
    assert ("iteration 1", "mean") in scores
    assert "<svg" in (tmp_path / "runs" / "report.html").read_text()


def test_a_recipe_of_fine_tuning_that_is_none_is_named_before_anything_runs(tones, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "study", lambda *_: pytest.fail("begun"))
    data = [f"data.dataset={tones}", f"output_dir={tmp_path / 'runs'}", "--label-column", "sound"]
    for words, message in ((["nix"], "nix"), (["audio/demo"], "unknown key")):
        with pytest.raises(SystemExit, match="2"):
            bridle(["study", "audio/demo", *data, "--finetune", *words])
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_ends_with_an_error_ends_the_study_in_one_line(tones, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise subprocess.CalledProcessError(2, [sys.executable, "-m", "bridle_hf.cli", "pretrain", "--recipe", "x"])

    monkeypatch.setattr(study, "study", stop)
    data = [f"data.dataset={tones}", f"output_dir={tmp_path / 'runs'}", "--label-column", "sound"]
    with pytest.raises(SystemExit, match="1"):
        bridle(["study", "audio/demo", *data])
    assert capsys.readouterr().err.splitlines()[-1] == "bridle study: error: bridle pretrain --recipe x ended with 2"


def test_ten_iterations_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / f"encoder-iter{number}").mkdir()
    assert [path.name for path in study.exported_encoders(tmp_path)] == [f"encoder-iter{n}" for n in (1, 2, 10)]
