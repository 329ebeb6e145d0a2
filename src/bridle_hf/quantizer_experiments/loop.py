"""The training of one row of a table, which goes on from its last checkpoint.

Which clips a step takes, and what it draws at random, follows from (seed, step, process), never from what earlier steps
left behind.
"""

import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from math import inf, isfinite
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..recipe_reader import changed_keys
from ..training.checkpoints import drop_later_, find_checkpoint, save_checkpoint
from ..training.parameters import parameter_groups
from ..training.phases import cosine, start_codebooks_
from ..training.seeds import seed_from

logger = logging.getLogger(__name__)

# Steps between looks at the loss, each of which waits for the device.
LOOK_STEPS = 50


def train(recipe, method, folder: Path, accelerator: Accelerator) -> tuple[torch.nn.Module, float]:
    """Takes the steps of a method that the newest checkpoint in `folder` has not.

    Args:
        recipe: a `TableRecipe`; method: one of its `methods`.

    Returns:
        The model in eval mode, and the minutes of training, those before the checkpoint included.

    Raises:
        FloatingPointError: the loss or the length of the gradient became NaN or inf. Checkpoints are from before.
        ValueError: the checkpoint is of another model, or there are too few clips for a step.
    """
    described, clips = recipe.describe(method), recipe.open_clips(train=True)
    bare = recipe.build(method).to(accelerator.device)
    quantizer, checkpoint, first, earlier = recipe.quantizer_of(bare), find_checkpoint(folder), 0, 0.0
    if checkpoint is None:
        vectors = (recipe.vectors(bare, batch) for batch in training_batches(recipe, clips, accelerator, 0))
        with torch.no_grad():
            start_codebooks_(quantizer, vectors, torch.Generator().manual_seed(recipe.seed))
    else:
        try:
            bare.load_state_dict(checkpoint.weights())
        except RuntimeError as error:
            raise ValueError(f"{checkpoint.path} does not fit the recipe; remove it to start over: {error}") from error
        first, earlier = checkpoint.step, checkpoint.state["minutes"]
        logger.info("%s goes on from %s", method.name, checkpoint.path)
        before = yaml.safe_load((checkpoint.path / "recipe.yaml").read_text())
        if changed := changed_keys(before, described):
            logger.warning("the recipe has changed since: %s", ", ".join(changed))
        if accelerator.is_main_process:
            drop_later_(folder, checkpoint)
    rate = method.learning_rate or recipe.learning_rate
    decay = recipe.weight_decay if method.weight_decay is None else method.weight_decay
    optimizer = torch.optim.AdamW(parameter_groups(bare, rate, decay), betas=recipe.betas)
    model, optimizer = accelerator.prepare(bare.train(), optimizer)
    if checkpoint is not None:
        checkpoint.load_optimizer_(model, optimizer.optimizer)

    start = time.perf_counter()
    batches = training_batches(recipe, clips, accelerator, first)
    bar = tqdm(
        total=recipe.steps, initial=first, desc=method.name, disable=not accelerator.is_main_process, mininterval=5
    )
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * share_at(step, recipe)
        batch = next(batches)
        torch.manual_seed(seed_from(recipe.seed, step, accelerator.process_index, 1))  # collate has the one without 1
        with accelerator.autocast():
            loss, output = recipe.loss(model, bare, batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm or inf)
        optimizer.step()
        optimizer.zero_grad()
        if output.stats is not None:
            quantizer.update_(output.stats)
        done = step + 1
        due = done % recipe.checkpoint_steps == 0 and done < recipe.steps
        if due or done % LOOK_STEPS == 0 or done == recipe.steps:
            loss, norm = accelerator.reduce(torch.stack([loss.detach().float(), norm]), "mean").tolist()
            if not isfinite(loss + norm):
                raise FloatingPointError(
                    f"{method.name}: at step {done} the loss is {loss} and the gradient norm {norm}; a lower "
                    "learning_rate, max_grad_norm or mixed_precision=no may help."
                )
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update()
        if due:
            minutes = earlier + (time.perf_counter() - start) / 60
            save_checkpoint(
                folder, accelerator, model, optimizer,
                phase=0, step=done, state={"minutes": minutes}, data={}, recipe=yaml.safe_dump(described), keep=1,
            )  # fmt: skip
    bar.close()
    return bare.eval(), earlier + (time.perf_counter() - start) / 60


def share_at(step: int, recipe) -> float:
    """Share of the learning rate at a step (from 0): a cosine from 1 to `final_share`."""
    return cosine(1.0, recipe.final_share, step / recipe.steps)


def training_batches(recipe, clips, accelerator: Accelerator, first: int) -> Iterator[dict]:
    """What this process takes at step `first` and at those after it, on its device, without end."""
    steps = Steps(
        len(clips),
        recipe.batch_size,
        recipe.seed,
        first,
        accelerator.process_index,
        accelerator.num_processes,
    )
    for batch in build_loader(recipe, clips, steps, train=True):
        yield send_to_device(batch, accelerator.device)


def ordered_batches(recipe, device: torch.device) -> Iterator[dict]:
    """The clips of the test split in their order, on a device."""
    clips = recipe.open_clips(train=False)
    numbers = [(number, seed_from(number)) for number in range(len(clips))]
    lists = [numbers[start : start + recipe.batch_size] for start in range(0, len(clips), recipe.batch_size)]
    for batch in build_loader(recipe, clips, lists, train=False):
        yield send_to_device(batch, device)


class Steps:
    """The clips of every step of a process, from step `first` on: lists of (number of the clip, seed of the step).

    Each epoch goes through all clips in an order of its own, but for a rest too small for a step of all processes.

    Raises:
        ValueError: too few clips for one step.
    """

    def __init__(self, num_clips: int, batch_size: int, seed: int, first: int, rank: int, num_processes: int):
        self.num_clips, self.batch_size, self.seed, self.first = num_clips, batch_size, seed, first
        self.rank, self.num_processes = rank, num_processes
        self.steps_of_epoch = num_clips // (batch_size * num_processes)
        if self.steps_of_epoch == 0:
            raise ValueError(
                f"the training split has {num_clips} clips; a step takes batch_size={batch_size} on each of "
                f"{num_processes} processes."
            )

    def __iter__(self):
        for step in count(self.first):
            epoch, place = divmod(step, self.steps_of_epoch)
            if step == self.first or place == 0:
                order = np.random.default_rng(seed_from(self.seed, epoch)).permutation(self.num_clips)
            start = (place * self.num_processes + self.rank) * self.batch_size
            seed = seed_from(self.seed, step, self.rank)
            yield [(int(number), seed) for number in order[start : start + self.batch_size]]


class Seeded(Dataset):
    """Clips by (number, seed), which come back with their seed."""

    def __init__(self, clips):
        self.clips = clips

    def __getitem__(self, item: tuple[int, int]):
        number, seed = item
        return self.clips[number], seed


def build_loader(recipe, clips, steps, train: bool) -> DataLoader:
    """Batches of `recipe.collate`, one for each list of `steps`."""
    collate = partial(collate_seeded, recipe, train)
    return DataLoader(Seeded(clips), batch_sampler=steps, num_workers=recipe.data.num_workers, collate_fn=collate)


def collate_seeded(recipe, train: bool, pairs: list[tuple[dict, int]]) -> dict[str, torch.Tensor]:
    examples, seeds = zip(*pairs, strict=True)
    return recipe.collate(list(examples), seeds[0], train)
