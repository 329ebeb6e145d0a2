"""Tasks, which the engine trains: a task defines a model, its losses, and what happens besides gradient steps.

The engine (`engine.py`) knows nothing of encoders, tokenizers or tables; a task knows nothing of checkpoints,
logs or failures.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from ..losses_bridle import LossSum
from .arguments import OptimizationArguments
from .optimizers import build_optimizer
from .parameters import parameter_groups
from .seeds import seed_from

# Inputs of one forward pass, on the CPU: tensors, and a `PatchMask` where patches are masked.
Batch = dict[str, Any]
# Where a step is: (seed, task, step, process, micro-batch).
Place = tuple[int, int, int, int, int]


class Batches(Protocol):
    """Endless batches with a position that can be saved."""

    skipped: dict[str, str]  # name -> reason of every sample that could not be used

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]: ...

    def __next__(self) -> dict[str, torch.Tensor]: ...

    def state_dict(self) -> dict:
        """The position, as JSON values."""

    def differs(self, state: dict) -> str:
        """The differences from the batches that `state` was saved of, as text; empty where `state` can be loaded."""

    def load_state_dict(self, state: dict) -> None:
        """Continue from a position."""


class Losses(Protocol):
    """Output of a forward pass: named losses, and anything else that the task reads."""

    losses: Mapping[str, LossSum]


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start`, where progress is 0, to `end`, where it is 1."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * progress))


class Task:
    """Base class of tasks: everything that has a sensible default. A trailing underscore means that a method mutates.

    Attributes:
        name: of the task, in logs and checkpoints.
        index: its number in the run.
        steps: its length in optimizer steps.
    """

    name: str
    index: int = 0
    steps: int | None

    def build(self, weights: dict[str, torch.Tensor] | None, begins: bool) -> torch.nn.Module:
        """The model, on the CPU.

        Args:
            weights: of the last checkpoint; None where the run begins.
            begins: whether the task has taken no step yet.

        Raises:
            RuntimeError: `weights` are of another model.
        """
        raise NotImplementedError

    def set_modes_(self, model: torch.nn.Module) -> None:
        """Training mode and `requires_grad` of each part."""
        model.train()

    def start_(self, model: torch.nn.Module, batches: Iterator[dict], generator: torch.Generator) -> None:
        """Called once, before the first step. `generator` is the same in all processes."""

    def build_optimizer(self, model: torch.nn.Module, settings: OptimizationArguments) -> torch.optim.Optimizer:
        groups = parameter_groups(model, self.learning_rate_at(0), settings.weight_decay)
        return build_optimizer(settings.optimizer, groups, settings.betas)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step after `step` steps are done."""
        raise NotImplementedError

    def draw(self, model: torch.nn.Module, batches: Iterator[dict], place: Place) -> Batch:
        """The inputs of a forward pass. All randomness comes from `place`."""
        return next(batches)

    def few(self, model: torch.nn.Module, batch: Batch, clips: int) -> Batch | None:
        """A copy of the first clips of what `draw` gave, without padding, which the memory of a step is estimated from;
        None where these are not known."""
        return None

    def seed(self, place: Place) -> int:
        """Seed of the global random generators before a forward pass."""
        return seed_from(*place)

    def objective(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """The named losses that a step minimises, and their weights."""
        raise NotImplementedError

    def counts(self, model: torch.nn.Module, batch: Batch) -> dict[str, float]:
        """How many items each weighted loss of a batch goes over; equal to the counts that `forward` returns.

        They are needed before the first forward pass of a step, since losses are divided by those of all passes.
        """
        raise NotImplementedError

    def forward(self, model: torch.nn.Module, bare: torch.nn.Module, batch: Batch, step: int) -> Losses:
        """A forward pass. `model` is `bare` as prepared for several processes and mixed precision."""
        return model(**batch)

    def statistics(self, output: Losses) -> dict[str, torch.Tensor] | None:
        """The argument of `update_`, summed over the micro-batches of a step; None for tasks without it."""
        return None

    def update_(self, model: torch.nn.Module, statistics: dict[str, torch.Tensor]) -> None:
        """Update what has no gradients, such as moving averages of codes. Called before the optimizer's step."""

    def after_step_(
        self, model: torch.nn.Module, batches: list[Batch], step: int, generator: torch.Generator
    ) -> dict[str, float]:
        """Called after an optimizer step; its result is logged. `generator` is the same in all processes."""
        return {}

    def measure(self, model: torch.nn.Module, output: Losses, batch: Batch, accelerator: Accelerator) -> dict[str, Any]:
        """Metrics of a forward pass to log besides its losses. Every process calls it."""
        return {}

    def remarks(self, model: torch.nn.Module, record: Mapping[str, Any]) -> dict[str, str]:
        """Warnings about a record from the second half of the task, subject -> warning; each subject is logged once."""
        return {}

    def export(self, model: torch.nn.Module, folder: Path, accelerator: Accelerator, minutes: float) -> None:
        """Write the results of the finished task, trained for `minutes`. Every process calls it."""
        raise NotImplementedError

    def is_exported(self, folder: Path) -> bool:
        """Whether `export` was done."""
        raise NotImplementedError
