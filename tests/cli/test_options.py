"""Options that commands share: the recipe and its overrides, the data."""

import argparse
import re

import pytest

from bridle_hf.cli import features, measure, probe, replay, report, tokens
from bridle_hf.cli.options import add_data_options, add_recipe_options, given_data, parse_recipe_options
from bridle_hf.cli.study import parse_arguments


def recipe_parser():
    parser = argparse.ArgumentParser()
    add_recipe_options(parser, "")
    return parser


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
    with pytest.raises(SystemExit, match="2"):
        parse_recipe_options(recipe_parser(), ["seed=1"])
    assert "the recipe is missing; give the name of a packaged one" in capsys.readouterr().err


def test_words_between_the_seeds_of_a_study_are_overrides():
    words = ["audio/demo", "--seeds", "0", "1", "output_dir=x", "--jobs", "2"]
    _, given = parse_arguments(words, "bridle study")
    assert (given.recipe, given.overrides, given.seeds, given.jobs) == ("audio/demo", ["output_dir=x"], [0, 1], 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x", "is not what a run writes to failure/"),
        ("[1]", "is not what a run writes to failure/"),
        ('{"step": 1, "phase": "e", "reason": "r"}', "is not what a run writes to failure/"),
        (
            '{"step": 1, "phase": "e", "reason": "r", "recipe": "PretrainRecipe"}',
            "holds no rank-0.safetensors, which a run writes",
        ),
    ],
)
def test_a_replay_of_something_else(content, message, tmp_path, capsys):
    (tmp_path / "rank-0.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        replay.main([str(tmp_path)], "bridle replay")
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_values_to_leave_out_are_a_mapping(capsys):
    parser = argparse.ArgumentParser("script.py")
    add_data_options(parser)
    words = ["--dataset", "x", "--exclude"]
    assert given_data(parser.parse_args(words[:2])).exclude == {}
    assert given_data(parser.parse_args([*words, "{esc10: [false], fold: [1, 2]}"])).exclude == {
        "esc10": [False],
        "fold": [1, 2],
    }
    for text in ("[1]", "{", "fold"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([*words, text])
        assert f"argument --exclude: '{text}'; it takes a mapping such as '{{fold: [1, 2]}}'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="data.exclude.fold must be a list"):
        given_data(parser.parse_args([*words, "{fold: 1}"]))


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (features, ["--batch-size", "0"], "--batch-size: '0'; it takes a whole number of at least 1"),
        (features, ["--batch-size", "2.5"], "--batch-size: '2.5'; it takes a whole number of at least 1"),
        (features, ["--overlap", "1"], "--overlap: '1'; it takes a number of at least 0 and at most 0.99"),
        (features, ["--overlap", "nan"], "--overlap: 'nan'; it takes a number"),
        (features, ["--window-seconds", "0"], "--window-seconds: '0'; it takes a number of at least 0.01"),
        (features, ["--window-seconds", "1e9"], "--window-seconds: '1e9'; .* at most 3600"),
        (features, ["--num-workers", "-1"], "--num-workers: '-1'; it takes a whole number of at least 0"),
        (tokens, ["--batch-size", "-1"], "--batch-size: '-1'; it takes a whole number of at least 1"),
        (report, ["--clips", "-1"], "--clips: '-1'; it takes a whole number of at least 0"),
        (probe, ["--label-column", "x", "--seeds", "0", "-1"], "--seeds: '-1'; it takes a whole number"),
        (probe, ["--label-column", "x", "--batch-size", "0"], "--batch-size: '0'; it takes a whole number"),
        (measure, ["--num-workers", "-1"], "--num-workers: '-1'; it takes a whole number"),
    ],
)
def test_numbers_that_nothing_can_be_done_with_are_refused(command, words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--dataset", "x", *([] if command is measure else ["--model", "x"]), *words], "bridle")
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "takes a list of objects"),
        ("[1, 2]", "takes a list of objects"),
        ("[]", "takes a list of objects"),
        ('[{"a": 1}, {"b": 2}]', "with the same keys"),
        ("nothing", "--results is '.*', which is no JSON"),
    ],
)
def test_results_of_a_report_are_rows(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        report.read_results(str(path))
    path.write_text('[{"a": 1}, {"a": 2}]')
    assert report.read_results(str(path)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ["{}", "[]", '{"step": 1, "phase": "encoder", "reason": "", "recipe": "Other"}'])
def test_a_folder_that_no_run_wrote_is_not_replayed(tmp_path, text, capsys):
    (tmp_path / "rank-0.json").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        replay.main([str(tmp_path)], "bridle replay")
    assert "is not what a run writes to failure/" in capsys.readouterr().err
