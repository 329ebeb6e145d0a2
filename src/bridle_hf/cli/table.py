"""The command line of a table of quantizers: reads a recipe, trains its rows, writes and prints the table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from accelerate import PartialState

from ..evaluation.tables import markdown
from ..files import FolderError, check_writable, write_whole
from ..quantizer_experiments.rows import measure_methods, run_methods
from ..quantizer_experiments.table import TableRecipe
from ..recipe_reader import RecipeError
from ..training import load_recipe
from .checks import setting_up
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
    parser.add_argument(
        "--split", help="train nothing; evaluate the trained rows on this split of the data instead of data.test_split"
    )
    given = parse_recipe_options(parser, arguments)
    log_progress()
    keep_freed_memory()
    with setting_up(parser):
        recipe = load_recipe(given.recipe, given.overrides, recipe_class)
        check_writable(recipe.output_dir)
    if given.split is not None:
        with setting_up(parser):
            results, name = measure_methods(recipe, given.split, given.method), f"results-{quote(given.split, safe='')}"
    else:
        with setting_up(parser, (FolderError, RecipeError)):
            results, name = run_methods(recipe, given.method), "results"
    if PartialState().is_main_process:
        table = markdown([recipe.summary_row(each) for each in results])
        write_whole(Path(recipe.output_dir) / f"{name}.md", table)
        if given.split is None:
            recipe.draw(results)
        sys.stdout.write(table)
    PartialState().destroy_process_group()  # NCCL warns of one that is left
