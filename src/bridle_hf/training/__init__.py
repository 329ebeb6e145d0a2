"""Pretraining: recipes, phases, parameter groups, checkpoints and the loop."""

from .arguments import PretrainRecipe
from .failures import replay
from .loop import pretrain
from .parameters import parameter_groups
from .recipes import RecipeError, load_recipe

__all__ = ["PretrainRecipe", "RecipeError", "load_recipe", "parameter_groups", "pretrain", "replay"]
