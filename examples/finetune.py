r"""Fine-tune a pretrained encoder on a labelled set, one model a fold, and test each after its last epoch.

    python examples/finetune.py --recipe examples/recipes/audio/esc50_finetune.yaml model=runs/esc50/final
    python examples/finetune.py --recipe ... model=runs/esc50/final from_scratch=true training.layer_decay=null \
        output_dir=runs/scratch

The last line of standard output is one JSON object with the top-1 and top-5 accuracy and the mean average precision
over the folds; `output_dir`/fold-K holds the models, as transformers' pipelines load them. The same command goes on
where it was stopped. It takes one GPU; `accelerate launch examples/finetune.py ...` takes all, `batch_size` clips each.
"""

import argparse
import json
import logging
import sys

from bridle_hf.cli.checks import check_finetuning, setting_up
from bridle_hf.cli.process import keep_freed_memory
from bridle_hf.finetuning.finetune import FinetuneRecipe, finetune
from bridle_hf.training import load_recipe


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a YAML file, see examples/recipes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.epochs=20")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bridle_hf").setLevel(logging.INFO)
    with setting_up(parser):
        recipe = load_recipe(arguments.recipe, arguments.overrides, FinetuneRecipe)
        check_finetuning(recipe)
    keep_freed_memory()
    sys.stdout.write(json.dumps(finetune(recipe)) + "\n")


if __name__ == "__main__":
    main()
