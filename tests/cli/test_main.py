"""`bridle COMMAND`: the list of commands, and the words that each is given."""

import runpy
import subprocess
import sys
from importlib import import_module

import pytest

from bridle_hf.cli.main import COMMANDS, main
from bridle_hf.files import WriteError

SCRIPTS = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "probe": "linear_probe",
    "compare": "compare_probes",
    "features": "extract_features",
    "tokens": "tokenize_audio",
    "report": "codebook_report",
    "study": "study",
    "measure": "measure_mean_std",
    "replay": "replay_step",
    "autoencoding": "discrete_autoencoding",
    "wav2vec2": "wav2vec2_pretraining",
}


def said(call, capsys, code):
    with pytest.raises(SystemExit) as stop:
        call()
    assert stop.value.code == code
    return capsys.readouterr()


def test_help_has_a_line_per_command(capsys):
    lines = said(lambda: main(["--help"]), capsys, 0).out.splitlines()
    assert all(sum(line.startswith(f"  {name} ") for line in lines) == 1 for name in COMMANDS)
    assert all(len(line) < 100 for line in lines)


@pytest.mark.parametrize("words", [[], ["pretrian"]])
def test_no_command_and_an_unknown_one(words, capsys):
    assert "bridle: error: " in said(lambda: main(words), capsys, 2).err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert said(lambda: main([command, "--help"]), capsys, 0).out.startswith(f"usage: bridle {command} ")


def test_every_example_is_a_command_under_another_name(repository, capsys, monkeypatch):
    scripts = {path.stem for path in (repository / "examples").glob("*.py")}
    assert scripts == set(SCRIPTS.values())
    for command, script in SCRIPTS.items():
        path = repository / "examples" / f"{script}.py"
        monkeypatch.setattr("sys.argv", [str(path), "--help"])
        found = said(lambda path=path: runpy.run_path(str(path), run_name="__main__"), capsys, 0).out
        assert found.startswith(f"usage: {script}.py ")
        module = import_module(COMMANDS[command][0], "bridle_hf.cli")
        assert runpy.run_path(str(path))["main"] is module.main


def test_the_package_runs_as_a_module(repository):
    done = subprocess.run([sys.executable, "-m", "bridle_hf.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: bridle "), done.stderr
    settings = (repository / "setup.cfg").read_text()
    assert "console_scripts =\n    bridle = bridle_hf.cli.main:main\n" in settings


def test_a_command_that_is_interrupted_says_so_in_one_line(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bridle_hf.cli.probe.main", interrupt)
    assert said(lambda: main(["probe"]), capsys, 130).err == "\nbridle probe: stopped\n"
    monkeypatch.setitem(COMMANDS, "features", COMMANDS["probe"])
    assert "stopped; the same command goes on" in said(lambda: main(["features"]), capsys, 130).err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a/b"), "no room to write: [Errno 28] No space left on device: 'a/b'."),
        (WriteError("b could not be written; make room"), "b could not be written; make room\n"),
    ],
)
def test_a_full_disk_is_one_line(monkeypatch, capsys, error, line):
    def fail(*_):
        raise error

    monkeypatch.setattr("bridle_hf.cli.features.main", fail)
    assert said(lambda: main(["features"]), capsys, 1).err.startswith(f"\nbridle features: error: {line}")


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("bridle_hf.cli.features.main", fail)
    with pytest.raises(PermissionError):
        main(["features"])
