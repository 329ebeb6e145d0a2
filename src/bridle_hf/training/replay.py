"""Replay of a step with NaN or inf from the files that `failures.py` wrote."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..losses_bridle import LossSum, objective
from ..recipe_reader import read_recipe
from .engine import add_up
from .failures import nested
from .pretraining import PretrainRecipe


def replay(
    folder: str | Path, rank: int = 0, recipe_class: type = PretrainRecipe
) -> tuple[dict[str, float], dict[str, float]]:
    """Run the forward and backward passes of a saved step again, for one process, on the CPU in float32.

    Args:
        folder: a folder in the `failure/` folder of a run.
        rank: the process whose inputs are used.
        recipe_class: class of the run's recipe.

    Returns:
        The losses of the step, name -> mean over this process, with the minimised one as "loss"; and the gradient norm
        of every parameter by name.
    """
    folder = Path(folder)
    about = json.loads((folder / f"rank-{rank}.json").read_text())
    tensors, losses, loss = load_file(folder / f"rank-{rank}.safetensors"), {}, 0.0
    recipe = read_recipe(recipe_class, folder / "recipe.yaml")
    task = next(task for task in recipe.build_tasks(about["processes"]) if task.name == about["phase"])
    model = task.build(load_file(folder / "model.safetensors"), begins=False)
    task.set_modes_(model)
    counts = {name: torch.tensor(count) for name, count in about["counts"].items()}
    for micro, seed in enumerate(about["seeds"]):
        prefix = f"{micro}."
        batch = nested({name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)})
        torch.manual_seed(seed)
        output = task.forward(model, model, batch, about["step"])
        part = objective(output.losses, task.objective(model, about["step"]), counts)
        part.backward()
        loss += float(part.detach())
        losses = add_up(losses, {name: LossSum(*(x.detach() for x in each)) for name, each in output.losses.items()})
    gradients = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    return {name: float(each.mean) for name, each in losses.items()} | {"loss": loss}, gradients
