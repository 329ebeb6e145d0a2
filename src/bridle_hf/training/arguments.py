"""What a recipe may say: the dataclasses of a pretraining run."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import BaseImageProcessor

from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.modalities import MODALITIES, build_processor
from ..recipe_reader import config_keys, read_recipe

Kind = Literal["encoder", "tokenizer", "joint"]


def processor_keys(recipe: dict) -> dict:
    """Names of the settings of a processor: of the modality in a recipe's `model`, or of any where it has none."""
    model = recipe.get("model")
    named = model.get("modality", "audio") if isinstance(model, dict) else None
    classes = [modality.processor for name, modality in MODALITIES.items() if named in (None, name)]
    return {key: None for cls in classes for key in _settings(cls)}


def _settings(processor: type) -> list[str]:
    if issubclass(processor, BaseImageProcessor):
        return list(processor.valid_kwargs.__annotations__)
    parameters = inspect.signature(processor.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


@dataclass
class PhaseArguments:
    """What can be said about a phase. What an entry of `phases` leaves out is taken from the section of its kind.

    Attributes:
        steps, epochs: length in optimizer steps, or in passes over `training.examples_per_epoch`. `steps` wins.
        learning_rate: peak of the cosine schedule (paper, table 5: 5e-4 encoder, 2e-4 tokenizer).
        warmup_steps, warmup_epochs: linear warm-up; a tenth of the phase when both are left out. `warmup_steps` wins.
        min_learning_rate: where the cosine ends.
        from_scratch: encoder phases after the first draw the encoder anew; otherwise it stays warm.
        from_encoder: tokenizer phases start the tokenizer's transformer as a copy of the encoder; otherwise it is drawn
            anew, and a phase of a few hundred steps is too short for it to learn what the encoder knows.
        tokenizer_update_every: joint phases update the tokenizer every so many steps (paper: 5).
    """

    steps: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    min_learning_rate: float | None = None
    from_scratch: bool | None = None
    from_encoder: bool | None = None
    tokenizer_update_every: int | None = None


@dataclass
class PhaseEntry(PhaseArguments):
    """One entry of `phases`: its kind, and what it says differently from the section of that kind."""

    kind: Kind = "encoder"


@dataclass
class TrainingArguments:
    """How a step is taken; the same for every phase.

    Attributes:
        batch_size: clips a process takes in one forward pass.
        gradient_accumulation_steps: forward passes of one optimizer step.
        masks_per_sample: masks drawn for a clip; they share one tokenization.
        max_steps_per_phase: no phase is longer than this (smoke tests); also the length of a phase that has none.
        examples_per_epoch: clips of one epoch over all processes, needed where a phase counts in epochs.
        mixed_precision: "no", "bf16" or "fp16". The quantizer computes in float32 in any case.
        max_grad_norm: gradients are scaled down to this norm; null never clips.
        skip_bad_steps: how many steps with NaN or inf in batch, loss or gradient a run may leave out; the next one
            stops it.
        logging_steps: a record is written for the first, every so many and the last step of a phase.
        checkpoint_steps, keep_checkpoints: how often a checkpoint is written, and how many of the newest are kept.
        attention: "eager", "sdpa" or another attention implementation of transformers; null leaves the choice to it.
            On CPUs in bf16 "eager" trains faster.
        gradient_checkpointing: compute activations a second time instead of keeping them.
        compile: compile the model with torch.compile.
        deadline: seconds that a process waits for the others before it gives up.
        tracker: an Accelerate tracker beside metrics.jsonl, such as "tensorboard"; null for none.
    """

    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    masks_per_sample: int = 1
    max_steps_per_phase: int | None = None
    examples_per_epoch: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float | None = 1.0
    skip_bad_steps: int = 0
    logging_steps: int = 10
    checkpoint_steps: int = 500
    keep_checkpoints: int = 2
    attention: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    deadline: float = 1800.0
    tracker: str | None = "tensorboard"

    def __post_init__(self):
        for name in ("batch_size", "gradient_accumulation_steps", "masks_per_sample", "logging_steps"):
            _at_least_one(name, getattr(self, name))
        for name in ("checkpoint_steps", "keep_checkpoints", "max_steps_per_phase", "examples_per_epoch"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if self.skip_bad_steps < 0:
            raise ValueError(f"`skip_bad_steps` is {self.skip_bad_steps}; it takes a whole number of at least 0.")
        if not 0 < self.deadline < 1e9:
            raise ValueError(f"`deadline` is {self.deadline}; it takes a number of seconds above 0.")


@dataclass
class PretrainRecipe:
    """A whole pretraining run.

    Attributes:
        output_dir: receives checkpoints/, encoder-iterK/, final/, metrics.jsonl and recipe.yaml.
        resume: "auto" goes on from the newest good checkpoint in `output_dir`, "never" starts over; or a checkpoint.
        model: keyword arguments of `BridleConfig`.
        processor: settings of the modality's processor, such as `BridleFeatureExtractor`; its sizes follow
            `model.input_size`.
        phases: the schedule, in order. `encoder`, `tokenizer` and `joint` say what phases of a kind have in common.
    """

    output_dir: str
    data: DataArguments
    seed: int = 0
    resume: str = "auto"
    model: dict = field(default_factory=dict, metadata={"keys": lambda _: config_keys(BridleConfig)})
    processor: dict = field(default_factory=dict, metadata={"keys": processor_keys})
    training: TrainingArguments = field(default_factory=TrainingArguments)
    phases: list[PhaseEntry] = field(default_factory=list)
    encoder: PhaseArguments = field(default_factory=PhaseArguments)
    tokenizer: PhaseArguments = field(default_factory=PhaseArguments)
    joint: PhaseArguments = field(default_factory=PhaseArguments)

    def __post_init__(self):
        if not self.phases:
            raise ValueError("`phases` is empty; it takes a list such as [{kind: encoder}, {kind: tokenizer}].")
        if self.seed < 0:
            raise ValueError(f"`seed` is {self.seed}; it takes a whole number of at least 0.")
        self.config()

    def config(self) -> BridleConfig:
        """The model's config; the values are checked by `BridleConfig` itself."""
        try:
            return BridleConfig(**self.model, attn_implementation=self.training.attention)
        except (StrictDataclassError, AttributeError, TypeError) as error:  # the latter from transformers' own keys
            raise ValueError(f"`model`: {error.__cause__ or error}") from error

    def build_processor(self):
        """The front-end, of the model's input size unless `processor` says otherwise."""
        return build_processor(self.config(), **self.processor)

    def open_data(self) -> DataArguments:
        """The data; a dataset named `synthetic` is written to `output_dir`/synthetic first, by one of the processes."""
        if self.data.dataset != "synthetic":
            return self.data
        folder = MODALITIES[self.config().modality].write_demo_set(Path(self.output_dir) / "synthetic")
        return replace(self.data, dataset=str(folder))


def load_recipe(path: str | Path, overrides: Sequence[str] = (), cls: type = PretrainRecipe) -> Any:
    """Reads a recipe of pretraining, or of another `cls`. See `read_recipe`."""
    return read_recipe(cls, path, overrides)


def _at_least_one(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{key}` is {value}; it takes a whole number of at least 1.")
