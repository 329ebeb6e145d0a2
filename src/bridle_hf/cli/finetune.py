r"""Fine-tune a pretrained encoder on a labelled set, one model per fold, and test each after its last epoch.

    bridle finetune audio/esc50_finetune model=runs/esc50/final
    bridle finetune audio/esc50_finetune model=runs/esc50/final from_scratch=true training.layer_decay=null \
        output_dir=runs/scratch

The last line of standard output is one JSON object with the top-1 and top-5 accuracy and the mean average precision
over the folds; `output_dir`/fold-K holds the models, as transformers' pipelines load them. The same command goes on
where it was stopped. It takes one GPU; `accelerate launch -m bridle_hf.cli finetune ...` takes all, `batch_size` clips
each.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from ..data import LabelError, UnusableDataError
from ..files import FolderError
from ..finetuning.finetune import FinetuneRecipe, finetune
from ..training import load_recipe
from ..training.checkpoints import CheckpointError
from ..training.waiting import waiting_for_others
from .checks import check_finetuning, setting_up
from .options import add_recipe_options, parse_recipe_options
from .process import keep_freed_memory, log_progress

logger = logging.getLogger(__name__)


def say_what_is_there(recipe: FinetuneRecipe) -> None:
    """Name the tables, and the classifier to use; of LoRA matrices alone peft makes one first."""
    folder = Path(recipe.output_dir)
    kept = [folder / "final"] if recipe.final else sorted(folder.glob("fold-*"))
    use = [path for path in kept if (path / "config.json").is_file()]
    said = f"; new clips are classified by `bridle classify --model {use[0]} --dataset ...`" if use else ""
    more = "" if recipe.final else "; final=true trains one on all clips"
    tables = folder if recipe.folds == [] else f"{folder / 'results.md'} has the tables"
    logger.info("finished: %s%s%s", tables, said, more)


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_options(parser, "such as training.epochs=20")
    given = parse_recipe_options(parser, arguments)
    log_progress()
    with setting_up(parser):
        recipe = load_recipe(given.recipe, given.overrides, FinetuneRecipe)
        check_finetuning(recipe)
    keep_freed_memory()
    with setting_up(parser, (LabelError, UnusableDataError, FolderError, CheckpointError)), waiting_for_others():
        results = finetune(recipe)
    say_what_is_there(recipe)
    sys.stdout.write(json.dumps(results) + "\n")
