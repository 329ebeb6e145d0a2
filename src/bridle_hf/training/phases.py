"""The schedule. A phase says what trains, what is frozen, which loss it takes, what happens first, and when it ends.

The paper's two iterations are three phases:

    encoder-iter1    the encoder learns to predict the codes of a frozen random projection (the cold start)
    tokenizer-iter2  a new tokenizer learns to express what the encoder knows; the encoder is frozen and sees everything
    encoder-iter2    the encoder, kept, learns to predict the new codes with a fresh decoder head

Every phase starts from the weights its predecessor left, but for the parts it `redraws`: those are a new model's.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch.distributed.fsdp import FSDPModule

from ..codebook_bridle import all_reduce_sum_
from ..modeling_bridle import evaluating
from .arguments import PhaseArguments, PhaseEntry, PretrainRecipe

PARTS = ("bridle", "decoder", "tokenizer")
EMPTY_BATCHES = 100  # without a token, after which the search for some ends
LEARNING_RATE = {"encoder": 5e-4, "tokenizer": 2e-4, "joint": 5e-4}


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start`, where progress is 0, to `end`, where it is 1."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * progress))


@dataclass(frozen=True)
class Phase:
    """What all phases have in common: a place in the schedule, a length, a cosine learning rate with linear warm-up."""

    index: int
    iteration: int
    steps: int
    warmup_steps: int
    learning_rate: float
    min_learning_rate: float
    redraws: tuple[str, ...] = ()
    from_encoder: bool = False
    tokenizer_update_every: int = 1

    kind: ClassVar[str]
    trains: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        return f"{self.kind}-iter{self.iteration}"

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step after `step` steps are done."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return cosine(self.learning_rate, self.min_learning_rate, progress)

    def loss_at(self, step: int) -> str:
        """The `phase` argument of `BridleForPreTraining.forward`."""
        return self.kind

    @classmethod
    def set_modes_(cls, model: torch.nn.Module) -> None:
        """Frozen parts neither learn nor drop anything out; what trains is in training mode."""
        for part in PARTS:
            trains = part in cls.trains
            getattr(model, part).train(trains).requires_grad_(trains)

    def start_(self, model: torch.nn.Module, batches: Iterator[dict], generator: torch.Generator) -> None:
        """What happens once, before the first step."""

    def after_step_(self, model: torch.nn.Module, batches: list[dict], step: int, generator: torch.Generator) -> int:
        """What happens after a step's codebook update. Returns the number of codes that were replaced."""
        return 0


class EncoderPhase(Phase):
    """Cross-entropy of the codes of the masked patches. The tokenizer gives the targets and is frozen."""

    kind = "encoder"
    trains = ("bridle", "decoder")

    def start_(self, model, batches, generator):
        if self.iteration > 1:
            model.decoder.reset_head_()
        elif model.config.cold_start:
            initialize_codebooks_(model, batches, generator)


class TokenizerPhase(Phase):
    """Codebook and cosine loss. The encoder is the teacher: frozen, in eval mode, without masks."""

    kind = "tokenizer"
    trains = ("tokenizer",)

    def start_(self, model, batches, generator):
        model.tokenizer.reset_()
        if self.from_encoder:
            model.tokenizer.encoder.load_state_dict(model.bridle.state_dict())
        initialize_codebooks_(model, batches, generator)

    def after_step_(self, model, batches, step, generator):
        return reset_dead_codes_(model, batches, step, self.steps, generator)


class JointPhase(Phase):
    """Both at once (eq. 8): the encoder loss at every step, the tokenizer loss at every k-th."""

    kind = "joint"
    trains = ("bridle", "decoder", "tokenizer")

    def loss_at(self, step):
        return "joint" if step % self.tokenizer_update_every == 0 else "encoder"

    def start_(self, model, batches, generator):
        if model.config.cold_start:
            model.tokenizer.reset_()
            initialize_codebooks_(model, batches, generator)

    def after_step_(self, model, batches, step, generator):
        if self.loss_at(step) != "joint":
            return 0
        updates = step // self.tokenizer_update_every
        return reset_dead_codes_(model, batches, updates, self.steps // self.tokenizer_update_every, generator)


KINDS = {phase.kind: phase for phase in (EncoderPhase, TokenizerPhase, JointPhase)}


def initialize_codebooks_(model: torch.nn.Module, batches: Iterator[dict], generator: torch.Generator) -> None:
    """Starts the tokenizer's codebooks from the tokens of the first batches."""
    start_codebooks_(model.tokenizer.quantizer, (project(model, batch) for batch in batches), generator)


@torch.no_grad()
def start_codebooks_(quantizer: torch.nn.Module, vectors: Iterator[torch.Tensor], generator: torch.Generator) -> None:
    """k-means (or what `codebook_init` says) on the first of `vectors`, (..., d) each: as many over all processes as
    the quantizer asks for. Learned codebooks ask for none and take none.

    Raises:
        ValueError: batch after batch of all processes is nothing but padding.
    """
    tokens, found, empty = [], 0, 0
    while found < quantizer.init_sample_size:
        tokens.append(next(vectors).flatten(0, -2))
        more = int(all_reduce_sum_(torch.tensor(len(tokens[-1]), device=tokens[-1].device)))
        found, empty = found + more, 0 if more else empty + 1
        if empty == EMPTY_BATCHES:
            raise ValueError(f"{EMPTY_BATCHES} batches in a row hold nothing but padding: no token for the codebooks.")
    if tokens:
        quantizer.initialize_(torch.cat(tokens), generator=generator)


def reset_dead_codes_(model, batches: list[dict], step: int, steps: int, generator: torch.Generator) -> int:
    """Moves codes that are hardly used to tokens of this step, when `quantizer_config.reset` says so.

    Periodic resets end half-way, so that the codes the encoder is to predict have settled by the end of the phase.
    """
    config = model.config.quantizer_config
    due = {
        "never": False,
        "first_batch": step == 0,
        "periodic": (step + 1) % config.reset_interval == 0 and step < steps // 2,
    }[config.reset]
    if not due:
        return 0
    tokens = torch.cat([project(model, batch) for batch in batches])
    tokens = tokens[torch.isfinite(tokens).all(-1)]  # what is not finite makes the next step's loss NaN
    return model.tokenizer.quantizer.reset_dead_codes_(tokens, generator=generator)


@torch.no_grad()
def project(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """What the quantizer receives for a batch, without padding: (tokens, d)."""
    device = model.tokenizer.cold_projection.device
    batch = {name: value.to(device) for name, value in batch.items()}
    values, attention_mask = batch[model.main_input_name], batch.get("attention_mask")
    with gathered(model), evaluating(model.tokenizer):
        tokens = model.tokenizer.project(values, attention_mask)  # (B, N, d)
    valid = valid_patches(model, batch)
    return tokens.flatten(0, 1) if valid is None else tokens[valid]


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Has the parameters at hand that FSDP2 keeps in shards outside the model's forward."""
    sharded = isinstance(model, FSDPModule)
    if sharded:
        model.unshard()
    yield
    if sharded:
        model.reshard()


def valid_patches(model: torch.nn.Module, batch: dict) -> torch.Tensor | None:
    """(B, N) True for patches that are not padding; None where a batch has none."""
    return model.bridle.embeddings.patch_validity(batch[model.main_input_name], batch.get("attention_mask"))


def build_schedule(recipe: PretrainRecipe, num_processes: int = 1) -> list[Phase]:
    """The recipe's phases with their lengths in steps.

    Raises:
        ValueError: a phase without a length, or one in epochs where `training.examples_per_epoch` is not known.
    """
    phases, iteration = [], 0
    for index, entry in enumerate(recipe.phases):
        # A tokenizer phase opens the iteration whose encoder phase learns from it.
        number = iteration + 1
        iteration += entry.kind != "tokenizer"
        settings = _settings(entry, getattr(recipe, entry.kind))
        steps, warmup = _lengths(settings, f"phases.{index}", recipe, num_processes)
        phases.append(
            KINDS[entry.kind](
                index=index,
                iteration=number,
                steps=steps,
                warmup_steps=warmup,
                learning_rate=settings.learning_rate or LEARNING_RATE[entry.kind],
                min_learning_rate=settings.min_learning_rate or 0.0,
                redraws=("bridle", "decoder") if settings.from_scratch else (),
                from_encoder=bool(settings.from_encoder),
                tokenizer_update_every=settings.tokenizer_update_every or 5,
            )
        )
    return phases


def _settings(entry: PhaseEntry, common: PhaseArguments) -> PhaseArguments:
    """The section of a kind with what an entry says laid over it; lengths replace each other whatever their unit."""
    said = {key: value for key, value in asdict(entry).items() if value is not None and key != "kind"}
    merged = asdict(common)
    for one, other in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
        if one in said or other in said:
            merged[one] = merged[other] = None
    return PhaseArguments(**(merged | said))


def _lengths(settings: PhaseArguments, key: str, recipe: PretrainRecipe, num_processes: int) -> tuple[int, int]:
    """Steps and warm-up steps of a phase. A phase cut short by `max_steps_per_phase` keeps its share of warm-up."""
    training = recipe.training

    def in_steps(steps: int | None, epochs: float | None) -> int | None:
        if steps is not None or epochs is None:
            return steps
        if training.examples_per_epoch is None:
            raise ValueError(f"`{key}` counts in epochs; that takes `training.examples_per_epoch`, or give `steps`.")
        batch = training.batch_size * training.gradient_accumulation_steps * num_processes
        return round(epochs * training.examples_per_epoch / batch)

    limit = training.max_steps_per_phase
    steps = in_steps(settings.steps, settings.epochs)
    if steps is None:
        steps = limit
    if steps is None or steps < 1:
        raise ValueError(f"`{key}` is {steps} steps long; it takes `steps` or `epochs` that make at least one step.")
    warmup = in_steps(settings.warmup_steps, settings.warmup_epochs)
    warmup = steps // 10 if warmup is None else min(warmup, steps)
    if limit is not None and steps > limit:
        steps, warmup = limit, warmup * limit // steps
    return steps, warmup
