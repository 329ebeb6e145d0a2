"""A training run: processes, tasks, data and output folder; resuming from a checkpoint, and writing results."""

import datetime
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError

from ..data.listing import name_some
from ..files import FolderLock, WriteError, set_aside, write_whole
from ..recipe_reader import changed_keys, recipe_to_yaml, value_at
from .arguments import OptimizationArguments
from .checkpoints import (
    Checkpoint,
    CheckpointError,
    drop_later_,
    find_checkpoint,
    list_checkpoints,
    open_checkpoint,
    save_checkpoint,
    set_random_state_,
)
from .evaluating import Evaluation
from .hub_copy import HubCopy
from .locking import take_lock
from .metrics import MetricsFile
from .seeds import seed_from
from .task import Batches, Task
from .tracking import finish_trackers, scalars, start_tracker

logger = logging.getLogger(__name__)

# Opens the data of one process: (seed, rank, number of processes) -> its batches.
OpenBatches = Callable[[int, int, int], Batches]


def build_accelerator(settings: OptimizationArguments, folder: Path) -> Accelerator:
    """The processes of a run.

    Raises:
        ValueError: processes that do not know of each other, or that shard what a checkpoint has to hold.
    """
    # Buffers are codebooks, which update_() keeps equal on all processes; DDP must not overwrite them.
    # find_unused_parameters serves phases that leave parameters out of a step, and it fixes the order of sums: without
    # it, DDP lays its buckets of gradients out anew after its first backward pass. A resumed run would add those of its
    # first step in another order than the run left alone did, which three processes or more show in the last bits.
    ddp = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
    )
    # Accelerate would keep precision and compilation of an earlier run or Trainer in this process.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        cpu=not torch.accelerator.is_available(),
        dynamo_backend="inductor" if settings.compile else None,
        log_with=settings.tracker,
        project_dir=str(folder),
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=settings.deadline))],
    )
    accelerator.sync_gradients = True  # an interrupted Trainer may leave it False, and the optimizer would not step
    check_processes(accelerator)
    return accelerator


class Run:
    """What all tasks of a run share.

    Args:
        accelerator: of `build_accelerator`.
        folder: receives checkpoints/, failure/, metrics.jsonl, recipe.yaml and what the tasks export.
        tasks: in order, each with its `index`.
        settings: how a step is taken.
        open_batches: opens the data.
        recipe: what the run follows from, a dataclass that `recipe_to_yaml` takes; with `output_dir`.
        seed: of everything random.
        resume: "auto" goes on from the newest good checkpoint in `folder`, "never" starts over; or a checkpoint.
        evaluation: what is measured while it trains; None for nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        tasks: list[Task],
        settings: OptimizationArguments,
        open_batches: OpenBatches,
        recipe: Any,
        seed: int = 0,
        resume: str = "auto",
        evaluation: Evaluation | None = None,
    ):
        self.accelerator, self.folder, self.tasks, self.settings = accelerator, Path(folder), tasks, settings
        self.open_batches, self.recipe, self.seed, self.resume = open_batches, recipe, seed, resume
        self.evaluation = evaluation
        self.metrics, self.lock = MetricsFile(self.folder / "metrics.jsonl"), FolderLock(self.folder / ".lock")
        self.data_seed, self.steps_skipped = seed, 0
        self.stopped, self.asked_to_stop = False, lambda: False
        self.hub_copy = None
        self.remarked = set()  # (number of a task, subject) of the warnings said
        self.skips, self.skipped_names = 0, set()  # of bad samples: how many skips were reported, and of which samples

    @property
    def samples_per_step(self) -> int:
        settings = self.settings
        return settings.batch_size * settings.gradient_accumulation_steps * self.accelerator.num_processes

    def find_start(self) -> Checkpoint | None:
        """The checkpoint to go on from, None to start from nothing.

        A checkpoint that `resume` names is where the command goes on from when it is first given. Given again, it goes
        on from the newest of the checkpoints that it wrote itself.

        Raises:
            CheckpointError: the checkpoint that `resume` names is damaged, or does not fit the recipe or the processes.
        """
        checkpoints = self.folder / "checkpoints"
        checkpoint = None if self.resume == "never" else find_checkpoint(checkpoints)
        if self.resume not in ("auto", "never") and (checkpoint is None or not self.wrote(checkpoint)):
            checkpoint = open_checkpoint(self.resume)
        if checkpoint is not None:
            self.check_fits(checkpoint)
        elif checkpoints.exists() and self.resume == "never":
            self.start_over("resume=never")
        elif list_checkpoints(checkpoints):
            self.start_over("no checkpoint is whole")
        elif self.tasks[-1].is_exported(self.folder):
            self.start_over("there is a finished model and no checkpoint")
        return checkpoint

    def start_over(self, reason: str) -> None:
        """Move the folder aside, with all that is in it, and take the lock of a new one. Every process calls it."""
        self.accelerator.wait_for_everyone()  # the others have looked at it
        if self.accelerator.is_main_process:
            logger.warning("%s: the earlier run was moved to %s", reason, set_aside(self.folder))
        take_lock(self.lock, self.accelerator.is_main_process)

    def wrote(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint was written with this value of `resume`, that is, by this run itself."""
        return yaml.safe_load((checkpoint.path / "recipe.yaml").read_text()).get("resume") == self.resume

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Open data and output folder, and restore data position, random generators and metrics.jsonl."""
        accelerator = self.accelerator
        if self.settings.hub_repo_id is not None and accelerator.is_main_process:
            self.hub_copy = HubCopy(self.settings.hub_repo_id, self.settings.hub_private, self.folder)
        if self.evaluation is not None:  # first, since reading the data may write a cache for hours
            self.evaluation.begin(checkpoint, self.samples_per_step)
        if checkpoint is None:
            self.loader = self.open_data()
        else:
            logger.info("going on from %s", checkpoint.path)
            self.steps_skipped = checkpoint.state["steps_skipped"]
            self.go_on_in_data(checkpoint)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_whole(self.folder / "recipe.yaml", recipe_to_yaml(self.recipe))
            self.skipped_names = self.metrics.rewind(*(checkpoint.task, checkpoint.step) if checkpoint else (-1, 0))
            drop_later_(self.folder / "checkpoints", checkpoint)
        start_tracker(accelerator, self.folder, self.settings.tracker_project, asdict(self.recipe))

    def go_on_in_data(self, checkpoint: Checkpoint) -> None:
        """Open the data at the checkpoint's position. With another number of processes, another number of workers or
        another batch size the data is split differently and no position fits: it is then reshuffled."""
        accelerator, before = self.accelerator, checkpoint.state
        self.data_seed = before["data_seed"]
        changed = f"{before['num_processes']} processes, now {accelerator.num_processes}"
        if before["num_processes"] == accelerator.num_processes:
            state = checkpoint.rank_state(accelerator.process_index)
            set_random_state_(state["random"])
            self.loader = self.open_data()
            changed = self.loader.differs(state["data"])
            if not changed:
                self.loader.load_state_dict(state["data"])
                return
        logger.warning("%s was written with %s: the data is shuffled anew", checkpoint.path, changed)
        self.data_seed = seed_from(self.seed, checkpoint.task, checkpoint.step, accelerator.num_processes)
        self.loader = self.open_data()

    def open_data(self) -> Batches:
        """The batches of this process."""
        return self.open_batches(self.data_seed, self.accelerator.process_index, self.accelerator.num_processes)

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """Check that the recipe can resume the checkpoint; a changed recipe is logged as a warning.

        Raises:
            CheckpointError: the recipe lacks the checkpoint's phase; the phase's length changed although the recipe did
                not; or the run is finished and the recipe has changed.
        """
        before = checkpoint.state
        if not any((task.index, task.name) == (checkpoint.task, before["phase_name"]) for task in self.tasks):
            names = ", ".join(task.name for task in self.tasks)
            raise CheckpointError(
                f"{checkpoint.path} is of phase {checkpoint.task} ({before['phase_name']}); "
                f"the recipe's phases are {names}. Give resume=never or another output_dir."
            )
        written = yaml.safe_load((checkpoint.path / "recipe.yaml").read_text())
        now = yaml.safe_load(recipe_to_yaml(self.recipe))
        keys = [key for key in changed_keys(written, now) if key not in ("output_dir", "resume")]
        said = {key: f"{value_at(written, key)} -> {value_at(now, key)}" for key in keys}
        changed = ", ".join(f"{key}: {new}" for key, new in said.items() if new != said.get(_of_section(key, now)))
        steps, processes = self.tasks[checkpoint.task].steps, self.accelerator.num_processes
        if not changed and steps != before["phase_steps"]:
            raise CheckpointError(
                f"Cannot resume {before['phase_name']}: it has {steps} steps with {processes} processes, but "
                f"{checkpoint.path} belongs to one of {before['phase_steps']} steps with {before['num_processes']}. "
                "Keep batch_size * gradient_accumulation_steps * processes as it was."
            )
        # Finished by the lengths it was trained with: longer phases in the new recipe do not reopen it.
        if changed and checkpoint.step == before["phase_steps"] and self.tasks[-1].is_exported(self.folder):
            raise CheckpointError(
                f"output_dir={self.folder} holds the finished run of another recipe (changed: {changed}). "
                "Give another output_dir, or resume=never to train again."
            )
        if changed:
            logger.warning("the recipe has changed since %s, and goes on as it is now: %s", checkpoint.path, changed)

    def is_finished(self, checkpoint: Checkpoint | None) -> bool:
        last = self.tasks[-1]
        done = checkpoint is not None and (checkpoint.task, checkpoint.step) >= (last.index, last.steps)
        return done and last.is_exported(self.folder)

    def build_model(self, task: Task, checkpoint: Checkpoint | None) -> torch.nn.Module:
        """The model of a task with the checkpoint's weights.

        Raises:
            CheckpointError: they are of another model.
        """
        torch.manual_seed(seed_from(self.seed, task.index))
        if checkpoint is None:
            return task.build(None, begins=True)
        try:
            return task.build(checkpoint.weights(), begins=checkpoint.task < task.index)
        except RuntimeError as error:
            first = "; ".join(" ".join(line.split()) for line in str(error).splitlines()[1:3])  # a line for each weight
            raise CheckpointError(
                f"{checkpoint.path} does not fit the recipe's model: {first or error}. The sizes of a model stay as "
                "they are within a run; give another output_dir, or resume=never."
            ) from error

    def save(self, task: Task, step: int, model, optimizer, position: dict, minutes: float) -> Checkpoint:
        """A checkpoint after `step` steps of a task.

        Args:
            model, optimizer: as prepared by the accelerator.
            position: of the loader after the batches of these steps.
            minutes: of training that the task took so far.

        Raises:
            WriteError: it could not be written. The checkpoints before it are as they were.
        """
        with self.writing(f"the checkpoint of step {step} of {task.name}"):
            path = save_checkpoint(
                self.folder / "checkpoints",
                self.accelerator,
                model,
                optimizer,
                task=task.index,
                step=step,
                state={
                    "phase_name": task.name,
                    "phase_steps": task.steps,
                    "learning_rate": task.learning_rate_at(step - 1),
                    "minutes": minutes,
                    "data_seed": self.data_seed,
                    "steps_skipped": self.steps_skipped,
                    "scaler": None if (scaler := self.accelerator.scaler) is None else scaler.state_dict(),
                },
                data=position,
                recipe=recipe_to_yaml(self.recipe),
                keep=self.settings.keep_checkpoints,
            )
        if self.hub_copy is not None:
            self.hub_copy.push(path)
        return open_checkpoint(path, verify=False)

    def export(self, task: Task, checkpoint: Checkpoint) -> None:
        """Export the results of a finished task; WriteError if they could not be written."""
        model = self.build_model(task, checkpoint)
        with self.writing(f"what {task.name} trained"):
            task.export(model, self.folder, self.accelerator, checkpoint.state.get("minutes", 0.0))

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Context whose errors of writing, as on a full disk, name what was not written and the checkpoint that is."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            last = next(reversed(list_checkpoints(self.folder / "checkpoints")), "none")
            why = f"{what} could not be written: {error}. The last checkpoint is {last}; make room and start again."
            raise WriteError(why) from error

    def end(self) -> None:
        """Log what was skipped and close the trackers."""
        names = sorted(self.skipped_names)
        if self.accelerator.is_main_process and (names or self.steps_skipped):
            logger.warning(
                "skipped: %d clips (%s) and %d steps; %s has all names",
                len(names), name_some(names, 5), self.steps_skipped, self.metrics.path,
            )  # fmt: skip
        if self.evaluation is not None and self.evaluation.seconds:
            logger.info("the evaluations took %.0f seconds", self.evaluation.seconds)
        if self.hub_copy is not None:
            self.hub_copy.end(list_checkpoints(self.folder / "checkpoints")[-1], self.settings.deadline)
        finish_trackers(self.accelerator)

    def skipped(self) -> dict:
        """For a record: number of samples skipped so far in all processes, and name -> reason of the new ones."""
        accelerator, mine = self.accelerator, self.loader.skipped
        skips = int(accelerator.reduce(torch.tensor(len(mine), device=accelerator.device), "sum"))
        record = {}
        if skips > self.skips:  # perhaps of one sample by several processes, each in an epoch of its own
            everyone = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
            new = {name: why for each in everyone for name, why in each.items() if name not in self.skipped_names}
            self.skipped_names |= new.keys()
            record = {"skipped": new} if new else {}
        self.skips = skips
        return {"clips_skipped": len(self.skipped_names), **record}

    def place(self, task: Task, step: int) -> dict:
        """What a record says of the place after `step` steps of a task."""
        before = sum(earlier.steps for earlier in self.tasks[: task.index])
        return {"phase": task.name, "phase_index": task.index, "step": step, "total_step": before + step}

    def evaluate(self, task: Task, step: int, model) -> float:
        """Evaluates and logs a record of it, if that is due after `step` steps. Every process calls it.

        Args:
            model: as prepared by the accelerator.

        Returns:
            The seconds that it took.
        """
        if self.evaluation is None or not self.evaluation.is_due(task, step):
            return 0.0
        begun, place = time.perf_counter(), self.place(task, step)
        measured = self.evaluation.take(model, place)
        if measured is not None:
            self.log(task, model, place | {"evaluate": measured})
        return time.perf_counter() - begun

    @property
    def shown(self) -> dict[str, str]:
        """The latest measures, for the progress bar."""
        return {} if self.evaluation is None else self.evaluation.shown

    def log(self, task: Task, model, record: dict) -> None:
        """Write one record to metrics.jsonl and to the trackers, and warn of what the task says of it."""
        if not self.accelerator.is_main_process:
            return
        with self.writing("a record of metrics.jsonl"):
            self.metrics.append(record)
        self.accelerator.log(scalars(record), step=record["total_step"])
        if 2 * record["step"] < task.steps:
            return
        for subject, remark in task.remarks(model, record).items():
            if (task.index, subject) not in self.remarked:
                self.remarked.add((task.index, subject))
                logger.warning("%s, step %d: %s", task.name, record["step"], remark)


def _of_section(key: str, recipe: dict) -> str | None:
    """The key of the section that a phase is laid over: `phases.2.steps` -> `encoder.steps`."""
    section, *place = key.split(".", 2)
    return f"{recipe[section][int(place[0])]['kind']}.{place[1]}" if section == "phases" and len(place) == 2 else None


def check_processes(accelerator: Accelerator) -> None:
    """Check the launch.

    Raises:
        ValueError: Accelerate does not know of all launched processes, or the strategy is DeepSpeed or Megatron-LM,
            whose optimizer state our checkpoints cannot hold.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate knows of {accelerator.num_processes}: each would train "
            "by itself. On CPUs set ACCELERATE_USE_CPU=true, or see `accelerate config`."
        )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{accelerator.distributed_type} keeps the optimizer to itself and pickles its checkpoints; use DDP, "
            "FSDP2, or examples/accelerate/zero2.yaml, which shards as ZeRO-2 does."
        )
