"""Settings of optimization, shared by pretraining and the quantizer experiments."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..hub_connection import check_repo_id
from .tracking import check_tracker


@dataclass
class OptimizationArguments:
    """How steps are taken, the same for all tasks of a run.

    Attributes:
        batch_size: clips a process takes in one forward pass.
        gradient_accumulation_steps: forward passes of one optimizer step.
        masks_per_sample: masks drawn for a clip; they share one tokenization.
        max_steps_per_phase: no phase is longer than this (smoke tests); also the length of a phase that has none.
        examples_per_epoch: clips of one epoch over all processes, needed where a phase counts in epochs.
        mixed_precision: "no", "bf16" or "fp16"; "auto" is bf16 where the processor multiplies it faster than
            float32. The quantizer computes in float32 in any case.
        optimizer: "adamw", or "muon": Muon for weight matrices of hidden layers, AdamW for all other parameters.
        weight_decay: of both.
        betas: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; null never clips.
        skip_bad_steps: how many steps with NaN or inf in batch, loss or gradient a run may leave out; the next one
            stops it.
        logging_steps: a record is written for the first, every so many and the last step of a phase.
        checkpoint_steps, keep_checkpoints: how often a checkpoint is written, and how many of the newest are kept.
        attention: "eager", "sdpa" or another attention implementation of transformers; null leaves the choice to it,
            "auto" is the faster of the two.
        gradient_checkpointing: compute activations a second time instead of keeping them.
        compile: compile the model with torch.compile.
        deadline: seconds that a process waits for the others before it gives up.
        tracker: an Accelerate tracker beside metrics.jsonl, such as "tensorboard" or "wandb"; null for none.
        tracker_project: its project (Weights & Biases, Trackio) or experiment (MLflow); the run in it has the name of
            its folder.
        hub_repo_id: a repository of the Hub that gets the newest checkpoint, the metrics and what is exported, while
            the run goes on; null for none.
        hub_private: whether it is made private.
    """

    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    masks_per_sample: int = 1
    max_steps_per_phase: int | None = None
    examples_per_epoch: int | None = None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    optimizer: Literal["adamw", "muon"] = "adamw"
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
    tracker_project: str = "bridle"
    hub_repo_id: str | None = None
    hub_private: bool = True

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
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` is {list(self.betas)}; it takes two numbers of at least 0, below 1.")
        check_optimizer(self, "weight_decay", "max_grad_norm")
        if self.hub_repo_id is not None:
            check_repo_id(self.hub_repo_id, "training.hub_repo_id")
        check_tracker(self.tracker)


def check_optimizer(settings: Any, *names: str) -> None:
    """Raise a `ValueError` for a setting of the optimizer that is negative, NaN or inf; None is left to others."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"`{name}` is {value}; it takes a number of at least 0.")
        if name == "max_grad_norm" and value == 0:
            raise ValueError(f"`{name}` is {value}; it takes a number above 0, or null not to clip gradients.")


def _at_least_one(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{key}` is {value}; it takes a whole number of at least 1.")
