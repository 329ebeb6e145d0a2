"""What the steps of a task take: memory, with a warning where it does not suffice, and time."""

import logging
from datetime import datetime, timedelta

import psutil
import torch
from accelerate import Accelerator
from torch.autograd.graph import saved_tensors_hooks

from .arguments import OptimizationArguments
from .task import Batch, Task

logger = logging.getLogger(__name__)

CLIPS = 2  # of the forward pass that is measured
OF_A_WEIGHT = 3 * 4  # bytes of its gradient and of both averages of AdamW
SLACK = 1.3  # over what is kept for the backward pass: what that computes in between
GIB = 2**30
SETTLED = 20  # steps after which their speed is steady


def say_what_it_takes(
    accelerator: Accelerator, task: Task, model: torch.nn.Module, batch: Batch, settings: OptimizationArguments
) -> None:
    """Log the weights of a task and the memory of its steps, in the first process; warn where there is less.

    Args:
        model: with its modes set, on the device.
        batch: of the first forward pass.
        settings: of the run.
    """
    if not accelerator.is_main_process:
        return
    weights = sum(each.numel() for each in model.parameters())
    learn = sum(each.numel() for each in model.parameters() if each.requires_grad)
    said = f"{task.name}: {weights / 1e6:.1f} million weights, {learn / 1e6:.1f} million of them learn"
    few = None
    if accelerator.num_processes == 1 and not settings.compile:  # others share their weights, or fuse their passes
        few = task.few(model, batch, CLIPS)
    if few is None:
        logger.info("%s", said)
        return
    with accelerator.autocast():
        of_a_clip = SLACK * kept_bytes(task, model, few) / CLIPS
    needed, free = OF_A_WEIGHT * learn + of_a_clip * settings.batch_size, free_bytes(accelerator.device)
    logger.info("%s; a step takes about %.1f GB, %.1f GB are free", said, needed / GIB, free / GIB)
    if needed > free:
        fits = max(0, int((0.8 * free - OF_A_WEIGHT * learn) / of_a_clip))
        smaller = f"take training.batch_size={fits}, with more training.gradient_accumulation_steps" if fits else ""
        logger.warning(
            "%s: a step of %d clips takes about %.1f GB, more than the %.1f GB that are free, and the run may be "
            "killed: %s", task.name, settings.batch_size, needed / GIB, free / GIB,
            " or ".join(filter(None, [smaller, "a smaller model, such as that of the recipes own_small"])),
        )  # fmt: skip


class Forecast:
    """Logs once, after the first steps of a task, when the task will end and which tasks follow.

    Args:
        tasks: all of the run.
        task: the one that is trained.
        first: steps of it that were done before this start.
    """

    def __init__(self, tasks: list[Task], task: Task, first: int):
        self.tasks, self.task, self.first, self.begun = tasks, task, first, 0.0

    def note(self, done: int, seconds: float) -> None:
        """Call it after every step.

        Args:
            done: steps of the task.
            seconds: that they took since this start. Those of the first step, a slow one, are not counted.
        """
        steps = done - self.first
        if steps == 1:
            self.begun = seconds
        if steps != SETTLED or done == self.task.steps:
            return
        seconds = (seconds - self.begun) / (SETTLED - 1) * (self.task.steps - done)
        end = datetime.now() + timedelta(seconds=seconds)
        left = f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
        left = f"{seconds:.0f} seconds" if seconds < 90 else left
        then = ", ".join(f"{task.name} ({task.steps} steps)" for task in self.tasks[self.task.index + 1 :])
        logger.info(
            "%s ends in about %s, %s%s", self.task.name, left, f"{end:%Y-%m-%d %H:%M}", f"; then {then}" if then else ""
        )


def kept_bytes(task: Task, model: torch.nn.Module, batch: Batch) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights apart."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would form a reference cycle with its graph node, never freed

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = task.forward(model, model, batch, 0)
    found = sum(size for place, size in kept.items() if place not in weights)
    del output  # it kept them until here, each at a place of its own
    return found


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nothing takes yet."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    return psutil.virtual_memory().available
