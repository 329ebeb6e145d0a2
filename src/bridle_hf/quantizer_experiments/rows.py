"""The rows of a table: their training as tasks of the engine, and their measures on any split."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from safetensors.torch import load_model, save_model

from ..codebook_bridle import this_process
from ..codebook_training_bridle import start_codebooks_
from ..files import share_files, write_whole
from ..recipe_reader import RecipeError, changed_keys
from ..training.engine import train
from ..training.metrics import code_usage
from ..training.parameters import parameter_groups
from ..training.run import Run, build_accelerator
from ..training.seeds import seed_from
from ..training.task import Task, cosine

logger = logging.getLogger(__name__)

RESULTS = "results.json"


class Row(Task):
    """The training of one method of a table.

    Args:
        recipe: of this method alone, from `TableRecipe.of`.
        method: a `Method`.
        num_processes: of the run, on which the length of epochs depends.
    """

    def __init__(self, recipe, method, num_processes: int = 1):
        self.recipe, self.method = recipe, method
        self.name, self.steps = method.name, recipe.length(num_processes)

    def build(self, weights, begins):
        model = self.recipe.build(self.method)
        if weights is not None:
            model.load_state_dict(weights)
        return model

    def start_(self, model, batches, generator):
        device = next(model.parameters()).device
        batches = self.recipe.open_batches(self.recipe.seed, *this_process())  # the run's own stay where they are
        vectors = (self.recipe.vectors(model, send_to_device(batch, device)) for batch in batches)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(self.recipe.seed)
            start_codebooks_(self.recipe.quantizer_of(model), vectors, generator)

    def build_optimizer(self, model, settings):
        groups = parameter_groups(model, self.recipe.learning_rate, settings.weight_decay)
        return torch.optim.AdamW(groups, betas=settings.betas)

    def learning_rate_at(self, step):
        peak, warmup = self.recipe.learning_rate, self.recipe.warmup_steps
        if step < warmup:
            return peak * step / warmup
        return peak * cosine(1.0, self.recipe.final_share, (step - warmup) / max(1, self.steps - warmup))

    def seed(self, place):
        seed, _, step, rank, _ = place
        return seed_from(seed, step, rank, 1)  # that of the batch is without the 1

    def objective(self, model, step):
        return self.recipe.objective()

    def counts(self, model, batch):
        return dict.fromkeys(self.recipe.objective(), self.recipe.count(batch))

    def forward(self, model, bare, batch, step):
        return self.recipe.forward(model, bare, batch)

    def statistics(self, output):
        return output.quantizer.stats

    def update_(self, model, statistics):
        self.recipe.quantizer_of(model).update_(statistics)

    def measure(self, model, output, batch, accelerator):
        codes, sizes = output.quantizer.codes, self.recipe.quantizer_of(model).codebook_sizes
        return {"codebooks": code_usage(codes.flatten(0, -2)[None], None, sizes, accelerator)}

    def export(self, model, folder, accelerator, minutes):
        if accelerator.is_main_process:
            model = model.to(accelerator.device).eval()
            results = {"method": self.name, **self.recipe.measure(model, accelerator.device, folder)}
            results |= {"minutes": minutes, "processes": accelerator.num_processes}
            results |= {"recipe": self.recipe.describe(self.method)}
            save_model(model, folder / "model.safetensors")
            share_files(folder)
            write_whole(folder / RESULTS, json.dumps(results, indent=1) + "\n")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            logger.info("%s took %.1f minutes", self.name, minutes)
        accelerator.wait_for_everyone()

    def is_exported(self, folder):
        return (folder / RESULTS).is_file()


def run_methods(recipe, names: list[str] | None = None) -> list[dict]:
    """Train and evaluate every method that has no results yet, one after the other.

    `output_dir`/NAME/ receives model.safetensors and results.json, and checkpoints/ until the method is finished.

    Args:
        recipe: a `TableRecipe`.
        names: of the methods to run; None runs all of them.

    Returns:
        The results of all methods that have some, in the order of the recipe.

    Raises:
        RecipeError: a name that the recipe does not have, data that cannot be opened, or too few of them.
        FloatingPointError: a loss became NaN or inf.
    """
    check_names(recipe, names)
    accelerator = build_accelerator(recipe.settings, Path(recipe.output_dir))
    try:
        recipe.check(accelerator.num_processes)
    except (ValueError, OSError) as error:
        raise RecipeError(str(error)) from error
    found = []
    for row in recipe.build_tasks(accelerator.num_processes):
        folder, own = Path(recipe.output_dir) / row.name, row.recipe
        if (names is None or row.name in names) and not row.is_exported(folder):
            train(Run(accelerator, folder, [row], own.settings, own.open_batches, own, own.seed))
            accelerator.wait_for_everyone()
        if row.is_exported(folder):
            found.append(json.loads((folder / RESULTS).read_text()))
            if changed := changed_keys(found[-1]["recipe"], recipe.describe(row.method)):
                logger.warning("the results of %s are of another recipe: %s", row.name, ", ".join(changed))
    return found


def measure_methods(recipe, split: str, names: list[str] | None = None) -> list[dict]:
    """Evaluate the trained methods of a table on another split; nothing is trained.

    `output_dir`/NAME/splits/SPLIT/ receives results.json, SPLIT with what is no letter, digit or one of "_.-~" escaped.

    Args:
        recipe: a `TableRecipe`.
        split: of `data.dataset`, as `data.test_split`.
        names: of the methods; None takes all that are trained.

    Returns:
        Their results, in the order of the recipe.

    Raises:
        RecipeError: a name that the recipe does not have, a method of `names` that is not trained, or no trained one.
        ValueError: there is no such split.
    """
    check_names(recipe, names)
    recipe = replace(recipe, data=replace(recipe.data, test_split=split))
    recipe.open_samples(train=False)
    root, device, found = Path(recipe.output_dir), PartialState().device, []
    methods = [method for method in recipe.methods if names is None or method.name in names]
    trained = [method for method in methods if (root / method.name / RESULTS).is_file()]
    if not trained or (names is not None and len(trained) < len(methods)):
        missing = ", ".join(method.name for method in methods if method not in trained)
        raise RecipeError(f"{missing}: not trained in {root}; run the command without a split first.")
    for method in trained:
        folder = root / method.name
        model = recipe.build(method)
        load_model(model, folder / "model.safetensors")
        to = folder / "splits" / quote(split, safe="")
        to.mkdir(parents=True, exist_ok=True)
        results = json.loads((folder / RESULTS).read_text())
        results |= {"split": split, **recipe.measure(model.to(device).eval(), device, to)}
        write_whole(to / RESULTS, json.dumps(results, indent=1) + "\n")
        found.append(results)
    return found


def check_names(recipe, names: list[str] | None) -> None:
    """Raise a `RecipeError` for names that are not methods of the recipe."""
    known = [method.name for method in recipe.methods]
    if unknown := sorted(set(names or ()) - set(known)):
        raise RecipeError(f"no method {', '.join(unknown)} in the recipe; it has {', '.join(known)}.")
