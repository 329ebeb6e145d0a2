"""What surrounds the steps: processes, data, schedule, output folder; where a run begins again and what it leaves."""

import datetime
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError

from ..codebook_bridle import world_size
from ..data.streaming import build_loader
from ..files import set_aside, write_whole
from ..modeling_bridle import BridleForPreTraining
from ..recipe_reader import changed_keys, recipe_to_yaml
from .arguments import PretrainRecipe
from .checkpoints import (
    Checkpoint,
    drop_later_,
    find_checkpoint,
    folder_written_beside,
    list_checkpoints,
    open_checkpoint,
    prune_,
    save_checkpoint,
    set_random_state_,
)
from .metrics import MetricsFile, flat
from .phases import Phase, build_schedule
from .seeds import seed_from

logger = logging.getLogger(__name__)


class Run:
    """What all phases of a run share."""

    def __init__(self, recipe: PretrainRecipe, dataset=None):
        training = recipe.training
        self.recipe, self.dataset, self.stopped = recipe, dataset, False
        self.asked_to_stop = lambda: False
        self.folder = Path(recipe.output_dir)
        # Buffers are codebooks, which update_() keeps equal on all processes; DDP must not overwrite them.
        self.ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self.accelerator = Accelerator(
            mixed_precision=training.mixed_precision,
            cpu=not torch.accelerator.is_available(),
            dynamo_backend="inductor" if training.compile else None,
            log_with=training.tracker,
            project_dir=recipe.output_dir,
            kwargs_handlers=[self.ddp, InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=training.deadline))],
        )
        check_processes(self.accelerator)
        self.schedule = build_schedule(recipe, self.accelerator.num_processes)
        self.processor = recipe.build_processor()
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")
        self.data_seed, self.steps_skipped = recipe.seed, 0
        self.met, self.named = 0, set()  # bad clips: how often they were met, and their names

    def find_start(self) -> Checkpoint | None:
        """The checkpoint to go on from, None to start from nothing.

        A checkpoint that `resume` names is where the command goes on from when it is first given. Given again, it goes
        on from the newest of the checkpoints that it wrote itself.

        Raises:
            ValueError: the checkpoint that `resume` names is damaged, or it does not fit the recipe or the processes.
        """
        recipe, checkpoints = self.recipe, self.folder / "checkpoints"
        if recipe.resume == "never":
            if self.accelerator.is_main_process and checkpoints.exists():
                logger.warning("resume=never: the earlier run was moved to %s", set_aside(self.folder))
            self.accelerator.wait_for_everyone()
        checkpoint = find_checkpoint(checkpoints)
        if recipe.resume not in ("auto", "never") and (checkpoint is None or not self.wrote(checkpoint)):
            checkpoint = open_checkpoint(recipe.resume)
        if checkpoint is not None:
            self.check_fits(checkpoint)
        return checkpoint

    def wrote(self, checkpoint: Checkpoint) -> bool:
        """Whether this very command wrote the checkpoint, as far as `resume` tells."""
        return yaml.safe_load((checkpoint.path / "recipe.yaml").read_text())["resume"] == self.recipe.resume

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Opens data and output folder; data, random generators and metrics.jsonl go back to the checkpoint."""
        accelerator = self.accelerator
        if checkpoint is None:
            self.loader = self.open_data()
        else:
            logger.info("going on from %s", checkpoint.path)
            self.steps_skipped = checkpoint.state["steps_skipped"]
            self.go_on_in_data(checkpoint)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "recipe.yaml", recipe_to_yaml(self.recipe))
            self.named = self.metrics.rewind(*(checkpoint.phase, checkpoint.step) if checkpoint else (-1, 0))
            if checkpoint is not None:
                drop_later_(self.folder / "checkpoints", checkpoint)
                prune_(self.folder / "checkpoints", self.recipe.training.keep_checkpoints)
        accelerator.init_trackers("tensorboard")

    def go_on_in_data(self, checkpoint: Checkpoint) -> None:
        """Opens the data where the checkpoint left it. Another number of processes, workers or clips of a batch splits
        the data otherwise, so that no position fits: the data is then shuffled anew."""
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
        self.data_seed = seed_from(self.recipe.seed, checkpoint.phase, checkpoint.step, accelerator.num_processes)
        self.loader = self.open_data()

    def open_data(self):
        """The loader of this process."""
        accelerator = self.accelerator
        return build_loader(
            self.recipe.open_data(),
            self.processor,
            self.dataset,
            batch_size=self.recipe.training.batch_size,
            seed=self.data_seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """A run goes on only in a phase that the recipe has, as long as it was unless the recipe made it so. Another
        recipe is followed from there, with a warning; a finished run it would leave as it is."""
        names, before = [phase.name for phase in self.schedule], checkpoint.state
        if before["phase_name"] not in names[checkpoint.phase : checkpoint.phase + 1]:
            raise ValueError(
                f"{checkpoint.path} is of phase {checkpoint.phase} ({before['phase_name']}); "
                f"the recipe's phases are {', '.join(names)}. Give resume=never or another output_dir."
            )
        written = yaml.safe_load((checkpoint.path / "recipe.yaml").read_text())
        changed = changed_keys(written, yaml.safe_load(recipe_to_yaml(self.recipe)))
        changed = ", ".join(key for key in changed if key not in ("output_dir", "resume"))
        steps, processes = self.schedule[checkpoint.phase].steps, self.accelerator.num_processes
        if not changed and steps != before.get("phase_steps", steps):
            raise ValueError(
                f"{before['phase_name']} is {steps} steps long on {processes} processes, and {checkpoint.path} is of "
                f"{before['phase_steps']} on {before['num_processes']}: epochs are fewer steps where a step takes more "
                "clips. Change training.batch_size or training.gradient_accumulation_steps so that it takes as many."
            )
        if changed and self.is_finished(checkpoint):
            raise ValueError(
                f"output_dir={self.folder} holds the finished run of another recipe (changed: {changed}). "
                "Give another output_dir, or resume=never to train again."
            )
        if changed:
            logger.warning("the recipe has changed since %s: %s", checkpoint.path, changed)

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

    def save(self, phase: Phase, step: int, model, optimizer, bare: BridleForPreTraining, position: dict) -> Checkpoint:
        """A checkpoint after `step` steps of a phase; `bare` is the model inside the prepared `model`, `position` that
        of the loader after the batches of these steps.

        Raises:
            OSError: it could not be written. The checkpoints before it are as they were.
        """
        folder, scaler = self.folder / "checkpoints", self.accelerator.scaler
        try:
            path = save_checkpoint(
                folder,
                self.accelerator,
                model,
                optimizer,
                phase=phase.index,
                step=step,
                state={
                    "phase_name": phase.name,
                    "phase_steps": phase.steps,
                    "learning_rate": phase.learning_rate_at(step - 1),
                    "cold_start": bare.config.cold_start,
                    "data_seed": self.data_seed,
                    "steps_skipped": self.steps_skipped,
                    "scaler": None if scaler is None else scaler.state_dict(),
                },
                data=position,
                recipe=recipe_to_yaml(self.recipe),
                keep=self.recipe.training.keep_checkpoints,
            )
        except (OSError, SafetensorError) as error:
            last = [str(old) for old in list_checkpoints(folder)[-1:]]
            raise OSError(
                f"the checkpoint of step {step} of {phase.name} could not be written: {error}. "
                f"The last one is {last[0] if last else 'none'}; make room and start again."
            ) from error
        return open_checkpoint(path, verify=False)

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

    def end(self) -> None:
        """Names what was skipped and closes the trackers."""
        if self.accelerator.is_main_process and (self.named or self.steps_skipped):
            names = f"{len(self.named)} clips ({', '.join(sorted(self.named)[:20])}{', ...' * (len(self.named) > 20)})"
            logger.warning("left out: %s and %d steps; %s has all names", names, self.steps_skipped, self.metrics.path)
        self.accelerator.end_training()

    def skipped(self) -> dict:
        """For a record: how many clips all processes had to skip so far, and name -> reason of the new ones."""
        accelerator, mine = self.accelerator, self.loader.skipped
        met = torch.tensor(len(mine), device=accelerator.device)
        met, record = int(accelerator.reduce(met, "sum")), {}
        if met > self.met:  # maybe by several processes, each in an epoch of its own
            everyone = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
            new = {name: why for each in everyone for name, why in each.items() if name not in self.named}
            self.named |= new.keys()
            record = {"skipped": new} if new else {}
        self.met = met
        return {"clips_skipped": len(self.named), **record}

    def log(self, record: dict) -> None:
        """One line of metrics.jsonl, and the same numbers to the tracker."""
        if self.accelerator.is_main_process:
            self.metrics.append(record)
            self.accelerator.log(flat(record), step=record["total_step"])


def check_processes(accelerator: Accelerator) -> None:
    """Every process that was launched must be known to Accelerate, and none may shard what a checkpoint has to hold."""
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


@contextmanager
def waiting_for_others(deadline: float) -> Iterator[None]:
    """Says in plain words that another process is gone.

    Raises:
        RuntimeError: another process ended, or did not come to the same point within `deadline` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "pair closure" in text):
            raise RuntimeError(
                f"another process ended, or did not get here in training.deadline={deadline:g} seconds; "
                f"what it said last tells why. Started again, the run goes on from its last checkpoint ({text})."
            ) from error
        raise
