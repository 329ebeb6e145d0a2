"""A step with NaN or inf, taken again from what `failures.py` saved of it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..losses_bridle import objective
from ..recipe_reader import read_recipe
from .failures import nested
from .pretraining import PretrainRecipe


def replay(
    folder: str | Path, rank: int = 0, recipe_class: type = PretrainRecipe
) -> tuple[dict[str, float], dict[str, float]]:
    """Takes the forward and backward passes of a saved step again, on the CPU in float32, for one of its processes.

    Args:
        folder: a folder in `failure/` of a run.
        rank: the process whose inputs are taken.
        recipe_class: of the run.

    Returns:
        The losses of the step, name -> mean over this process, with "loss" for what it minimised; and the norm of
        every parameter's gradient by name.
    """
    folder = Path(folder)
    about = json.loads((folder / f"rank-{rank}.json").read_text())
    tensors, totals, loss = load_file(folder / f"rank-{rank}.safetensors"), {}, 0.0
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
        for name, each in output.losses.items():
            total, count = totals.get(name, (0.0, 0.0))
            totals[name] = total + float(each.sum.detach()), count + float(each.count)
    gradients = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    return {name: total / max(1.0, count) for name, (total, count) in totals.items()} | {"loss": loss}, gradients
