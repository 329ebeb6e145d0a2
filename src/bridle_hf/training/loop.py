"""The pretraining loop: phase after phase, step after step.

Every random draw of a step comes from a seed made of (seed, phase, step, process), never from what earlier steps left
behind, so that a resumed run and a replayed step draw the same numbers.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from math import isfinite, prod

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..modeling_bridle import BridleForPreTraining
from .arguments import PretrainRecipe
from .checkpoints import Checkpoint, random_state
from .metrics import codebook_metrics, mean_losses, stage_predictions
from .parameters import parameter_groups
from .phases import Phase
from .run import Run, seed_from, stop_signals

logger = logging.getLogger(__name__)


def pretrain(recipe: PretrainRecipe) -> bool:
    """Runs a recipe's phases and writes checkpoints/, encoder-iterK/, final/ and metrics.jsonl to its `output_dir`.

    Returns:
        True when the run is finished, False when SIGTERM or SIGINT ended it after a step and a checkpoint.

    Raises:
        FloatingPointError: the loss or the gradient became NaN or inf; `output_dir`/failure/ holds batch and step.
        ValueError: a checkpoint that does not fit the recipe, or processes that do not know of each other.
    """
    with stop_signals() as stop:
        run = Run(recipe, stop)
        checkpoint = run.find_start()
        if run.is_finished(checkpoint):
            logger.info("this run is finished; its model is in %s", run.folder / "final")
            return True
        run.begin(checkpoint)
        logger.info("%s", ", ".join(f"{phase.name}: {phase.steps} steps" for phase in run.schedule))
        for phase in run.schedule[checkpoint.phase if checkpoint else 0 :]:
            if checkpoint is None or (checkpoint.phase, checkpoint.step) < (phase.index, phase.steps):
                checkpoint = train_phase(run, phase, checkpoint)
                if stop:
                    logger.info("stopped after step %d of %s; resume=auto goes on", checkpoint.step, phase.name)
                    break
            run.export(phase, checkpoint)
        run.accelerator.end_training()
        return not stop


def train_phase(run: Run, phase: Phase, checkpoint: Checkpoint | None) -> Checkpoint:
    """Takes the steps of a phase that the checkpoint has not. Returns the checkpoint of its end, or of a stop."""
    accelerator, seed, training = run.accelerator, run.recipe.seed, run.recipe.training
    resumed = checkpoint is not None and checkpoint.phase == phase.index
    first = checkpoint.step if resumed else 0

    model = run.build_model(phase, checkpoint).to(accelerator.device)
    phase.set_modes_(model)
    batches = Batches(run.loader, accelerator.device)
    if not resumed:
        phase.start_(model, batches, torch.Generator().manual_seed(seed_from(seed, phase.index)))
    groups = parameter_groups(model, phase.learning_rate, training.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=training.betas, fused=True)
    # Most steps of a joint phase leave the tokenizer out.
    run.ddp.find_unused_parameters = phase.kind == "joint"
    bare = model
    model, optimizer = accelerator.prepare(model, optimizer)
    if resumed:
        checkpoint.load_optimizer_(model, optimizer.optimizer)

    bar = tqdm(total=phase.steps, initial=first, desc=phase.name, disable=not accelerator.is_main_process)
    clock = Clock(batches, first)
    for step in range(first, phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate_at(step)

        outputs = []
        for micro in range(training.gradient_accumulation_steps):
            batch = next(batches)
            # After the batch: a loader that has just been opened takes a number for itself.
            torch.manual_seed(seed_from(seed, phase.index, step, micro, accelerator.process_index))
            noise = draw_noise(bare, batch, training.masks_per_sample)
            last = micro + 1 == training.gradient_accumulation_steps
            with nullcontext() if last else accelerator.no_sync(model):
                try:
                    output = model(**batch, noise=noise, phase=phase.loss_at(step))
                except ValueError as error:  # the quantizer refuses NaN before there is a loss
                    fail(run, phase, step, bare, batch, noise, str(error))
                accelerator.backward(output.loss / training.gradient_accumulation_steps)
            outputs.append(output)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm or float("inf")))

        loss, stop = agree(run, outputs)
        # In fp16 the loss scaler looks after gradients that overflow.
        if not isfinite(loss) or not (isfinite(norm) or training.mixed_precision == "fp16"):
            fail(run, phase, step, bare, batch, noise, f"the loss is {loss} and the gradient norm {norm}")
        optimizer.step()
        optimizer.zero_grad()
        if outputs[-1].quantizer_stats is not None:
            bare.tokenizer.update_(add_up([output.quantizer_stats for output in outputs]))
        generator = torch.Generator().manual_seed(seed_from(seed, phase.index, step))  # the same on all processes
        codes_reset = phase.after_step_(bare, batch, step, generator)

        done = step + 1
        bar.update()
        if done == 1 or done % training.logging_steps == 0 or done == phase.steps:
            record = {
                "phase": phase.name,
                "phase_index": phase.index,
                "step": done,
                "total_step": sum(earlier.steps for earlier in run.schedule[: phase.index]) + done,
                "loss": loss,
                "losses": mean_losses(outputs, accelerator),
                **stage_predictions(output, accelerator),
                "codebooks": codebook_metrics(bare, output, batch, accelerator),
                "codes_reset": codes_reset,
                "lr": phase.learning_rate_at(step),
                "grad_norm": norm,
                "clips_skipped": len(run.loader.skipped),
                **clock.read(training.batch_size * len(outputs) * accelerator.num_processes, done),
            }
            run.log(record)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if done % training.checkpoint_steps == 0 or done == phase.steps or stop:
            checkpoint = run.save(phase, done, model, optimizer, bare)
        if stop:
            break
    bar.close()
    accelerator.free_memory()
    return checkpoint


class Batches(Iterator):
    """Batches of a loader on the device; keeps the seconds spent waiting for them."""

    def __init__(self, loader: Iterator[dict], device: torch.device):
        self.loader, self.device, self.waited = loader, device, 0.0

    def __next__(self) -> dict[str, torch.Tensor]:
        start = time.perf_counter()
        batch = {name: value.to(self.device, non_blocking=True) for name, value in next(self.loader).items()}
        self.waited += time.perf_counter() - start
        return batch


class Clock:
    """Speed, and share of the time spent waiting for data, since the last reading."""

    def __init__(self, batches: Batches, step: int):
        self.batches, self.last = batches, (time.perf_counter(), batches.waited, step)

    def read(self, clips_per_step: int, step: int) -> dict[str, float]:
        now = (time.perf_counter(), self.batches.waited, step)
        elapsed, waited, steps = (new - old for new, old in zip(now, self.last, strict=True))
        self.last = now
        return {"clips_per_second": clips_per_step * steps / elapsed, "data_wait": waited / elapsed}


def draw_noise(model: BridleForPreTraining, batch: dict, masks: int) -> torch.Tensor:
    """Uniform noise (masks * B, N) for the masks, drawn on the CPU so that it is the same for every kind of device."""
    values = batch[model.main_input_name]
    patches = prod(model.bridle.embeddings.patch_embeddings.grid(values))
    return torch.rand(masks * len(values), patches).to(values.device)


def add_up(stats: list[dict]) -> dict[str, torch.Tensor]:
    """Sum of codebook statistics over the micro-batches of a step."""
    return {name: sum(each[name] for each in stats) for name in stats[0]}


def agree(run: Run, outputs: list) -> tuple[float, bool]:
    """What every process knows after a step: its mean loss over all of them, and whether any was asked to stop."""
    loss = torch.stack([output.loss.detach().float() for output in outputs]).mean()
    both = torch.stack([loss, loss.new_tensor(bool(run.stop))])
    loss, asked = run.accelerator.reduce(both, "mean").tolist()
    if asked and not run.stop:
        run.stop.append("another process")
    return loss, bool(asked)


def fail(run: Run, phase: Phase, step: int, bare, batch: dict, noise: torch.Tensor, reason: str) -> None:
    """Saves what is needed to look into a step that went wrong and ends the run before the step touches the weights."""
    folder, rank = run.folder / "failure", run.accelerator.process_index
    folder.mkdir(parents=True, exist_ok=True)
    details = {"phase": phase.name, "step": step, "loss": phase.loss_at(step), "reason": reason}
    (folder / f"rank-{rank}.json").write_text(json.dumps(details, indent=1))
    torch.save({"batch": batch, "noise": noise, "random": random_state(), **details}, folder / f"rank-{rank}.pt")
    weights = {name: value.contiguous() for name, value in bare.state_dict().items()}
    save_file(weights, folder / f"rank-{rank}.safetensors")
    raise FloatingPointError(
        f"step {step + 1} of {phase.name}: {reason}. Batch, masks, weights and random state are in {folder}. "
        "Look at the batch first; a lower learning rate or mixed_precision=no helps where it is sound."
    )
