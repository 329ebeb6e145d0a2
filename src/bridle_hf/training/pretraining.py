"""A whole pretraining run: its recipe, and the call that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Union

import yaml
from huggingface_hub.errors import StrictDataclassError

from ..clip_features_bridle import check_poolings
from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.modalities import MODALITIES, build_processor, check_channels, processor_keys
from ..data.streaming import build_loader
from ..recipe_reader import RecipeError, config_keys, read_recipe
from ..recipes import find_recipe
from .arguments import OptimizationArguments
from .engine import Stop, train
from .evaluating import EvaluateArguments, Evaluation
from .phases import KINDS, LENGTHS, Phase, build_schedule
from .precision import AUTO, settle
from .run import Run, build_accelerator

AnyPhase = Union[tuple(KINDS.values())]  # noqa: UP007 (of a tuple)
# A section for each kind: what its phases have in common.
Sections = make_dataclass("Sections", [(kind, cls, field(default_factory=cls)) for kind, cls in KINDS.items()])


@dataclass(kw_only=True)
class PretrainRecipe(Sections):
    """A whole pretraining run.

    Attributes:
        output_dir: receives checkpoints/, encoder-iterK/, final/, metrics.jsonl and recipe.yaml.
        resume: "auto" goes on from the newest good checkpoint in `output_dir`, "never" starts over; or a checkpoint.
        model: keyword arguments of `BridleConfig`.
        processor: settings of the modality's processor, such as `BridleFeatureExtractor`; its sizes follow
            `model.input_size`.
        evaluate: what to measure of the encoder while it trains; None for nothing. In a recipe file a section without
            a `dataset` is laid over `data`.
        phases: the schedule, in order. In a recipe file an entry is laid over the section of its kind: `encoder`,
            `tokenizer`, `joint`.
    """

    output_dir: str
    data: DataArguments
    seed: int = 0
    resume: str = "auto"
    model: dict = field(default_factory=dict, metadata={"keys": lambda _: config_keys(BridleConfig)})
    processor: dict = field(default_factory=dict, metadata={"keys": processor_keys})
    training: OptimizationArguments = field(default_factory=OptimizationArguments)
    evaluate: EvaluateArguments | None = None
    phases: list[AnyPhase] = field(default_factory=list)

    def __post_init__(self):
        if not self.phases:
            raise ValueError("`phases` is empty; it takes a list such as [{kind: encoder}, {kind: tokenizer}].")
        if self.seed < 0:
            raise ValueError(f"`seed` is {self.seed}; it takes a whole number of at least 0.")
        config = self.config()
        check_channels(config)
        if self.evaluate is not None:
            try:
                check_poolings(config, [self.evaluate.pooling])
            except ValueError as error:
                raise ValueError(f"`evaluate`: {error}") from error
        self.build_tasks()  # their lengths

    @staticmethod
    def prepare(values: dict) -> dict:
        """Lays each entry of `phases` over the section of its kind, and `evaluate` over `data`. Sections of phases come
        first, to be checked first."""
        sections = {kind: values[kind] for kind in KINDS if kind in values}
        entries = values.get("phases")
        if isinstance(entries, list):
            entries = [_laid_over(sections, entry) for entry in entries]
            values = values | {"phases": entries}
        evaluate, data = values.get("evaluate"), values.get("data")
        if isinstance(evaluate, dict) and isinstance(data, dict) and not evaluate.get("dataset"):
            values = values | {"evaluate": data | evaluate}
        return sections | values

    def config(self) -> BridleConfig:
        """The model's config; the values are checked by `BridleConfig` itself."""
        try:
            attention = None if self.training.attention == AUTO else self.training.attention
            return BridleConfig(**self.model, attn_implementation=attention)
        except (StrictDataclassError, AttributeError, TypeError) as error:  # the latter from transformers' own keys
            raise ValueError(f"`model`: {error.__cause__ or error}") from error

    def build_processor(self):
        """The processor, of the model's input size unless `processor` says otherwise."""
        return build_processor(self.config(), **self.processor)

    def build_tasks(self, num_processes: int = 1) -> list[Phase]:
        """The phases with their lengths in steps. See `build_schedule`."""
        return build_schedule(self, num_processes)

    def open_data(self) -> DataArguments:
        """The data; a dataset named `synthetic` is written to `output_dir`/synthetic first, by one of the processes."""
        return self.written(self.data)

    def written(self, data: DataArguments) -> DataArguments:
        """The arguments of a set that is there: `synthetic` is written first, see `open_data`."""
        if data.dataset != "synthetic":
            return data
        folder = MODALITIES[self.config().modality].write_demo_set(Path(self.output_dir) / "synthetic")
        return replace(data, dataset=str(folder))


def _laid_over(sections: dict, entry: Any) -> Any:
    """An entry of `phases` with what it leaves out from the section of its kind."""
    section = sections.get(entry.get("kind", "encoder")) if isinstance(entry, dict) else None
    if not isinstance(section, dict):
        return entry
    said = {key for group in LENGTHS if any(key in entry for key in group) for key in group}
    return {key: value for key, value in section.items() if key not in said} | entry


def load_recipe(path: str | Path, overrides: Sequence[str] = (), cls: type = PretrainRecipe) -> Any:
    """Reads a recipe of pretraining, or of another `cls`, by its path or by its name in the package (`audio/demo`). So
    can the `base` of a recipe be named. See `read_recipe`."""
    return read_recipe(cls, path, overrides, find_recipe)


def _begun_with(recipe: PretrainRecipe) -> dict:
    """The `training` section of the run that the recipe goes on from; {} where it begins."""
    if recipe.resume == "never":
        return {}
    folders = [Path(recipe.output_dir)] + ([] if recipe.resume == "auto" else [Path(recipe.resume)])
    written = next((path for folder in folders if (path := folder / "recipe.yaml").is_file()), None)
    if written is None:
        return {}
    try:
        return yaml.safe_load(written.read_text()).get("training", {})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise RecipeError(
            f"{written} is no recipe, so nothing tells how its run was begun; give resume=never or another output_dir."
        ) from error


def pretrain(recipe: PretrainRecipe, dataset=None, *, evaluate_dataset=None, stop: Stop | None = None) -> bool:
    """Runs a recipe's phases and writes checkpoints/, encoder-iterK/, final/ and metrics.jsonl to its `output_dir`.

    Args:
        recipe: what to do.
        dataset: a dataset in hand instead of `recipe.data.dataset`, in every process the same: a `datasets.Dataset` or
            `IterableDataset`, a dictionary of them by split, or a list of arrays; see `data.in_hand.take_in_hand`.
        evaluate_dataset: likewise, instead of `recipe.evaluate.dataset`; where neither is given it is `dataset`.
        stop: entered while steps are taken. Once the function that it gives returns True, in any process, the run ends
            after the step at hand and a checkpoint. The commands pass one that listens to SIGTERM and SIGINT.

    Returns:
        True when the run is finished, False when it was stopped.

    Raises:
        FloatingPointError: batch, loss or gradient held NaN or inf; `output_dir`/failure/ holds the step.
        RuntimeError: another process ended or hangs.
        UnusableDataError: too many samples cannot be used, or there is none.
        EvaluationError: a set that cannot be evaluated on.
        OSError: a checkpoint could not be written; those before it are intact.
        ValueError: a checkpoint that does not fit the recipe, a finished run of another recipe in `output_dir`, or
            processes that do not know of each other.
    """
    folder, settings = Path(recipe.output_dir), settle(recipe.training, _begun_with(recipe))
    recipe = replace(recipe, training=settings)
    accelerator = build_accelerator(settings, folder)
    processor = recipe.build_processor()

    def open_batches(seed: int, rank: int, num_processes: int):
        return build_loader(
            recipe.open_data(),
            processor,
            dataset,
            batch_size=settings.batch_size,
            seed=seed,
            rank=rank,
            world_size=num_processes,
            deadline=settings.deadline,
        )

    evaluation = None
    if recipe.evaluate is not None:
        if evaluate_dataset is None and not recipe.evaluate.dataset:
            evaluate_dataset = dataset
        evaluation = Evaluation(recipe, accelerator, evaluate_dataset)
    tasks = recipe.build_tasks(accelerator.num_processes)
    run = Run(
        accelerator, folder, tasks, settings, open_batches, recipe, recipe.seed, recipe.resume, evaluation=evaluation
    )
    return train(run, stop)
