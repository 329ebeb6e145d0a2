"""Pretrain BRIDLE: all phases of a recipe.

    bridle pretrain audio/demo
    accelerate launch -m bridle_hf.cli pretrain audio/esc10_tiny output_dir=runs/a seed=1

Started again with the same output_dir, it goes on where it was. SIGTERM or Ctrl-C finishes the step and saves first.
"""

import argparse
import logging

from accelerate import PartialState

from ..data import UnusableDataError
from ..files import FolderError
from ..recipe_reader import RecipeError
from ..training import load_recipe, pretrain
from ..training.checkpoints import CheckpointError
from ..training.evaluating import EvaluationError
from .checks import check_recipe, setting_up
from .options import add_recipe_options, parse_recipe_options
from .process import keep_freed_memory, log_progress, stop_signals

logger = logging.getLogger(__name__)


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_options(parser, "such as training.batch_size=8")
    given = parse_recipe_options(parser, arguments)
    log_progress()
    with setting_up(parser):
        recipe = load_recipe(given.recipe, given.overrides)
        check_recipe(recipe)
    keep_freed_memory()
    with setting_up(parser, (FolderError, RecipeError, CheckpointError, EvaluationError, UnusableDataError)):
        finished = pretrain(recipe, stop=stop_signals())
    PartialState().destroy_process_group()  # NCCL warns of one that is left
    if finished:
        folder = recipe.output_dir
        logger.info("finished: %s/final; see its codes by `bridle report --model %s --dataset ...`", folder, folder)
