"""Pretrain BRIDLE: the whole schedule of phases of a recipe.

    accelerate launch examples/pretrain.py --recipe examples/recipes/audio/demo.yaml
    accelerate launch examples/pretrain.py --recipe examples/recipes/audio/esc10_tiny.yaml output_dir=runs/a seed=1

Started again with the same output_dir, it goes on where it was. SIGTERM or Ctrl-C finishes the step and saves first.
"""

import argparse
import logging
import os

from transformers.utils.logging import disable_progress_bar

from bridle_hf.cli.checks import check_recipe, setting_up
from bridle_hf.cli.process import keep_freed_memory, stop_signals
from bridle_hf.training import load_recipe, pretrain


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a YAML file, see examples/recipes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.batch_size=8")
    arguments = parser.parse_intermixed_args()
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bridle_hf").setLevel(level)
    with setting_up(parser):
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        check_recipe(recipe)
    disable_progress_bar()  # of saving small files; the loop has its own
    keep_freed_memory()
    pretrain(recipe, stop=stop_signals())


if __name__ == "__main__":
    main()
