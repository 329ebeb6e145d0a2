"""The recipes of the package, by name: `audio/demo` is `audio/demo.yaml` in this folder."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from ..recipe_reader import RecipeError

FOLDER = Path(str(files(__name__)))


def recipe_names() -> list[str]:
    """Names of all recipes of the package, such as `audio/demo`."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))


def find_recipe(recipe: str | Path, folder: Path = Path()) -> Path:
    """The file of a recipe.

    Args:
        recipe: path of a file, or the name of a recipe of the package with or without `.yaml`. A file comes first.
        folder: where relative paths begin; the current folder by default.

    Raises:
        RecipeError: there is neither.
    """
    path = folder / recipe
    if path.is_file():
        return path
    name, names = str(recipe).removesuffix(".yaml"), recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    group, last = Path(name).parent.name, Path(name).name
    similar = get_close_matches(last, sorted({each.partition("/")[2] for each in names}))
    close = [each for end in similar for each in names if each.endswith(f"/{end}")]
    close.sort(key=lambda each: each.partition("/")[0] != group)  # those of the same group first
    hint = f" Did you mean {' or '.join(close[:3])}?" if close else ""
    if path.is_dir():
        hint = f" A folder of data is given beside a recipe: audio/own_small data.dataset={recipe}"
    raise RecipeError(f"{str(recipe)!r} is neither a file nor a recipe of the package in {FOLDER}.{hint}")
