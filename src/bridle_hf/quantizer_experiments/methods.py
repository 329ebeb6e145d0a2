"""A table of quantizers: the rows of a recipe, run one after the other."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_model

from ..configuration_bridle import BridleQuantizerConfig
from ..data.source import keeps
from ..files import write_whole
from ..recipe_reader import RecipeError, changed_keys, config_keys
from .loop import train

logger = logging.getLogger(__name__)


@dataclass
class DatasetArguments:
    """Where the clips come from.

    Attributes:
        dataset: folder or Hub id; name: its configuration; column: the one that holds the clips.
        train_split, test_split: splits, or parts of them such as "train[:80%]".
        exclude: column -> values; examples that hold one of them are left out, as in `data.DataArguments`.
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
    """The clips of a split that `data.exclude` keeps.

    Raises:
        ValueError: `data.column` or a column of `data.exclude` is not among its columns.
    """
    clips = datasets.load_dataset(data.dataset, data.name, split=data.train_split if train else data.test_split)
    if data.column not in clips.column_names:
        raise ValueError(f"data.column is {data.column!r}; {data.dataset} has {', '.join(clips.column_names)}.")
    for column in data.exclude:
        if column not in clips.column_names:
            raise ValueError(f"data.exclude names {column!r}; {data.dataset} has {', '.join(clips.column_names)}.")
    if data.exclude:
        columns = clips.select_columns(list(data.exclude))
        clips = clips.select([row for row, values in enumerate(columns) if keeps(data.exclude, values)])
    return clips.select_columns([data.column])


@dataclass(kw_only=True)
class TableRecipe:
    """One model a method, all else equal. An experiment says what the model is, what it learns and what is measured.

    Attributes:
        data: where the clips come from.
        quantizer: fields of `BridleQuantizerConfig` that all methods share.
        methods: the rows of the table.
        batch_size: of a process; K of the KNN regularisers is per process too.
        learning_rate: falls as a cosine to `final_share` of itself.
        max_grad_norm: gradients are cut to this length; None leaves them.
        checkpoint_steps: steps between checkpoints of a method that is not finished.
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
    mixed_precision: Literal["no", "bf16"] = "no"

    def __post_init__(self):
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`methods` is {names}; it takes at least one, each with a name of its own.")
        for method in self.methods:
            method.config(self.quantizer)
        for name in ("steps", "batch_size", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes whole numbers from 1 on.")

    def describe(self, method: Method) -> dict:
        """All that a method's results depend on, as plain values."""
        values = asdict(self) | {"methods": [asdict(method)]}
        del values["output_dir"], values["checkpoint_steps"], values["data"]["num_workers"]
        return json.loads(json.dumps(values))  # lists for tuples, as it will be read back

    def build(self, method: Method) -> torch.nn.Module:
        """The model of a method, drawn from the seed."""
        raise NotImplementedError

    def quantizer_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """Our quantizer inside a model of `build`."""
        raise NotImplementedError

    def vectors(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        """What the quantizer of a model receives for a batch: (..., d)."""
        raise NotImplementedError

    def loss(self, model: torch.nn.Module, bare: torch.nn.Module, batch: dict):
        """The loss of a batch, (), and the `QuantizerOutput`. `model` is `bare`, or wraps it for several processes."""
        raise NotImplementedError

    def open_clips(self, train: bool):
        """The `datasets.Dataset` of a split."""
        raise NotImplementedError

    def collate(self, examples: list[dict], seed: int, train: bool) -> dict[str, torch.Tensor]:
        """Examples of `open_clips` as a batch; what is random in it follows from the seed."""
        raise NotImplementedError

    def measure(self, model: torch.nn.Module, device: torch.device, folder: Path) -> dict:
        """What the results of a trained model hold: "code_use" and "perplexity" a codebook, and more. Pictures go to
        the folder."""
        raise NotImplementedError

    def columns(self, results: dict) -> dict[str, str]:
        """What a line of the table says beside how the codes are used."""
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
    """Trains and measures every method that has no results yet, one after the other.

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
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        cpu=not torch.accelerator.is_available(),
        # Buffers are codebooks, which update_ keeps equal. A layer that is dropped at random has no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)],
    )
    found = []
    for method in recipe.methods:
        folder = Path(recipe.output_dir) / method.name
        if (names is None or method.name in names) and not (folder / "results.json").is_file():
            run_method(recipe, method, folder, accelerator)
        if (folder / "results.json").is_file():
            found.append(json.loads((folder / "results.json").read_text()))
            if changed := changed_keys(found[-1]["recipe"], recipe.describe(method)):
                logger.warning("the results of %s are of another recipe: %s", method.name, ", ".join(changed))
    return found


def run_method(recipe: TableRecipe, method: Method, folder: Path, accelerator: Accelerator) -> None:
    checkpoints = folder / "checkpoints"
    model, minutes = train(recipe, method, checkpoints, accelerator)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        results = {"method": method.name, **recipe.measure(model, accelerator.device, folder)}
        results |= {"minutes": minutes, "recipe": recipe.describe(method)}
        save_model(model, folder / "model.safetensors")
        write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
        shutil.rmtree(checkpoints, ignore_errors=True)
        logger.info("%s took %.1f minutes", method.name, minutes)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
