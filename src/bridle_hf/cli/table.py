"""The command line of a table of quantizers: reads a recipe, trains its rows, writes and prints the table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from ..evaluation.tables import markdown
from ..files import FolderError
from ..quantizer_experiments.table import TableRecipe, run_methods
from ..recipe_reader import RecipeError
from ..training import load_recipe
from .options import add_recipe_options, parse_recipe_options
from .process import keep_freed_memory, log_progress


def run_table(
    recipe_class: type[TableRecipe], description: str, arguments: Sequence[str] | None = None, prog: str | None = None
) -> None:
    """Runs the command for recipes of one class."""
    parser = argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser, "such as steps=100")
    parser.add_argument("--method", action="append", metavar="NAME", help="a row of the recipe to run; all without it")
    given = parse_recipe_options(parser, arguments)
    log_progress()
    keep_freed_memory()
    try:
        recipe = load_recipe(given.recipe, given.overrides, recipe_class)
        results = run_methods(recipe, given.method)
    except (RecipeError, FolderError) as error:
        parser.error(str(error))
    if PartialState().is_main_process:
        table = markdown([recipe.summary_row(each) for each in results])
        (Path(recipe.output_dir) / "results.md").write_text(table)
        recipe.draw(results)
        sys.stdout.write(table)
