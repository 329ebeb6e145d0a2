"""The command line of a table of quantizers: reads a recipe, trains its rows, writes and prints the table."""

import argparse
import logging
import sys
from pathlib import Path

from accelerate import PartialState

from ..evaluation.tables import markdown
from ..quantizer_experiments.table import TableRecipe, run_methods
from ..recipe_reader import RecipeError, read_recipe
from .process import keep_freed_memory


def main(recipe_class: type[TableRecipe], description: str) -> None:
    """Runs the command for recipes of one class."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a YAML file, see examples/recipes")
    parser.add_argument("--method", action="append", metavar="NAME", help="a row of the recipe to run; all without it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as steps=100")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bridle_hf").setLevel(logging.INFO)
    try:
        recipe = read_recipe(recipe_class, arguments.recipe, arguments.overrides)
        results = run_methods(recipe, arguments.method)
    except RecipeError as error:
        parser.error(str(error))
    if PartialState().is_main_process:
        table = markdown([recipe.summary_row(each) for each in results])
        (Path(recipe.output_dir) / "results.md").write_text(table)
        recipe.draw(results)
        sys.stdout.write(table)
