"""Commands on a folder of classes and the folder of a run, with nothing said that need not be."""

import json
import logging
import re

import pyarrow.parquet as pq
import pytest
import soundfile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tones import make_tone
from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

from bridle_hf.cli import study
from bridle_hf.cli.main import main as bridle
from bridle_hf.cli.process import AboveBars, log_progress
from bridle_hf.data import opening, source
from bridle_hf.finetuning.recipe import FinetuneRecipe
from bridle_hf.training import load_recipe

TINY = [
    "model.input_size=[48, 64]", "model.hidden_size=24", "model.num_hidden_layers=1", "model.num_attention_heads=2",
    "model.decoder_hidden_size=24", "model.decoder_num_hidden_layers=1", "model.decoder_num_attention_heads=2",
    "model.quantizer_config={codebook_size: 8, codebook_dim: 8}", "phases=[{kind: encoder}]", "training.batch_size=8",
    "training.max_steps_per_phase=2", "training.tracker=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Ten clips each of low and high tones, in folders of these names."""
    folder = tmp_path_factory.mktemp("classes")
    for number in range(20):
        (folder / ("low", "high")[number % 2]).mkdir(exist_ok=True)
        path = folder / ("low", "high")[number % 2] / f"{number}.wav"
        soundfile.write(path, make_tone(number % 2, number), 16000)
    return folder


@pytest.fixture
def run(pretrained, tmp_path):
    """The folder of a run, whose final/ is a model."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "final").symlink_to(pretrained)
    return tmp_path / "run"


def test_a_probe_takes_the_column_label_and_the_final_model_of_a_run(classes, run, capsys):
    bridle(["probe", "--model", str(run), "--dataset", str(classes), "--seeds", "0"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["clips"] == 20 and report["folds"] == [1, 2, 3, 4, 5] and report["accuracy"] > 0.8
    assert report["features"] == str(run / "final")


@pytest.mark.parametrize("command", ["features", "tokens"])
def test_other_commands_take_a_run_and_say_what_they_read(classes, run, tmp_path, capsys, caplog, command):
    opening._say.cache_clear()  # it says a thing once a process
    output = tmp_path / "out.parquet"
    bridle([command, "--model", str(run), "--dataset", str(classes), "--output", str(output)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["clips"] == 20 and output.is_file()
    assert f"{classes}: 20 of 20 files are read (split train)" in caplog.messages


def test_what_holds_no_model_is_said_as_before(classes, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        bridle(["features", "--model", str(tmp_path), "--dataset", str(classes)])
    assert "a folder without a config.json" in capsys.readouterr().err.splitlines()[-1]


def test_a_study_draws_folds_of_a_folder_of_classes(classes, tmp_path, monkeypatch, capsys):
    def run_here(jobs, commands, folders):
        for command in commands:
            bridle(command)

    monkeypatch.setattr(study, "run_all", run_here)
    data = [f"data.dataset={classes}", f"output_dir={tmp_path / 'runs'}"]
    bridle(["study", "audio/demo", *data, *TINY])
    assert "| logmel |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "runs" / "results.json").read_text())["encoders"]
    assert {row["encoder"] for row in rows} >= {"logmel", "random weights", "iteration 1"}
    assert all(list(row["per_fold"]) == ["1", "2", "3", "4", "5"] and len(row["correct"]) == 20 for row in rows)


def test_without_folds_no_study_is_inductive(classes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "study", lambda *_: pytest.fail("begun"))
    with pytest.raises(SystemExit, match="2"):
        bridle(["study", "audio/demo", f"data.dataset={classes}", f"output_dir={tmp_path / 'runs'}", "--inductive"])
    assert "--inductive is given; it takes a --fold-column" in capsys.readouterr().err.splitlines()[-1]


def test_messages_stand_on_lines_of_their_own(capsys):
    AboveBars().emit(logging.LogRecord("x", logging.WARNING, "", 0, "a %s", ("word",), None))
    assert capsys.readouterr().err == "a word\n"
    with tqdm(total=2, desc="bar"):
        AboveBars().emit(logging.LogRecord("x", logging.WARNING, "", 0, "b", (), None))
    assert re.fullmatch(r"\r?bar: .*\nb\n\r?bar: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("wanted", [False, True])
def test_bars_of_downloads_stay_those_of_weights_go(wanted, monkeypatch):
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    (enable_progress_bars if wanted else disable_progress_bars)()
    log_progress()
    assert are_progress_bars_disabled() != wanted and not is_progress_bar_enabled()
    enable_progress_bars()


def test_a_clip_that_is_read_twice_is_named_once(capsys):
    above, at = AboveBars(), (logging.WARNING, "", 0, "skipped %s: %s")
    said = [("a.wav", source), ("a.wav", source), ("b.wav", source), ("a.wav", opening), ("a.wav", opening)]
    for name, logger in said:
        above.emit(logging.LogRecord(logger.__name__, *at, (name, "it is empty"), None))
    assert [line[8:13] for line in capsys.readouterr().err.splitlines() if line] == ["a.wav", "b.wav", "a.wav", "a.wav"]


def test_fine_tuning_takes_a_run(run, tmp_path):
    words = [f"model={run}", "data.dataset=x", f"output_dir={tmp_path / 'classes'}"]
    assert load_recipe("audio/own_finetune", words, FinetuneRecipe).model == str(run / "final")


@pytest.mark.parametrize("name", ["bark [1] #2 é.wav", "-x.wav", "test.wav"])
def test_one_file_is_a_dataset(run, tmp_path, capsys, name):
    for number, each in enumerate((name, "bark 1 #2 é.wav", "other.wav")):
        soundfile.write(tmp_path / each, make_tone(0, number), 16000)
    output = tmp_path / "out.parquet"
    bridle(["features", "--model", str(run), "--dataset", str(tmp_path / name), "--output", str(output)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["clips"] == 1
    assert pq.read_table(output)["clip_name"].to_pylist() == [str(tmp_path / name)]
