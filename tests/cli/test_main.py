"""`bridle COMMAND`: the list of commands, and the words that each is given."""

import argparse
import runpy
import subprocess
import sys
from importlib import import_module

import pytest

from bridle_hf.cli.main import COMMANDS, main
from bridle_hf.cli.options import add_recipe_options, parse_recipe_options
from bridle_hf.cli.study import parse_arguments

SCRIPTS = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "probe": "linear_probe",
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


@pytest.mark.parametrize(
    ("words", "recipe", "overrides"),
    [
        (["audio/demo", "seed=1"], "audio/demo", ["seed=1"]),
        (["seed=1", "audio/demo", "phases=[{kind: encoder}]"], "audio/demo", ["seed=1", "phases=[{kind: encoder}]"]),
        (["--recipe", "a=b/c.yaml", "seed=1"], "a=b/c.yaml", ["seed=1"]),
        (["runs/a=b/c.yaml"], "runs/a=b/c.yaml", []),
        (["audio/demo", "audio/other"], "audio/demo", ["audio/other"]),  # which is refused as an override
    ],
)
def test_the_recipe_is_an_option_or_the_first_word(words, recipe, overrides):
    given = parse_recipe_options(recipe_parser(), words)
    assert (given.recipe, given.overrides) == (recipe, overrides)


def test_a_recipe_that_is_missing(capsys):
    err = said(lambda: parse_recipe_options(recipe_parser(), ["seed=1"]), capsys, 2).err
    assert "the recipe is missing; give the name of a packaged one" in err


def recipe_parser():
    parser = argparse.ArgumentParser()
    add_recipe_options(parser, "")
    return parser


def test_words_between_the_seeds_of_a_study_are_overrides():
    words = ["audio/demo", "--seeds", "0", "1", "output_dir=x", "--jobs", "2"]
    _, given = parse_arguments(words, "bridle study")
    assert (given.recipe, given.overrides, given.seeds, given.jobs) == ("audio/demo", ["output_dir=x"], [0, 1], 2)
