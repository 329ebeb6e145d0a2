"""A table of quantizers: each row of a recipe is a task of the training engine."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import datasets
import torch
from accelerate.utils import send_to_device
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_model

from ..codebook_bridle import this_process
from ..configuration_bridle import BridleQuantizerConfig
from ..data.source import leave_out
from ..files import write_whole
from ..losses_bridle import LossSum
from ..quantization_bridle import QuantizerOutput
from ..recipe_reader import RecipeError, changed_keys, config_keys
from ..training.arguments import OptimizationArguments
from ..training.codebooks import start_codebooks_
from ..training.engine import train
from ..training.metrics import code_usage
from ..training.parameters import parameter_groups
from ..training.run import Run, build_accelerator
from ..training.seeds import seed_from
from ..training.task import Task, cosine
from .batches import StepBatches

logger = logging.getLogger(__name__)

RESULTS = "results.json"


@dataclass
class DatasetArguments:
    """Where the samples come from.

    Attributes:
        dataset: folder or Hub id; name: its configuration; column: the one that holds the samples.
        train_split, test_split: splits, or parts of them such as "train[:80%]".
        exclude: column -> values; samples that hold one of them are left out, as in `data.DataArguments`.
    """

    dataset: str
    column: str
    name: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    num_workers: int = 0
    exclude: dict[str, list] = field(default_factory=dict)


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


def open_split(data: DatasetArguments, train: bool) -> datasets.Dataset:
    """The samples of a split that `data.exclude` keeps.

    Raises:
        ValueError: `data.column` or a column of `data.exclude` is not among its columns.
    """
    samples = datasets.load_dataset(data.dataset, data.name, split=data.train_split if train else data.test_split)
    if data.column not in samples.column_names:
        raise ValueError(f"data.column is {data.column!r}; {data.dataset} has {', '.join(samples.column_names)}.")
    for column in data.exclude:
        if column not in samples.column_names:
            raise ValueError(f"data.exclude names {column!r}; {data.dataset} has {', '.join(samples.column_names)}.")
    return leave_out(samples, data.exclude).select_columns([data.column])


@dataclass
class RowOutput:
    """Output of a row's forward pass: named losses, and the output of its quantizer."""

    losses: dict[str, LossSum]
    quantizer: QuantizerOutput


@dataclass(kw_only=True)
class TableRecipe:
    """One model per method, all else equal. An experiment says what the model is, what it minimises and what is
    measured.

    Attributes:
        data: where the samples come from.
        quantizer: fields of `BridleQuantizerConfig` that all methods share.
        methods: the rows of the table.
        batch_size: of a process; K of the KNN regularisers is per process too.
        learning_rate: falls as a cosine to `final_share` of itself.
        max_grad_norm: gradients are cut to this length; None leaves them.
        checkpoint_steps: steps between checkpoints of a method that is not finished.
        logging_steps: steps between records in metrics.jsonl.
        skip_bad_steps: how many steps with NaN or inf may be skipped; the next one stops the method.
    """

    output_dir: str
    data: DatasetArguments
    methods: list[Method]
    quantizer: dict = field(default_factory=dict, metadata={"keys": quantizer_keys})
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    final_share: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    max_grad_norm: float | None = None
    checkpoint_steps: int = 1000
    logging_steps: int = 50
    skip_bad_steps: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"

    def __post_init__(self):
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`methods` is {names}; it takes at least one, each with a name of its own.")
        for method in self.methods:
            method.config(self.quantizer)
        for name in ("steps", "batch_size", "checkpoint_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes whole numbers from 1 on.")

    def describe(self, method: Method) -> dict:
        """Everything that the results of a method depend on, as JSON values."""
        values = asdict(self) | {"methods": [asdict(method)]}
        for key in ("output_dir", "checkpoint_steps", "logging_steps", "skip_bad_steps"):
            del values[key]
        del values["data"]["num_workers"]
        return json.loads(json.dumps(values))  # lists for tuples, as it will be read back

    @property
    def settings(self) -> OptimizationArguments:
        return OptimizationArguments(
            batch_size=self.batch_size,
            mixed_precision=self.mixed_precision,
            weight_decay=self.weight_decay,
            betas=self.betas,
            max_grad_norm=self.max_grad_norm,
            logging_steps=self.logging_steps,
            skip_bad_steps=self.skip_bad_steps,
            checkpoint_steps=self.checkpoint_steps,
            keep_checkpoints=1,
            tracker=None,
        )

    def build_tasks(self, num_processes: int = 1) -> list["Row"]:
        """A task per method. Each is run in a folder of its own."""
        return [Row(self, method) for method in self.methods]

    def build(self, method: Method) -> torch.nn.Module:
        """The model of a method, drawn from the seed."""
        raise NotImplementedError

    def quantizer_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """Our quantizer inside a model of `build`."""
        raise NotImplementedError

    def vectors(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        """Input of a model's quantizer for a batch: (..., d)."""
        raise NotImplementedError

    def objective(self) -> dict[str, float]:
        """The named losses that are minimised, and their weights."""
        raise NotImplementedError

    def count(self, batch: dict) -> float:
        """Number of items that the losses of a batch average over."""
        raise NotImplementedError

    def forward(self, model: torch.nn.Module, bare: torch.nn.Module, batch: dict) -> RowOutput:
        """A forward pass. `model` is `bare`, or wraps it for several processes."""
        raise NotImplementedError

    def open_batches(self, seed: int, rank: int, num_processes: int) -> StepBatches:
        """The training batches of a process."""
        return StepBatches(self, seed, rank, num_processes)

    def open_samples(self, train: bool):
        """The `datasets.Dataset` of a split."""
        raise NotImplementedError

    def collate(self, examples: list[dict], seed: int, train: bool) -> dict[str, torch.Tensor]:
        """Examples of `open_samples` as a batch; what is random in it follows from the seed."""
        raise NotImplementedError

    def measure(self, model: torch.nn.Module, device: torch.device, folder: Path) -> dict:
        """What the results of a trained model hold: "code_use" and "perplexity" per codebook, and more. Pictures go to
        the folder."""
        raise NotImplementedError

    def columns(self, results: dict) -> dict[str, str]:
        """Columns of the table besides the use of the codes."""
        raise NotImplementedError

    def summary_row(self, results: dict) -> dict[str, str]:
        """One line of the table."""
        return {
            "method": results["method"],
            "code use %": " ".join(f"{100 * share:.1f}" for share in results["code_use"]),
            "perplexity": " ".join(f"{value:.0f}" for value in results["perplexity"]),
            **self.columns(results),
            "minutes": f"{results['minutes']:.1f}",
        }

    def draw(self, results: list[dict]) -> None:
        """Pictures of the whole table, into `output_dir`."""


def run_methods(recipe: TableRecipe, names: list[str] | None = None) -> list[dict]:
    """Train and evaluate every method that has no results yet, one after the other.

    `output_dir`/NAME/ receives model.safetensors and results.json, and checkpoints/ until the method is finished.

    Args:
        names: of the methods to run; None runs all of them.

    Returns:
        The results of all methods that have some, in the order of the recipe.

    Raises:
        RecipeError: a name that the recipe does not have.
        FloatingPointError: a loss became NaN or inf.
    """
    known = [method.name for method in recipe.methods]
    if unknown := sorted(set(names or ()) - set(known)):
        raise RecipeError(f"no method {', '.join(unknown)} in the recipe; it has {', '.join(known)}.")
    accelerator = build_accelerator(recipe.settings, Path(recipe.output_dir))
    found = []
    for row in recipe.build_tasks():
        folder = Path(recipe.output_dir) / row.name
        if (names is None or row.name in names) and not row.is_exported(folder):
            own = replace(recipe, methods=[row.method])
            train(Run(accelerator, folder, [row], recipe.settings, own.open_batches, own, recipe.seed))
            accelerator.wait_for_everyone()
        if row.is_exported(folder):
            found.append(json.loads((folder / RESULTS).read_text()))
            if changed := changed_keys(found[-1]["recipe"], recipe.describe(row.method)):
                logger.warning("the results of %s are of another recipe: %s", row.name, ", ".join(changed))
    return found


class Row(Task):
    """The training of one method of a table."""

    def __init__(self, recipe: TableRecipe, method: Method):
        self.recipe, self.method = recipe, method
        self.name, self.steps = method.name, recipe.steps
        self.learning_rate = recipe.learning_rate if method.learning_rate is None else method.learning_rate

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

    def build_optimizer(self, model, weight_decay, betas):
        decay = weight_decay if self.method.weight_decay is None else self.method.weight_decay
        return torch.optim.AdamW(parameter_groups(model, self.learning_rate, decay), betas=betas)

    def learning_rate_at(self, step):
        return self.learning_rate * cosine(1.0, self.recipe.final_share, step / self.steps)

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
        codes, size = output.quantizer.codes, self.recipe.quantizer_of(model).codebook_size
        return {"codebooks": code_usage(codes.flatten(0, -2)[None], None, size, accelerator)}

    def export(self, model, folder, accelerator, minutes):
        if accelerator.is_main_process:
            model = model.to(accelerator.device).eval()
            results = {"method": self.name, **self.recipe.measure(model, accelerator.device, folder)}
            results |= {"minutes": minutes, "recipe": self.recipe.describe(self.method)}
            save_model(model, folder / "model.safetensors")
            write_whole(folder / RESULTS, json.dumps(results, indent=1) + "\n")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            logger.info("%s took %.1f minutes", self.name, minutes)
        accelerator.wait_for_everyone()

    def is_exported(self, folder):
        return (folder / RESULTS).is_file()
