"""A table of quantizers: the rows of a recipe, run one after the other, and what their training has in common."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_model
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from ..configuration_bridle import BridleQuantizerConfig
from ..evaluation.tables import markdown
from ..training.arguments import config_keys
from ..training.parameters import parameter_groups
from ..training.recipes import RecipeError, load_recipe

logger = logging.getLogger(__name__)


@dataclass
class DatasetArguments:
    """Where the clips come from.

    Attributes:
        dataset: folder or Hub id; name: its configuration; column: the one that holds the clips.
        train_split, test_split: splits, or parts of them such as "train[:80%]".
    """

    dataset: str
    column: str
    name: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    num_workers: int = 0


def quantizer_keys(_) -> dict:
    """What a recipe may say about a quantizer."""
    return config_keys(BridleQuantizerConfig)


@dataclass
class Method:
    """A row of a table: its name, and what its quantizer and its optimizer have of their own.

    Attributes:
        quantizer: fields of `BridleQuantizerConfig`, laid over those of the recipe.
        learning_rate, weight_decay: the recipe's when left out.
    """

    name: str
    quantizer: dict = field(metadata={"keys": quantizer_keys})
    learning_rate: float | None = None
    weight_decay: float | None = None

    def config(self, shared: dict) -> BridleQuantizerConfig:
        """The quantizer's config, laid over fields that all methods share; vectors are taken as they are.

        Raises:
            ValueError: for a value that the config refuses.
        """
        try:
            return BridleQuantizerConfig(**{"normalize": "none", **shared, **self.quantizer})
        except StrictDataclassError as error:
            raise ValueError(f"`methods`, {self.name}: {error.__cause__ or error}") from error


def check_methods(recipe) -> None:
    """Raises a ValueError unless a recipe's methods have names of their own and quantizers that can be built."""
    names = [method.name for method in recipe.methods]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`methods` is {names}; it takes at least one, each with a name of its own.")
    for method in recipe.methods:
        method.config(recipe.quantizer)


def run_methods(recipe, names: list[str] | None = None) -> list[dict]:
    """Trains and measures every method that has no results yet, one after the other.

    `output_dir`/NAME/ receives model.safetensors and results.json.

    Args:
        recipe: has `output_dir`, `methods`, `mixed_precision`, `steps` and `run(method, accelerator)`, which returns a
            trained model and a dict of what was measured.
        names: of the methods to run; None runs all of them.

    Returns:
        The results of all methods that have some, in the order of the recipe.

    Raises:
        RecipeError: a name that the recipe does not have.
    """
    known = [method.name for method in recipe.methods]
    if unknown := sorted(set(names or ()) - set(known)):
        raise RecipeError(f"no method {', '.join(unknown)} in the recipe; it has {', '.join(known)}.")
    for method in recipe.methods:
        folder = Path(recipe.output_dir) / method.name
        if (names is None or method.name in names) and not (folder / "results.json").is_file():
            run_method(recipe, method, folder)
    files = [Path(recipe.output_dir) / name / "results.json" for name in known]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def run_method(recipe, method: Method, folder: Path) -> None:
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # update_ keeps codebooks equal
    )
    start = time.perf_counter()
    model, measured = recipe.run(method, accelerator)
    if accelerator.is_main_process:
        minutes = (time.perf_counter() - start) / 60
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, folder / "model.safetensors")
        results = {"method": method.name, **measured, "steps": recipe.steps, "minutes": minutes}
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        logger.info("%s took %.1f minutes", method.name, minutes)
    accelerator.wait_for_everyone()


def build_optimizer(model: torch.nn.Module, recipe, method: Method):
    """AdamW and its schedule: a cosine from the method's learning rate, or else the recipe's, to `final_share` of it.

    Args:
        recipe: has `learning_rate`, `final_share`, `weight_decay`, `betas` and `steps`.
    """
    rate = method.learning_rate or recipe.learning_rate
    decay = recipe.weight_decay if method.weight_decay is None else method.weight_decay
    optimizer = torch.optim.AdamW(parameter_groups(model, rate, decay), betas=recipe.betas)
    return optimizer, CosineAnnealingLR(optimizer, recipe.steps, eta_min=recipe.final_share * rate)


def open_split(data: DatasetArguments, train: bool) -> datasets.Dataset:
    """The clips of a split, undecoded where the library would need more than it has to decode them."""
    clips = datasets.load_dataset(data.dataset, data.name, split=data.train_split if train else data.test_split)
    if data.column not in clips.column_names:
        raise ValueError(f"data.column is {data.column!r}; {data.dataset} has {', '.join(clips.column_names)}.")
    return clips.select_columns([data.column])


def build_loader(recipe, clips: datasets.Dataset, collate: Callable, train: bool) -> DataLoader:
    """Batches of clips; those of training are whole and shuffled."""
    options = {"num_workers": recipe.data.num_workers, "collate_fn": collate}
    return DataLoader(clips, recipe.batch_size, shuffle=train, drop_last=train, **options)


def endless(loader: DataLoader) -> Iterator:
    """The batches of a loader again and again."""
    while True:
        yield from loader


def main(recipe_class: type, summary_row: Callable[[dict], dict], description: str) -> None:
    """The command line of a table: reads a recipe, runs its methods, prints and writes the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a YAML file, see examples/recipes")
    parser.add_argument("--method", action="append", metavar="NAME", help="a row of the recipe to run; all without it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as steps=100")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bridle_hf").setLevel(logging.INFO)
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides, recipe_class)
        results = run_methods(recipe, arguments.method)
    except RecipeError as error:
        parser.error(str(error))
    table = markdown([summary_row(each) for each in results])
    (Path(recipe.output_dir) / "results.md").write_text(table)
    sys.stdout.write(table)
