"""A table of quantizers: each row of a recipe is a task of the training engine."""

import json
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import datasets
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import StrictDataclassError

from ..configuration_bridle import BridleQuantizerConfig
from ..data.source import leave_out
from ..losses_bridle import LossSum
from ..quantization_bridle import QuantizerOutput
from ..recipe_reader import config_keys
from ..training.arguments import OptimizationArguments
from .batches import StepBatches, steps_per_epoch
from .rows import Row


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
    """A row of a table: its name, and the settings that differ from those of the recipe.

    Attributes:
        quantizer: fields of `BridleQuantizerConfig`, laid over those of the recipe.
        steps, epochs, batch_size, learning_rate, warmup_steps, weight_decay: the recipe's when left out.
    """

    name: str
    quantizer: dict = field(metadata={"keys": quantizer_keys})
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
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
        ValueError: there is no such split, or `data.column` or a column of `data.exclude` is not among its columns.
    """
    key = "train_split" if train else "test_split"
    try:
        samples = datasets.load_dataset(data.dataset, data.name, split=getattr(data, key))
    except (ValueError, DatasetGenerationError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise ValueError(f"data.{key} is {getattr(data, key)!r}; {data.dataset}: {reason}") from error
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
        steps, epochs: length in optimizer steps, or in passes over the training split. `steps` wins.
        batch_size: per process; K of the KNN regularisers is per process too.
        learning_rate: rises linearly from 0 over `warmup_steps`, then falls as a cosine to `final_share` of itself.
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
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup_steps: int = 0
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
            neighbors = method.config(self.quantizer).num_neighbors
            own, of = self.of(method), f"`methods`, {method.name}: "
            check_lengths(own, "" if len(self.methods) == 1 else of)
            if neighbors > (most := own.most_vectors()):
                raise ValueError(f"{of}`num_neighbors` is {neighbors}; a step has at most {most} vectors per process.")

    def of(self, method: Method) -> "TableRecipe":
        """A copy whose only row is a method, with the method's own settings in place of those of the recipe."""
        own = copy(self)
        own.methods = [method]
        if method.steps is not None or method.epochs is not None:
            own.steps, own.epochs = method.steps, method.epochs
        for name in ("batch_size", "learning_rate", "warmup_steps", "weight_decay"):
            if (value := getattr(method, name)) is not None:
                setattr(own, name, value)
        return own

    def check(self, num_processes: int = 1) -> None:
        """Open what a run reads, before it starts.

        Raises:
            ValueError: data that cannot be opened, or too few samples for a step of a row.
        """
        num_samples = self.num_samples
        self.open_samples(train=False)
        for method in self.methods:
            steps_per_epoch(num_samples, self.of(method).batch_size, num_processes)

    @cached_property
    def num_samples(self) -> int:
        """Number of samples of the training split."""
        return len(self.open_samples(train=True))

    def length(self, num_processes: int) -> int:
        """Optimizer steps of a run."""
        if self.steps is not None:
            return self.steps
        steps = self.epochs * steps_per_epoch(self.num_samples, self.batch_size, num_processes)
        return max(1, round(steps))

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

    def build_tasks(self, num_processes: int = 1) -> list[Row]:
        """A task per method. Each is run in a folder of its own."""
        if any(self.of(method).steps is None for method in self.methods):
            self.num_samples  # noqa: B018, read once here, so that the copies for the rows carry it
        return [Row(self.of(method), method, num_processes) for method in self.methods]

    def most_vectors(self) -> int:
        """The most vectors that a quantizer gets in a step of one process."""
        raise NotImplementedError

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
        """Results of a trained model: "code_use" and "perplexity" per codebook, and more. Pictures go to the folder."""
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


def check_lengths(recipe: TableRecipe, of: str) -> None:
    """Raise a `ValueError` for a number of a recipe that is out of its range."""
    if recipe.steps is None and recipe.epochs is None:
        raise ValueError(f"{of}neither `steps` nor `epochs` is given; one of them says how long a row is trained.")
    for name in ("steps", "batch_size", "checkpoint_steps", "logging_steps"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise ValueError(f"{of}`{name}` is {value}; it takes whole numbers from 1 on.")
    if recipe.epochs is not None and not recipe.epochs > 0:
        raise ValueError(f"{of}`epochs` is {recipe.epochs}; it takes a number above 0.")
    if recipe.warmup_steps < 0:
        raise ValueError(f"{of}`warmup_steps` is {recipe.warmup_steps}; it takes whole numbers from 0 on.")
