"""The phases of pretraining. A phase says what trains, what is frozen, which losses it minimises, and what happens
first and after a step.

The paper's two iterations are three phases:

    encoder-iter1    the encoder learns to predict the codes of a frozen random projection (the cold start)
    tokenizer-iter2  a new tokenizer learns to express what the encoder knows; the encoder is frozen and sees everything
    encoder-iter2    the encoder, kept, learns to predict the new codes with a fresh decoder head

Every phase starts from the weights of its predecessor, except for the parts that it `redraws`.

A new kind of phase is a class here, with its own settings, in `KINDS`; and its losses in `modeling_bridle.py`, where
those there do not do.
"""

import logging
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator

from ..codebook_training_bridle import reset_dead_codes_
from ..files import set_aside
from ..losses_bridle import phase_weights
from ..modeling_bridle import BridleForPreTraining
from ..recipe_reader import RecipeError
from ..saved_models import is_whole
from .checkpoints import folder_written_beside
from .codebooks import residual_energy
from .metrics import code_usage, stage_predictions
from .remarks import codebook_remarks, feature_remarks, prediction_remarks
from .seeds import seed_from
from .starting import start_model
from .task import Task, cosine

logger = logging.getLogger(__name__)

PARTS = ("bridle", "decoder", "tokenizer")


@dataclass(kw_only=True)
class Phase(Task):
    """What all kinds of phase have in common.

    Attributes:
        steps, epochs: length in optimizer steps, or in passes over `training.examples_per_epoch`. `steps` wins.
        learning_rate: peak of the cosine schedule.
        min_learning_rate: where the cosine ends.
        warmup_steps, warmup_epochs: linear warm-up; a tenth of the phase when both are left out. `warmup_steps` wins.

    Raises:
        ValueError: a value outside its range.
    """

    kind: str
    steps: int | None = None
    epochs: float | None = None
    learning_rate: float = 5e-4
    min_learning_rate: float = 0.0
    warmup_steps: int | None = None
    warmup_epochs: float | None = None

    trains: ClassVar[tuple[str, ...]]
    redraws: ClassVar[tuple[str, ...]] = ()
    # Set by `build_schedule`.
    index: ClassVar[int] = 0
    iteration: ClassVar[int] = 1
    is_last: ClassVar[bool] = False

    def __post_init__(self):
        self.check_range("steps", 1)
        for name in ("learning_rate", "min_learning_rate", "warmup_steps", "warmup_epochs"):
            self.check_range(name, 0)
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"`epochs` is {self.epochs}; it takes a number above 0.")

        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"`min_learning_rate` is {self.min_learning_rate}; it takes no more than `learning_rate`, "
                f"{self.learning_rate}."
            )

    def check_range(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not least <= value < float("inf"):
            raise ValueError(f"`{name}` is {value}; it takes a number of at least {least}.")

    @property
    def name(self) -> str:
        return f"{self.kind}-iter{self.iteration}"

    def learning_rate_at(self, step):
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return cosine(self.learning_rate, self.min_learning_rate, progress)

    # -- the model ----------------------------------------------------------------------------------------------------
    def build(self, weights, begins):
        config, recipe = self.recipe.config(), self.recipe
        if weights is None:
            if recipe.start_from is not None:
                return start_model(config, recipe.start_from, recipe.start_tokenizer)
            return BridleForPreTraining(config)
        # Another kind of phase may have had parts of its own.
        weights = {name: value for name, value in weights.items() if name.split(".")[0] in PARTS}
        config.cold_start = any(name.startswith("tokenizer.cold_start.") for name in weights)
        model = BridleForPreTraining(config)
        if begins:
            fresh = model.state_dict()
            weights |= {name: fresh[name] for name in fresh if name.split(".")[0] in self.redraws}
        model.load_state_dict(weights)
        return model

    def set_modes_(self, model):
        """Frozen parts neither learn nor drop anything out; what trains is in training mode."""
        for part in PARTS:
            trains = part in self.trains
            getattr(model, part).train(trains).requires_grad_(trains)

    def initialize_codebooks_(self, model, batches, generator):
        model.initialize_codebooks(batches, generator, self.recipe.training.gradient_accumulation_steps)

    # -- a step -------------------------------------------------------------------------------------------------------
    def losses_at(self, step: int) -> str:
        """The `phase` argument of `BridleForPreTraining.forward`."""
        return self.kind

    def objective(self, model, step):
        return phase_weights(model.config, self.losses_at(step))

    def draw(self, model, batches, place):
        batch, patches, name = next(batches), model.bridle.patch_layer, model.main_input_name
        values, attention_mask = batch[name], batch.get("attention_mask")
        valid = None
        if attention_mask is not None and not attention_mask.all():
            values, valid = patches.mask_padding(values, attention_mask)
        drawn = {name: values} if valid is None else {name: values, "valid": valid}
        if "bridle" in self.trains:
            masks = self.recipe.training.masks_per_sample
            noise = draw_noise(values, masks, prod(patches.grid(values)), seed_from(*place, 1))
            drawn["patch_mask"] = model.bridle.make_patch_mask(values, noise=noise, valid=valid)
        return drawn

    def few(self, model, batch, clips):
        name = model.main_input_name
        return self.draw(model, iter([{name: batch[name][:clips].clone()}]), (0,) * 5)

    def counts(self, model, batch):
        values, valid, mask = batch[model.main_input_name], batch.get("valid"), batch.get("patch_mask")
        patches = prod(model.bridle.patch_layer.grid(values))
        tokens = float(len(values) * patches if valid is None else valid.sum())
        found = {"codebook": tokens, "cosine": tokens}
        if mask is not None:
            predicted = mask.masked.numel() if mask.masked_valid is None else mask.masked_valid.sum()
            found["encoder"] = float(predicted * model.config.quantizer_config.num_codebooks)
        return found

    def forward(self, model, bare, batch, step):
        return model(**batch, phase=self.losses_at(step))

    def statistics(self, output):
        return output.quantizer_stats

    def update_(self, model, statistics):
        model.tokenizer.update_(statistics)

    def after_step_(self, model, batches, step, generator):
        return {"codes_reset": 0}

    def measure(self, model, output, batch, accelerator):
        codebooks = code_usage(output.codes, batch.get("valid"), model.tokenizer.quantizer.codebook_sizes, accelerator)
        if residual := residual_energy(model, output.codes, batch, accelerator):
            codebooks["residual"] = residual
        return {**stage_predictions(output, accelerator), "codebooks": codebooks}

    def remarks(self, model, record):
        if "evaluate" in record:
            return feature_remarks(record)
        sizes, patches = model.config.quantizer_config.codebook_sizes, prod(model.config.grid)
        recipe = self.recipe
        few = codebook_remarks(record, sizes, recipe.training.batch_size * patches, not recipe.start_tokenizer)
        return few | prediction_remarks(record, sizes)

    # -- the end ------------------------------------------------------------------------------------------------------
    def export(self, model, folder: Path, accelerator: Accelerator, minutes: float):
        """encoder-iterK/ after a phase that trains the encoder, final/ after the last phase."""
        if type(model) is not BridleForPreTraining:  # with parts of its own
            model = Phase.build(self, model.state_dict(), begins=False)
        targets = {f"encoder-iter{self.iteration}": model.bridle} if "bridle" in self.trains else {}
        targets |= {"final": model} if self.is_last else {}
        processor = self.recipe.build_processor()
        for name, part in targets.items():
            target = folder / name
            if accelerator.is_main_process and target.exists() and not (target / "config.json").is_file():
                logger.warning("%s is not of this run; it was moved to %s", target, set_aside(target))
            with folder_written_beside(target, accelerator) as beside:
                if accelerator.is_main_process:
                    part.save_pretrained(beside)
                    processor.save_pretrained(beside)

    def is_exported(self, folder: Path) -> bool:
        final = folder / "final"
        return final.is_dir() and is_whole(final)


@dataclass(kw_only=True)
class EncoderPhase(Phase):
    """Cross-entropy of the codes of the masked patches (eq. 4). The tokenizer gives the targets and is frozen.

    Attributes:
        from_scratch: draw encoder and decoder anew; otherwise they go on from the phase before.
    """

    kind: Literal["encoder"] = "encoder"
    from_scratch: bool = False

    trains = ("bridle", "decoder")

    @property
    def redraws(self):
        return ("bridle", "decoder") if self.from_scratch else ()

    def start_(self, model, batches, generator):
        if self.iteration > 1:
            model.start_encoder_phase()
        elif model.tokenizer.cold_start is not None:
            self.initialize_codebooks_(model, batches, generator)


@dataclass(kw_only=True)
class TokenizerPhase(Phase):
    """Codebook and cosine loss (eq. 5 and 6). The encoder is the teacher: frozen, in eval mode, without masks.

    Attributes:
        from_encoder: start the tokenizer's transformer as a copy of the encoder; otherwise it is drawn anew, and a
            phase of a few hundred steps is too short for it to learn what the encoder knows.
    """

    kind: Literal["tokenizer"] = "tokenizer"
    learning_rate: float = 2e-4
    from_encoder: bool = False

    trains = ("tokenizer",)

    def start_(self, model, batches, generator):
        model.start_tokenizer_phase(self.from_encoder)
        self.initialize_codebooks_(model, batches, generator)

    def after_step_(self, model, batches, step, generator):
        return {"codes_reset": reset_dead_codes_(model, batches, step, self.steps, generator)}


@dataclass(kw_only=True)
class JointPhase(Phase):
    """Both at once (eq. 8): the encoder loss at every step, the tokenizer loss at every k-th. The teacher of the
    tokenizer is the encoder in eval mode.

    Attributes:
        tokenizer_update_every: k, from 1 on (the paper, section 5: 5 works well for VQ).
    """

    kind: Literal["joint"] = "joint"
    tokenizer_update_every: int = 5

    trains = ("bridle", "decoder", "tokenizer")

    def __post_init__(self):
        super().__post_init__()
        self.check_range("tokenizer_update_every", 1)

    def losses_at(self, step):
        return "joint" if step % self.tokenizer_update_every == 0 else "encoder"

    def start_(self, model, batches, generator):
        if model.tokenizer.cold_start is not None:
            model.tokenizer.reset_()
            self.initialize_codebooks_(model, batches, generator)

    def after_step_(self, model, batches, step, generator):
        if self.losses_at(step) != "joint":
            return super().after_step_(model, batches, step, generator)
        every = self.tokenizer_update_every
        return {"codes_reset": reset_dead_codes_(model, batches, step // every, self.steps // every, generator)}


KINDS = {"encoder": EncoderPhase, "tokenizer": TokenizerPhase, "joint": JointPhase}
# Keys of a phase that stand for each other: what is said of one replaces what was said of all of them.
LENGTHS = (("steps", "epochs"), ("warmup_steps", "warmup_epochs"))


def draw_noise(values: torch.Tensor, masks: int, patches: int, seed: int) -> torch.Tensor:
    """Uniform noise (masks * B, patches), drawn on the CPU so that masks are the same for every kind of device."""
    return torch.rand(masks * len(values), patches, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# The schedule
# ---------------------------------------------------------------------------------------------------------------------
def build_schedule(recipe, num_processes: int = 1) -> list[Phase]:
    """The phases of a `PretrainRecipe` with their places in the run and their lengths in steps.

    Raises:
        RecipeError: a phase without a length, or one in epochs where `training.examples_per_epoch` is not known.
    """
    phases, iteration = [], 0
    for index, phase in enumerate(recipe.phases):
        steps, warmup = _lengths(phase, f"phases.{index}", recipe.training, num_processes)
        phase = replace(phase, steps=steps, warmup_steps=warmup)
        # A tokenizer phase opens the iteration whose encoder phase learns from it.
        phase.recipe, phase.index, phase.iteration = recipe, index, iteration + 1
        iteration += phase.kind != "tokenizer"
        phases.append(phase)
    phases[-1].is_last = True
    return phases


def _lengths(phase: Phase, key: str, training, num_processes: int) -> tuple[int, int]:
    """Steps and warm-up steps of a phase. A phase cut short by `max_steps_per_phase` keeps its share of warm-up."""

    def in_steps(steps: int | None, epochs: float | None) -> int | None:
        if steps is not None or epochs is None:
            return steps
        if training.examples_per_epoch is None:
            raise RecipeError(f"`{key}` counts in epochs; that takes `training.examples_per_epoch`, or give `steps`.")
        batch = training.batch_size * training.gradient_accumulation_steps * num_processes
        return round(epochs * training.examples_per_epoch / batch)

    limit = training.max_steps_per_phase
    steps = in_steps(phase.steps, phase.epochs)
    if steps is None:
        steps = limit
    if steps is None or steps < 1:
        has = "no length" if steps is None else f"{steps} steps"
        raise RecipeError(f"`{key}` has {has}; it takes `steps` or `epochs` that make at least one step.")
    warmup = in_steps(phase.warmup_steps, phase.warmup_epochs)
    if warmup is not None and warmup >= steps:
        logger.warning(
            "`%s`: the warm-up of %d steps leaves none of its %d steps at the full learning rate; lower `%s.warmup_%s`",
            key, warmup, steps, key, "epochs" if phase.warmup_steps is None else "steps",
        )  # fmt: skip
    warmup = steps // 10 if warmup is None else min(warmup, steps)
    if limit is not None and steps > limit:
        steps, warmup = limit, warmup * limit // steps
    return steps, warmup
