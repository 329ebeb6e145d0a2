"""Options that commands share: the recipe and its overrides, the data."""

import argparse

import pytest

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
        assert f"argument --exclude: invalid mapping value: '{text}'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="data.exclude.fold must be a list"):
        given_data(parser.parse_args([*words, "{fold: 1}"]))
