"""A whole pretraining run: its recipe, and the call that runs it."""

import os
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Union

import yaml
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError

from ..clip_features_bridle import check_poolings
from ..configuration_bridle import BridleConfig
from ..data.arguments import AUTO, DataArguments
from ..data.modalities import MODALITIES, build_processor, check_channels, check_window, processor_keys
from ..data.streaming import build_loader
from ..files import final_of
from ..recipe_reader import Overrides, RecipeError, config_keys, read_recipe
from ..recipes import find_recipe
from .arguments import OptimizationArguments
from .auto import STATISTICS, check_statistics, measure_statistics, settle
from .engine import Stop, train
from .evaluating import EvaluateArguments, Evaluation, of_section
from .phases import KINDS, LENGTHS, Phase, build_schedule
from .run import Run, build_accelerator
from .starting import check_start, config_of

AnyPhase = Union[tuple(KINDS.values())]  # noqa: UP007 (of a tuple)
# A section for each kind: what its phases have in common.
Sections = make_dataclass("Sections", [(kind, cls, field(default_factory=cls)) for kind, cls in KINDS.items()])


@dataclass(kw_only=True)
class PretrainRecipe(Sections):
    """A whole pretraining run.

    Attributes:
        output_dir: receives checkpoints/, encoder-iterK/, final/, metrics.jsonl and recipe.yaml.
        resume: "auto" goes on from the newest good checkpoint in `output_dir`, "never" starts over; or a checkpoint.
        start_from: folder or Hub id of a model whose encoder the run begins with; `model` says what is not as there.
        start_tokenizer: take its trained tokenizer and its decoder as well: the first encoder phase learns from them.
        model: keyword arguments of `BridleConfig`.
        processor: settings of the modality's processor, such as `BridleFeatureExtractor`; its sizes follow
            `model.input_size`. "auto" for `mean` and `std` of sounds, or for `image_mean` and
            `image_std`: measured before the run begins.
        evaluate: what to measure of the encoder while it trains; None for nothing. In a recipe file a section without
            a `dataset` is laid over `data`.
        phases: the schedule, in order. In a recipe file an entry is laid over the section of its kind: `encoder`,
            `tokenizer`, `joint`.
    """

    output_dir: str
    data: DataArguments
    seed: int = 0
    resume: str = "auto"
    start_from: str | None = None
    start_tokenizer: bool = False
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
        self.start_from = self.start_from and final_of(self.start_from)
        if self.start_tokenizer and self.start_from is None:
            raise ValueError("`start_tokenizer` is true; it takes a model in `start_from`.")
        if self.start_from is not None and getattr(self.phases[0], "from_scratch", False):
            raise ValueError(f"`phases.0.from_scratch` is true; with `start_from` ({self.start_from}) it takes false.")
        config = self.config()
        check_channels(config)
        check_window(self.data, config)
        if self.start_from is not None:
            check_start(config, self.start_from, self.start_tokenizer)
        check_statistics(self.processor)
        if self.evaluate is not None:
            try:
                check_window(self.evaluate, config)
                check_poolings(config, [self.evaluate.pooling])
            except ValueError as error:
                raise ValueError(f"`evaluate`: {of_section(str(error))}") from error
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
            model = self.model
            if self.start_from is not None:
                found = config_of(self.start_from, self.start_tokenizer)
                here, there = model.get("modality", found["modality"]), found["modality"]
                if here != there:
                    raise ValueError(
                        f"`start_from` is {self.start_from!r}, a model of {there}; the recipe is of {here}."
                    )
                quantizer = found["quantizer_config"] | (model.get("quantizer_config") or {})
                model = found | model | {"quantizer_config": quantizer}
            return BridleConfig(**model | {"attn_implementation": attention})
        except (StrictDataclassError, AttributeError, TypeError) as error:  # the latter from transformers' own keys
            raise ValueError(f"`model`: {error.__cause__ or error}") from error

    def build_processor(self):
        """The processor, of the model's input size unless `processor` says otherwise; without what is still `auto`."""
        return build_processor(self.config(), **{key: v for key, v in self.processor.items() if v != AUTO})

    def measured(self, dataset=None, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
        """`processor` with numbers in the place of `auto`: those of an earlier run, or measured now.

        Args:
            dataset: in hand instead of `data.dataset`, see `pretrain`.
            earlier: the `processor` of the run that this one goes on from.
        """
        if AUTO not in self.processor.values():
            return self.processor
        found = {key: earlier[key] for key in STATISTICS if key in (earlier or {})}
        if not found:
            config, settings = self.config(), {key: v for key, v in self.processor.items() if v != AUTO}
            processor = build_processor(config, **settings | MODALITIES[config.modality].unnormalised)
            found = measure_statistics(self.open_data(), processor, dataset, self.seed)
        return self.processor | found

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


def load_recipe(path: str | Path, overrides: Overrides = (), cls: type = PretrainRecipe) -> Any:
    """Reads a recipe of pretraining, or of another `cls`, by its path or by its name in the package (`audio/demo`). So
    can the `base` of a recipe be named. See `read_recipe`."""
    return read_recipe(cls, path, overrides, find_recipe)


def _begun_with(recipe: PretrainRecipe) -> dict:
    """What the recipe.yaml of the run says that the recipe goes on from; {} where it begins."""
    if recipe.resume == "never":
        return {}
    folders = [Path(recipe.output_dir)] + ([] if recipe.resume == "auto" else [Path(recipe.resume)])
    written = next((path for folder in folders if (path := folder / "recipe.yaml").is_file()), None)
    if written is None:
        return {}
    try:
        return dict(yaml.safe_load(written.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{written} is no recipe, so nothing tells how its run was begun; give resume=never or another output_dir."
        ) from error


def _measured_once(accelerator, recipe: PretrainRecipe, dataset, earlier: dict) -> dict[str, Any]:
    """`recipe.measured`, by the first process for all of them."""
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = recipe.measured(dataset, earlier.get("processor"))
        except (ValueError, OSError, RuntimeError) as error:
            found[1] = error
    broadcast_object_list(found)
    processor, error = found
    if error is not None:
        raise error
    return processor


def pretrain(
    recipe: PretrainRecipe | str | Path, dataset=None, *, evaluate_dataset=None, stop: Stop | None = None, **overrides
) -> Path | None:
    """Runs a recipe's phases and writes checkpoints/, encoder-iterK/, final/ and metrics.jsonl to its `output_dir`.

    ```python
    final = pretrain("audio/own_small", "my_sounds", output_dir="runs/mine", training={"batch_size": 8})
    ```

    Args:
        recipe: what to do: name of a recipe of the package, path of a YAML file, or what `load_recipe` read.
        dataset: what to read instead of `recipe.data.dataset`: a folder or Hub id; or a dataset in hand, in every
            process the same: a `datasets.Dataset` or `IterableDataset`, a dictionary of them by split, or a list of
            arrays or files; see `data.in_hand.take_in_hand`.
        evaluate_dataset: a dataset in hand instead of `recipe.evaluate.dataset`; where neither is given it is
            `dataset`.
        stop: entered while steps are taken. Once the function that it gives returns True, in any process, the run ends
            after the step at hand and a checkpoint. The commands pass one that listens to SIGTERM and SIGINT.
        overrides: keys of a recipe that is named, with their values: `output_dir="runs/mine"`,
            `encoder={"steps": 500}` for some keys of a section, or dotted, `**{"encoder.steps": 500}`.

    Returns:
        The folder `output_dir`/final of the finished run; None when it was stopped.

    Raises:
        RecipeError: no such recipe, an unknown key or a value of another type.
        FloatingPointError: batch, loss or gradient held NaN or inf; `output_dir`/failure/ holds the step.
        RuntimeError: another process ended or hangs.
        UnusableDataError: too many samples cannot be used, or there is none.
        EvaluationError: a set that cannot be evaluated on.
        WriteError: a checkpoint or a record could not be written; the checkpoints before it are intact.
        TypeError: `overrides` of a recipe that has been read.
        ValueError: a checkpoint that does not fit the recipe, a finished run of another recipe in `output_dir`, or
            processes that do not know of each other.
    """
    recipe, dataset = _with_dataset(recipe, dataset, overrides)
    folder, earlier = Path(recipe.output_dir), _begun_with(recipe)
    settings = settle(recipe.training, earlier.get("training", {}))
    accelerator = build_accelerator(settings, folder)
    data = recipe.data
    if data.num_workers == AUTO:
        data = replace(data, num_workers=earlier.get("data", {}).get("num_workers", data.workers))
    processor = _measured_once(accelerator, recipe, dataset, earlier)
    recipe = replace(recipe, training=settings, data=data, processor=processor)
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
    return folder / "final" if train(run, stop) else None


def _with_dataset(recipe: PretrainRecipe | str | Path, dataset: Any, overrides: dict) -> tuple[PretrainRecipe, Any]:
    """The arguments of `pretrain` as a recipe that names the data, or leaves them to the dataset in hand."""
    named = isinstance(dataset, str | os.PathLike)
    if isinstance(recipe, PretrainRecipe):
        if overrides:
            raise TypeError(
                f"pretrain got {', '.join(overrides)} and a recipe that was read; it takes them with the name of a "
                "recipe. Give load_recipe(name, overrides) what is to change."
            )
        if named:
            data, evaluate = replace(recipe.data, dataset=os.fspath(dataset)), recipe.evaluate
            if evaluate is not None and evaluate.dataset == recipe.data.dataset:  # laid over `data` when it was read
                evaluate = replace(evaluate, dataset=data.dataset)
            recipe = replace(recipe, data=data, evaluate=evaluate)
    else:
        if dataset is not None:
            overrides = {"data.dataset": os.fspath(dataset) if named else ""} | overrides
        recipe = load_recipe(recipe, overrides)
    return recipe, None if named else dataset
