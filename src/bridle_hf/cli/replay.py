"""Repeat a step that held NaN or inf, on the CPU in float32, and say which losses and gradients are not finite.

bridle replay runs/mine/failure/phase-00-step-00000123
"""

import argparse
import json
import sys
from math import isfinite
from pathlib import Path

from safetensors import SafetensorError

from ..quantizer_experiments.autoencoding import AutoencodingRecipe
from ..quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from ..training import PretrainRecipe, RecipeError, replay
from .checks import setting_up

RECIPES = {cls.__name__: cls for cls in (PretrainRecipe, AutoencodingRecipe, Wav2Vec2Recipe)}


def read_about(path):
    """What a run wrote about a step.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        about = json.loads(path.read_text())
        known = {"step", "phase", "reason"} <= about.keys() and about["recipe"] in RECIPES
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path} is not what a run writes to failure/.")
    return about


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that a run has written to failure/")
    parser.add_argument("--rank", type=int, default=0, help="the process whose batches are taken")
    given = parser.parse_args(arguments)
    with setting_up(parser):
        path = given.folder / f"rank-{given.rank}.json"
        about = read_about(path)
        for name in (f"rank-{given.rank}.safetensors", "model.safetensors", "recipe.yaml"):
            if not (given.folder / name).is_file():
                raise ValueError(f"{given.folder} holds no {name}, which a run writes to failure/.")
    sys.stdout.write(f"step {about['step'] + 1} of {about['phase']}: {about['reason']}\n")
    with setting_up(parser, (RecipeError, SafetensorError)):
        losses, gradients = replay(given.folder, given.rank, RECIPES[about["recipe"]])
    sys.stdout.writelines(f"{name:>16} {loss:.6g}\n" for name, loss in losses.items())
    bad = [name for name, norm in gradients.items() if not isfinite(norm)]
    sys.stdout.write(f"gradients: {len(gradients) - len(bad)} finite, {len(bad)} not\n")
    sys.stdout.writelines(f"  {name}\n" for name in bad)
