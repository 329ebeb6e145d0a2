"""The pretraining loop: phase after phase, step after step.

Every random draw of a step comes from a seed made of (seed, phase, step, process), never from what earlier steps left
behind, so that a resumed run and a replayed step draw the same numbers.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite

import torch
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from .arguments import PretrainRecipe
from .checkpoints import Checkpoint
from .failures import save_failure
from .memory import shared_with_workers
from .metrics import codebook_metrics, mean_losses, stage_predictions
from .parameters import parameter_groups
from .phases import Phase
from .run import Run, waiting_for_others
from .seeds import seed_from
from .steps import Step, draw_step, total_loss, weighted_losses

logger = logging.getLogger(__name__)


# What `pretrain` enters while it takes steps: it gives a function that tells whether to stop.
Stop = AbstractContextManager[Callable[[], bool]]


def pretrain(recipe: PretrainRecipe, dataset=None, stop: Stop | None = None) -> bool:
    """Runs a recipe's phases and writes checkpoints/, encoder-iterK/, final/ and metrics.jsonl to its `output_dir`.

    Args:
        recipe: what to do.
        dataset: a dataset in hand instead of `recipe.data.dataset`, in every process the same: a `datasets.Dataset` or
            `IterableDataset`, a dictionary of them by split, or a list of arrays; see `data.in_hand.take_in_hand`.
        stop: entered while steps are taken. Once the function that it gives returns True, in any process, the run ends
            after the step at hand and a checkpoint. The `bridle` commands pass one that listens to SIGTERM and SIGINT.

    Returns:
        True when the run is finished, False when it was stopped.

    Raises:
        FloatingPointError: batch, loss or gradient held NaN or inf; `output_dir`/failure/ holds the step.
        RuntimeError: another process ended or hangs, or too many clips cannot be used.
        OSError: a checkpoint could not be written; those before it are intact.
        ValueError: a checkpoint that does not fit the recipe, a finished run of another recipe in `output_dir`, or
            processes that do not know of each other.
    """
    with waiting_for_others(recipe.training.deadline):
        run = Run(recipe, dataset)
        checkpoint = run.find_start()
        if run.is_finished(checkpoint):
            logger.info("this run is finished; its model is in %s", run.folder / "final")
            return True
        run.begin(checkpoint)
        logger.info("%s", ", ".join(f"{phase.name}: {phase.steps} steps" for phase in run.schedule))
        # Until here, where a cache is written perhaps, a signal ends the process.
        with stop or nullcontext(lambda: False) as run.asked_to_stop, shared_with_workers():
            for phase in run.schedule[checkpoint.phase if checkpoint else 0 :]:
                if checkpoint is None or (checkpoint.phase, checkpoint.step) < (phase.index, phase.steps):
                    checkpoint = train_phase(run, phase, checkpoint)
                    if run.stopped:
                        logger.info("stopped after step %d of %s; resume=auto goes on", checkpoint.step, phase.name)
                        break
                run.export(phase, checkpoint)
        run.end()
        return not run.stopped


def train_phase(run: Run, phase: Phase, checkpoint: Checkpoint | None) -> Checkpoint:
    """Takes the steps of a phase that the checkpoint has not. Returns the checkpoint of its end, or of a stop."""
    accelerator, seed, training = run.accelerator, run.recipe.seed, run.recipe.training
    resumed = checkpoint is not None and checkpoint.phase == phase.index
    first = checkpoint.step if resumed else 0

    model = run.build_model(phase, checkpoint).to(accelerator.device)
    phase.set_modes_(model)
    loader = Waiting(run.loader)
    if not resumed:
        phase.start_(model, loader, torch.Generator().manual_seed(seed_from(seed, phase.index)))
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    groups = parameter_groups(model, phase.learning_rate, training.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=training.betas, fused=True)
    # Most steps of a joint phase leave the tokenizer out.
    run.ddp.find_unused_parameters = phase.kind == "joint"
    bare = model
    model, optimizer = accelerator.prepare(model, optimizer)
    if resumed:
        checkpoint.load_optimizer_(model, optimizer.optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    bar = tqdm(total=phase.steps, initial=first, desc=phase.name, disable=not accelerator.is_main_process)
    clock = Clock(loader, first)
    micros, masks = training.gradient_accumulation_steps, training.masks_per_sample

    def draw(number: int) -> Step:
        place = (seed, phase.index, number, accelerator.process_index)
        return draw_step(bare, loader, accelerator, place, phase.loss_at(number), micros, masks)

    upcoming = None
    for number in range(first, phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate_at(number)

        done = number + 1
        due = done % training.checkpoint_steps == 0 or done == phase.steps
        step = upcoming or draw(number)
        taken = forward_backward(run, model, bare, step)
        # While an accelerator computes, the next step is drawn. What is due to be saved is saved before data can fail,
        # and a run that is stopped goes on from the position before.
        position = run.loader.state_dict()
        upcoming = None if due else draw(done)
        verdict = judge(run, step, taken)
        if verdict.reason is None:
            # Codebooks first: they look at numbers on the host, for which it should not wait until the weights moved.
            if taken.outputs[-1].quantizer_stats is not None:
                bare.tokenizer.update_(add_up([output.quantizer_stats for output in taken.outputs]))
            optimizer.step()
        optimizer.zero_grad()
        if verdict.reason is None:
            generator = torch.Generator().manual_seed(seed_from(seed, phase.index, number))  # the same on all processes
            codes_reset = phase.after_step_(bare, step.batches, number, generator)
        else:
            leave_out(run, phase, model, bare, number, step, verdict.reason)

        bar.update()
        if verdict.reason is None and (done == 1 or done % training.logging_steps == 0 or done == phase.steps):
            record = {
                "phase": phase.name,
                "phase_index": phase.index,
                "step": done,
                "total_step": sum(earlier.steps for earlier in run.schedule[: phase.index]) + done,
                "loss": verdict.loss,
                "losses": mean_losses(taken.losses, accelerator),
                **stage_predictions(taken.outputs[-1], accelerator),
                "codebooks": codebook_metrics(bare, taken.outputs[-1], step.batches[-1], accelerator),
                "codes_reset": codes_reset,
                "lr": phase.learning_rate_at(number),
                "grad_norm": verdict.norm,
                "steps_skipped": run.steps_skipped,
                **run.skipped(),
                **clock.read(training.batch_size * micros * accelerator.num_processes, done),
            }
            run.log(record)
            bar.set_postfix(loss=f"{verdict.loss:.3f}", refresh=False)
        del taken  # its logits would stay through the next step
        if due or verdict.stop:
            checkpoint = run.save(phase, done, model, optimizer, bare, position)
        if verdict.stop:
            break
    bar.close()
    accelerator.free_memory()
    return checkpoint


@dataclass
class Taken:
    """What the passes of a step are to give, once the device has come so far: outputs and weighted losses of the
    micro-batches, the loss () of this process, and the length () of the gradient before clipping."""

    outputs: list
    losses: list[dict]
    loss: torch.Tensor
    norm: torch.Tensor


def forward_backward(run: Run, model, bare, step: Step) -> Taken:
    """The forward and backward passes of a step, up to clipped gradients; changes neither weights nor codebooks."""
    accelerator, outputs, weighted, parts = run.accelerator, [], [], []
    for micro, inputs in enumerate(step.inputs(accelerator.device)):
        last = micro + 1 == len(step.batches)
        with nullcontext() if last else accelerator.no_sync(model):
            outputs.append(model(**inputs))
            weighted.append(weighted_losses(outputs[-1], step.weights[micro]))
            parts.append(total_loss(weighted[-1], step.loss, bare.config.joint_tokenizer_weight))
            accelerator.backward(parts[-1])
    norm = accelerator.clip_grad_norm_(model.parameters(), run.recipe.training.max_grad_norm or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return Taken(outputs, weighted, torch.stack(parts).detach().float().sum(), norm)


@dataclass
class Verdict:
    """On a step: `loss` is the mean over processes, `norm` the length of the gradient before clipping, `stop` whether
    any process was asked to stop, and `reason` tells why the step is no good. All processes hear the same."""

    loss: float
    norm: float
    stop: bool
    reason: str | None = None


def judge(run: Run, step: Step, taken: Taken) -> Verdict:
    """Waits for the passes of a step: the one time in a step that the host has to, since no bad step may be taken."""
    asked = torch.full_like(taken.loss, run.asked_to_stop())
    means = run.accelerator.reduce(torch.stack([taken.loss, asked]), "mean")
    loss, asked, norm, bad = torch.cat([means, torch.stack([taken.norm, step.bad])]).tolist()
    verdict = Verdict(loss, norm, stop=asked > 0)
    run.stopped = verdict.stop
    # In fp16 the loss scaler looks after gradients that overflow.
    if bad:
        verdict.reason = "a batch holds NaN or inf"
    elif not isfinite(loss) or not (isfinite(norm) or run.recipe.training.mixed_precision == "fp16"):
        verdict.reason = f"the loss is {loss} and the gradient norm {norm}"
    return verdict


def leave_out(run: Run, phase: Phase, model, bare, number: int, step: Step, reason: str) -> None:
    """Saves a step that went wrong. Raises a `FloatingPointError` unless the recipe lets the run skip it."""
    accelerator, allowed = run.accelerator, run.recipe.training.skip_bad_steps
    folder = save_failure(run.folder / "failure", accelerator, model, bare, phase, number, step, reason)
    run.steps_skipped += 1
    if run.steps_skipped <= allowed:
        logger.warning("skipped step %d of %s: %s; saved in %s", number + 1, phase.name, reason, folder)
        if accelerator.scaler is not None:
            accelerator.scaler.update()  # it has seen gradients, and takes no others before this
        return
    raise FloatingPointError(
        f"step {number + 1} of {phase.name}: {reason}. `python examples/replay_step.py {folder}` takes it again "
        f"and tells where. Look at the batch first; a lower learning rate or mixed_precision=no helps where it is "
        f"sound, and training.skip_bad_steps={run.steps_skipped} leaves it out."
    )


class Waiting(Iterator):
    """The batches of a loader; keeps the seconds spent waiting for them."""

    def __init__(self, loader: Iterator[dict]):
        self.loader, self.waited = loader, 0.0

    def __next__(self) -> dict[str, torch.Tensor]:
        start = time.perf_counter()
        batch = next(self.loader)
        self.waited += time.perf_counter() - start
        return batch


class Clock:
    """Speed, and share of the time spent waiting for data, since the last reading."""

    def __init__(self, loader: Waiting, step: int):
        self.loader, self.last = loader, (time.perf_counter(), loader.waited, step)

    def read(self, clips_per_step: int, step: int) -> dict[str, float]:
        now = (time.perf_counter(), self.loader.waited, step)
        elapsed, waited, steps = (new - old for new, old in zip(now, self.last, strict=True))
        self.last = now
        return {"clips_per_second": clips_per_step * steps / elapsed, "data_wait": waited / elapsed}


def add_up(stats: list[dict]) -> dict[str, torch.Tensor]:
    """Sum of codebook statistics over the micro-batches of a step."""
    return {name: sum(each[name] for each in stats) for name in stats[0]}
