"""A wheel holds what the commands look for beside the code: recipes and cards."""

import configparser
from importlib.resources import files

import pytest

from bridle_hf.cli.main import main
from bridle_hf.recipes import FOLDER, recipe_names


def test_every_file_that_is_no_code_is_declared_as_package_data(repository):
    package = repository / "src" / "bridle_hf"
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    declared = {path for glob in setup["options.package_data"]["bridle_hf"].split() for path in package.glob(glob)}
    found = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert found and found == declared


def test_they_are_found_beside_the_code():
    package = files("bridle_hf")
    assert FOLDER.samefile(package / "recipes") and len(recipe_names()) > 40
    assert all((package / "recipes" / f"{name}.yaml").is_file() for name in recipe_names())
    assert {path.name for path in (package / "cards").iterdir()} > {"template.md", "bridle-audio.md"}


def test_a_checkout_has_them_where_they_are_looked_for(repository):
    assert (repository / "examples" / "recipes").samefile(FOLDER)
    assert all(card.is_file() for card in (repository / "model_cards").iterdir())


def test_a_recipe_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "audio/dmeo"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bridle pretrain: error: 'audio/dmeo' is neither a file nor a recipe of the package")
    assert "Did you mean audio/demo" in last
