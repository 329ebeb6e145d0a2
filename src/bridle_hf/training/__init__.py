"""Pretraining: recipes, phases, parameter groups, checkpoints and the loop."""

from ..recipe_reader import RecipeError
from .arguments import PretrainRecipe, load_recipe
from .failures import replay
from .loop import pretrain
from .parameters import parameter_groups

__all__ = ["PretrainRecipe", "RecipeError", "load_recipe", "parameter_groups", "pretrain", "replay"]
