"""What surrounds the steps: processes, data, schedule, output folder; where a run begins again and what it leaves."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from ..data.streaming import build_loader
from ..modeling_bridle import BridleForPreTraining
from .arguments import PretrainRecipe
from .checkpoints import (
    Checkpoint,
    drop_later_,
    find_checkpoint,
    folder_written_beside,
    open_checkpoint,
    save_checkpoint,
    set_random_state_,
)
from .metrics import MetricsFile, flat
from .phases import Phase, build_schedule
from .recipes import changed_keys, recipe_to_yaml

logger = logging.getLogger(__name__)


class Run:
    """What all phases of a run share.

    Args:
        recipe: the recipe.
        stop: a list that is empty until the run is asked to stop.
    """

    def __init__(self, recipe: PretrainRecipe, stop: list):
        training = recipe.training
        self.recipe, self.stop = recipe, stop
        self.folder = Path(recipe.output_dir)
        # Buffers are codebooks, which update_() keeps equal on all processes; DDP must not overwrite them.
        self.ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self.accelerator = Accelerator(
            mixed_precision=training.mixed_precision,
            cpu=not torch.accelerator.is_available(),
            dynamo_backend="inductor" if training.compile else None,
            log_with=training.tracker,
            project_dir=recipe.output_dir,
            kwargs_handlers=[self.ddp],
        )
        check_processes(self.accelerator)
        self.schedule = build_schedule(recipe, self.accelerator.num_processes)
        self.processor = recipe.build_processor()
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")

    def find_start(self) -> Checkpoint | None:
        """The checkpoint to go on from, None to start from nothing.

        Raises:
            ValueError: the checkpoint that `resume` names is damaged, or it does not fit the recipe or the processes.
        """
        recipe, checkpoints = self.recipe, self.folder / "checkpoints"
        if recipe.resume == "never":
            if self.accelerator.is_main_process and checkpoints.exists():
                set_aside(self.folder)
            self.accelerator.wait_for_everyone()
        named = recipe.resume not in ("auto", "never")
        checkpoint = open_checkpoint(recipe.resume) if named else find_checkpoint(checkpoints)
        if checkpoint is not None:
            self.check_fits(checkpoint)
        return checkpoint

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Opens data and output folder; data, random generators and metrics.jsonl go back to the checkpoint."""
        accelerator = self.accelerator
        self.loader = self.open_data()
        if checkpoint is not None:
            state = checkpoint.rank_state(accelerator.process_index)
            self.loader.load_state_dict(state["data"])
            set_random_state_(state["random"])
            logger.info("going on from %s", checkpoint.path)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(recipe_to_yaml(self.recipe))
            self.metrics.rewind(checkpoint.phase if checkpoint else -1, checkpoint.step if checkpoint else 0)
            if checkpoint is not None:
                drop_later_(self.folder / "checkpoints", checkpoint)
        accelerator.init_trackers("tensorboard")

    def open_data(self):
        """The loader of this process."""
        accelerator = self.accelerator
        return build_loader(
            self.recipe.open_data(),
            self.processor,
            batch_size=self.recipe.training.batch_size,
            seed=self.recipe.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """A run goes on only on the same number of processes, and in a phase that the recipe has. Another recipe is
        followed from here on, with a warning."""
        processes = self.accelerator.num_processes
        if checkpoint.state["num_processes"] != processes:
            raise ValueError(
                f"{checkpoint.path} was written by {checkpoint.state['num_processes']} processes and this run has "
                f"{processes}: positions in the data do not carry over. Start as many, or give resume=never."
            )
        names = [phase.name for phase in self.schedule]
        if checkpoint.state["phase_name"] not in names[checkpoint.phase : checkpoint.phase + 1]:
            raise ValueError(
                f"{checkpoint.path} is of phase {checkpoint.phase} ({checkpoint.state['phase_name']}); "
                f"the recipe's phases are {', '.join(names)}. Give resume=never or another output_dir."
            )
        before = yaml.safe_load((checkpoint.path / "recipe.yaml").read_text())
        changed = changed_keys(before, yaml.safe_load(recipe_to_yaml(self.recipe)))
        if changed := [key for key in changed if key not in ("output_dir", "resume")]:
            logger.warning("the recipe has changed since %s: %s", checkpoint.path, ", ".join(changed))

    def is_finished(self, checkpoint: Checkpoint | None) -> bool:
        last = self.schedule[-1]
        done = checkpoint is not None and (checkpoint.phase, checkpoint.step) >= (last.index, last.steps)
        return done and (self.folder / "final" / "config.json").is_file()

    def build_model(self, phase: Phase, checkpoint: Checkpoint | None) -> BridleForPreTraining:
        """A new model with the checkpoint's weights; the parts a phase redraws stay new where the phase begins."""
        torch.manual_seed(seed_from(self.recipe.seed, phase.index))
        config = self.recipe.config()
        if checkpoint is None:
            return BridleForPreTraining(config)
        config.cold_start = checkpoint.state["cold_start"]
        model = BridleForPreTraining(config)
        weights = checkpoint.weights()
        if checkpoint.phase < phase.index:
            for part in phase.redraws:
                weights |= {name: value for name, value in model.state_dict().items() if name.startswith(f"{part}.")}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{checkpoint.path} does not fit the recipe's `model`: {error}") from error
        return model

    def save(self, phase: Phase, step: int, model, optimizer, bare: BridleForPreTraining) -> Checkpoint:
        """A checkpoint after `step` steps of a phase; `bare` is the model inside the prepared `model`."""
        path = save_checkpoint(
            self.folder / "checkpoints",
            self.accelerator,
            model,
            optimizer,
            phase=phase.index,
            step=step,
            state={
                "phase_name": phase.name,
                "learning_rate": phase.learning_rate_at(step - 1),
                "cold_start": bare.config.cold_start,
            },
            data=self.loader.state_dict(),
            recipe=recipe_to_yaml(self.recipe),
            keep=self.recipe.training.keep_checkpoints,
        )
        return open_checkpoint(path)

    def export(self, phase: Phase, checkpoint: Checkpoint) -> None:
        """encoder-iterK/ after a phase that trains the encoder, final/ after the last phase."""
        model, targets = self.build_model(phase, checkpoint), {}
        if "bridle" in phase.trains:
            targets[f"encoder-iter{phase.iteration}"] = model.bridle
        if phase is self.schedule[-1]:
            targets["final"] = model
        for name, part in targets.items():
            with folder_written_beside(self.folder / name, self.accelerator) as beside:
                if self.accelerator.is_main_process:
                    part.save_pretrained(beside)
                    self.processor.save_pretrained(beside)

    def log(self, record: dict) -> None:
        """One line of metrics.jsonl, and the same numbers to the tracker."""
        if self.accelerator.is_main_process:
            self.metrics.append(record)
            self.accelerator.log(flat(record), step=record["total_step"])


def seed_from(*place: int) -> int:
    """A seed for a place in the run; neighbouring places get unrelated ones."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def check_processes(accelerator: Accelerator) -> None:
    """Every process that was launched must be known to Accelerate, and none may shard what a checkpoint has to hold."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate knows of {accelerator.num_processes}: each would train "
            "by itself. On CPUs set ACCELERATE_USE_CPU=true, or see `accelerate config`."
        )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{accelerator.distributed_type} keeps the optimizer to itself; use DDP or FSDP2.")


def set_aside(folder: Path) -> None:
    """Renames the folder of an earlier run to NAME.old-1, -2, ...: starting over must not cost anyone their run."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    os.replace(folder, old)
    logger.warning("resume=never: the earlier run was moved to %s", old)


@contextmanager
def stop_signals() -> Iterator[list]:
    """A list that is empty until SIGTERM or SIGINT arrives; a repeated signal changes nothing."""
    stop = []
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda received, _: stop.append(received))
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
