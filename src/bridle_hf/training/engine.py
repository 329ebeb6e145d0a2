"""The training loop: task after task, step after step. It is the only one outside transformers' `Trainer`.

Every random draw of a step comes from a seed made of (seed, task, step, process), never from what earlier steps left
behind, so that a resumed run and a replayed step draw the same numbers.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..losses_bridle import LossSum, objective
from .checkpoints import Checkpoint
from .failures import save_failure
from .locking import sole_writer
from .memory import shared_with_workers
from .resources import Forecast, say_what_it_takes
from .run import Run
from .seeds import seed_from
from .task import Batch, Losses, Task
from .waiting import waiting_for_others

logger = logging.getLogger(__name__)

# What `train` enters while it takes steps: it gives a function that tells whether to stop.
Stop = AbstractContextManager[Callable[[], bool]]


def train(run: Run, stop: Stop | None = None) -> bool:
    """Train all tasks of a run, from its newest checkpoint on, and export each.

    Args:
        stop: entered while steps are taken. Once the function that it gives returns True, in any process, the run ends
            after the step at hand and a checkpoint.

    Returns:
        True when the run is finished, False when it was stopped.

    Raises:
        FloatingPointError: batch, loss or gradient held NaN or inf; `failure/` in the run's folder holds the step.
        RuntimeError: another process ended or hangs, or too many samples cannot be used.
        WriteError: a checkpoint or a record could not be written; the checkpoints before it are intact.
        FolderError: another run writes to the folder, or it cannot be written to.
        ValueError: a checkpoint that does not fit the run, or a finished run of another recipe in its folder.
    """
    with waiting_for_others(run.settings.deadline), sole_writer(run.lock, run.accelerator.is_main_process):
        checkpoint = run.find_start()
        if run.is_finished(checkpoint):
            logger.info("this run is finished; its results are in %s", run.folder)
            return True
        run.begin(checkpoint)
        logger.info("%s", ", ".join(f"{task.name}: {task.steps} steps" for task in run.tasks))
        # Until here, where a cache is written perhaps, a signal ends the process.
        with stop or nullcontext(lambda: False) as run.asked_to_stop, shared_with_workers():
            for task in run.tasks[checkpoint.task if checkpoint else 0 :]:
                if checkpoint is None or (checkpoint.task, checkpoint.step) < (task.index, task.steps):
                    checkpoint = train_task(run, task, checkpoint)
                    if run.stopped:
                        logger.info("stopped after step %d of %s; resume=auto goes on", checkpoint.step, task.name)
                        break
                run.export(task, checkpoint)
        run.end()
        return not run.stopped


def train_task(run: Run, task: Task, checkpoint: Checkpoint | None) -> Checkpoint:
    """Train one task from the checkpoint on. Returns the checkpoint at its end, or where the run was stopped."""
    accelerator, settings = run.accelerator, run.settings
    resumed = checkpoint is not None and checkpoint.task == task.index
    first = checkpoint.step if resumed else 0

    bare = run.build_model(task, checkpoint).to(accelerator.device)
    task.set_modes_(bare)
    loader = TimedIterator(run.loader)
    if not resumed:
        task.start_(bare, loader, torch.Generator().manual_seed(seed_from(run.seed, task.index)))
    if settings.gradient_checkpointing:
        bare.activation_checkpointing_enable()
    model, optimizer = accelerator.prepare(bare, task.build_optimizer(bare, settings))
    if resumed:
        checkpoint.load_optimizer_(model, optimizer.optimizer)
    # One scaler serves all tasks. A checkpoint written in another precision has none.
    if accelerator.scaler is not None and checkpoint is not None and checkpoint.state["scaler"] is not None:
        accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    clock = Clock(loader, first, checkpoint.state.get("minutes", 0.0) if resumed else 0.0)
    forecast, upcoming = Forecast(run.tasks, task, first), None
    if first == 0:
        clock.leave_out(run.evaluate(task, 0, model))
    with tqdm(total=task.steps, initial=first, desc=task.name, disable=not accelerator.is_main_process) as bar:
        for number in range(first, task.steps):
            for group in optimizer.param_groups:
                group["lr"] = task.learning_rate_at(number)

            done = number + 1
            due = done % settings.checkpoint_steps == 0 or done == task.steps
            step = upcoming or draw_step(run, task, bare, loader, number)
            if number == first:
                say_what_it_takes(accelerator, task, bare, step.batches[0], settings)
            result = forward_backward(run, task, model, bare, step)
            # While an accelerator computes, the next step is drawn. What is due to be saved is saved before data can
            # fail, and a run that is stopped goes on from the position before.
            position = run.loader.state_dict()
            upcoming = None if due else draw_step(run, task, bare, loader, done)
            status = check_step(run, step, result)
            if status.reason is None:
                # Codebooks first: they look at numbers on the host, which should not wait until the weights moved.
                if result.statistics is not None:
                    task.update_(bare, result.statistics)
                optimizer.step()
            optimizer.zero_grad()
            followed = {}
            if status.reason is None:
                generator = torch.Generator().manual_seed(seed_from(run.seed, task.index, number))
                followed = task.after_step_(bare, step.batches, number, generator)
            else:
                skip_step(run, task, model, step, status.reason)

            bar.update()
            if accelerator.is_main_process:
                forecast.note(done, clock.seconds_of_steps)
            logs = done == 1 or done % settings.logging_steps == 0 or done == task.steps
            if status.reason is None and logs:
                record = {
                    **run.place(task, done),
                    "loss": status.loss,
                    "losses": mean_losses(result.losses, accelerator),
                    **task.measure(bare, result.output, step.batches[-1], accelerator),
                    **followed,
                    "lr": task.learning_rate_at(number),
                    "grad_norm": status.norm,
                    "steps_skipped": run.steps_skipped,
                    **run.skipped(),
                    **clock.read(run.samples_per_step, done),
                }
                run.log(task, bare, record)
                bar.set_postfix(loss=f"{status.loss:.3f}", **run.shown, refresh=False)
            del result  # its logits would stay through the next step
            clock.leave_out(run.evaluate(task, done, model))
            if due or status.stop:
                checkpoint = run.save(task, done, model, optimizer, position, clock.minutes)
            if status.stop:
                break
    accelerator.free_memory()
    return checkpoint


@dataclass
class Step:
    """Inputs of one optimizer step in one process.

    Attributes:
        number: from 0.
        batches: inputs of the forward passes, on the CPU, pinned for a GPU.
        seeds: of the random generators before each forward pass.
        weights: of the named losses.
        counts: of each named loss over all micro-batches and processes, divided by the number of processes, since
            gradients are averaged over them: () on the device.
        bad: () above 0 where a batch of any process holds NaN or inf.
    """

    number: int
    batches: list[Batch]
    seeds: list[int]
    weights: dict[str, float]
    counts: dict[str, torch.Tensor]
    bad: torch.Tensor

    def inputs(self, device: torch.device) -> Iterator[Batch]:
        """Yield the inputs of each forward pass on a device; seeds the random generators before each."""
        for batch, seed in zip(self.batches, self.seeds, strict=True):
            torch.manual_seed(seed)
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def draw_step(run: Run, task: Task, model: torch.nn.Module, loader: Iterator[dict], number: int) -> Step:
    """Inputs of step `number`. Every process must call it. It never waits for the accelerator."""
    accelerator, device = run.accelerator, run.accelerator.device
    batches, seeds, counts, weights = [], [], [], task.objective(model, number)
    for micro in range(run.settings.gradient_accumulation_steps):
        place = (run.seed, task.index, number, accelerator.process_index, micro)
        batch = task.draw(model, loader, place)
        found = task.counts(model, batch)
        bad = any(not torch.isfinite(value.sum()) for value in batch.values() if is_floating_point(value))
        counts.append([*(float(found[name]) for name in weights), float(bad)])
        batches.append({name: pinned(value, device) for name, value in batch.items()})
        seeds.append(task.seed(place))
    *totals, bad = reduced_sum(torch.tensor(counts).sum(0), accelerator)
    share = accelerator.num_processes
    counts = {name: total.clamp(min=1) / share for name, total in zip(weights, totals, strict=True)}
    return Step(number, batches, seeds, weights, counts, bad)


def reduced_sum(tensor: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Sum a CPU tensor over all processes; the result is on the device."""
    device = accelerator.device
    return accelerator.reduce(pinned(tensor, device).to(device, non_blocking=True), "sum")


def is_floating_point(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def pinned(value, device: torch.device):
    """The tensor in pinned memory, from which a GPU copies asynchronously."""
    return value.pin_memory() if device.type == "cuda" else value


@dataclass
class StepResult:
    """Results of the forward and backward passes of a step. The tensors may still be pending on the device.

    Attributes:
        loss: () what this process contributes to the mean over processes.
        norm: () length of the gradient before clipping.
        losses: named losses, added up over the micro-batches.
        statistics: what `Task.update_` takes, added up likewise.
        output: of the last forward pass.
    """

    loss: torch.Tensor
    norm: torch.Tensor
    losses: dict[str, LossSum]
    statistics: dict[str, torch.Tensor] | None
    output: Losses


def forward_backward(run: Run, task: Task, model, bare, step: Step) -> StepResult:
    """The forward and backward passes of a step, up to clipped gradients; changes neither weights nor codebooks."""
    accelerator, loss, losses, statistics = run.accelerator, 0.0, {}, None
    for micro, inputs in enumerate(step.inputs(accelerator.device), start=1):
        with nullcontext() if micro == len(step.batches) else accelerator.no_sync(model):
            output = task.forward(model, bare, inputs, step.number)
            part = objective(output.losses, step.weights, step.counts)
            accelerator.backward(part)
        loss = loss + part.detach().float()
        losses = add_up(losses, {name: LossSum(*(x.detach() for x in each)) for name, each in output.losses.items()})
        found = task.statistics(output)
        statistics = found if statistics is None else {name: statistics[name] + found[name] for name in found}
    norm = accelerator.clip_grad_norm_(model.parameters(), run.settings.max_grad_norm or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return StepResult(loss, norm, losses, statistics, output)


def add_up(losses: dict[str, LossSum], more: dict[str, LossSum]) -> dict[str, LossSum]:
    """Add the sums and counts of two batches, name by name."""
    if not losses:
        return more
    return {name: LossSum(losses[name].sum + each.sum, losses[name].count + each.count) for name, each in more.items()}


@dataclass
class StepStatus:
    """Outcome of a step, identical on all ranks.

    Attributes:
        loss: mean over processes.
        norm: length of the gradient before clipping.
        stop: whether any process was asked to stop.
        reason: why the step must be discarded, if it must.
    """

    loss: float
    norm: float
    stop: bool
    reason: str | None = field(default=None)


def check_step(run: Run, step: Step, result: StepResult) -> StepStatus:
    """Wait for the passes of a step and check them. The only synchronization of a step: bad steps are discarded."""
    asked = torch.full_like(result.loss, run.asked_to_stop())
    means = run.accelerator.reduce(torch.stack([result.loss, asked]), "mean")
    loss, asked, norm, bad = torch.cat([means, torch.stack([result.norm, step.bad])]).tolist()
    status = StepStatus(loss, norm, stop=asked > 0)
    run.stopped = status.stop
    # In fp16 the loss scaler looks after gradients that overflow.
    if bad:
        status.reason = "a batch holds NaN or inf"
    elif not isfinite(loss) or not (isfinite(norm) or run.settings.mixed_precision == "fp16"):
        status.reason = f"the loss is {loss} and the gradient norm {norm}"
    return status


def skip_step(run: Run, task: Task, model, step: Step, reason: str) -> None:
    """Save a step that must be discarded. Raises a `FloatingPointError` when `skip_bad_steps` allows no more."""
    accelerator, allowed = run.accelerator, run.settings.skip_bad_steps
    folder = save_failure(run, task, model, step, reason)
    run.steps_skipped += 1
    if run.steps_skipped <= allowed:
        logger.warning("skipped step %d of %s: %s; saved in %s", step.number + 1, task.name, reason, folder)
        if accelerator.scaler is not None:
            accelerator.scaler.update()  # it has seen gradients, and takes no others before this
        return
    raise FloatingPointError(
        f"step {step.number + 1} of {task.name}: {reason}. `bridle replay {folder}` takes it again "
        f"and tells where. Look at the batch first; a lower learning rate or mixed_precision=no helps where it is "
        f"sound, and skip_bad_steps={run.steps_skipped} leaves it out."
    )


def mean_losses(losses: dict[str, LossSum], accelerator: Accelerator) -> dict[str, float]:
    """Mean of each named loss over the items of all processes."""
    names = sorted(losses)
    sums = torch.stack([torch.stack([losses[name].sum.float(), losses[name].count]) for name in names])  # (n, 2)
    sums = accelerator.reduce(sums, "sum")
    return dict(zip(names, (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist(), strict=True))


class TimedIterator(Iterator):
    """The batches of a loader, and the seconds spent waiting for them."""

    def __init__(self, loader: Iterator[dict]):
        self.loader, self.waited = loader, 0.0

    def __next__(self) -> dict[str, torch.Tensor]:
        start = time.perf_counter()
        batch = next(self.loader)
        self.waited += time.perf_counter() - start
        return batch


class Clock:
    """Speed and share of time spent waiting for data since the last reading; minutes of the task in total."""

    def __init__(self, loader: TimedIterator, step: int, minutes: float):
        self.loader, self.begun, self.earlier, self.left_out = loader, time.perf_counter(), minutes, 0.0
        self.last = (0.0, loader.waited, step)

    @property
    def minutes(self) -> float:
        return self.earlier + (time.perf_counter() - self.begun) / 60

    @property
    def seconds_of_steps(self) -> float:
        """Seconds since this start, without those passed to `leave_out`."""
        return time.perf_counter() - self.begun - self.left_out

    def leave_out(self, seconds: float) -> None:
        """Count these seconds to no step."""
        self.left_out += seconds

    def read(self, samples_per_step: int, step: int) -> dict[str, float]:
        now = (self.seconds_of_steps, self.loader.waited, step)
        elapsed, waited, steps = (new - old for new, old in zip(now, self.last, strict=True))
        self.last = now
        return {"clips_per_second": samples_per_step * steps / elapsed, "data_wait": waited / elapsed}
