"""The training engine, and pretraining as its tasks: recipes, phases, checkpoints, metrics, failures."""

from ..recipe_reader import RecipeError
from .parameters import parameter_groups
from .pretraining import PretrainRecipe, load_recipe, pretrain
from .replay import replay

__all__ = ["PretrainRecipe", "RecipeError", "load_recipe", "parameter_groups", "pretrain", "replay"]
