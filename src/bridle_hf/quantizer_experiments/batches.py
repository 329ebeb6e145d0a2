"""The samples of the experiments in batches that are functions of their step.

Which samples a step takes, and what is random in them, follows from (seed, step, process), never from earlier steps.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from ..training.seeds import seed_from


class StepBatches(Iterator):
    """The training batches of one process, without end; their position is the number of steps taken.

    Args:
        recipe: a `TableRecipe`.
        seed: of the order of the samples and of what is random in them.
        rank, num_processes: this process and how many there are.

    Raises:
        ValueError: too few samples for one step.
    """

    def __init__(self, recipe, seed: int, rank: int = 0, num_processes: int = 1):
        self.recipe, self.samples = recipe, recipe.open_samples(train=True)
        self.steps_from = partial(Steps, len(self.samples), recipe.batch_size, seed, rank, num_processes)
        self.layout = {"samples": len(self.samples), "batch_size": recipe.batch_size, "seed": seed}
        self.step, self.batches = 0, None
        self.skipped: dict[str, str] = {}
        self.steps_from(0)  # says at once where there are too few

    def __next__(self) -> dict[str, torch.Tensor]:
        if self.batches is None:
            self.batches = iter(build_loader(self.recipe, self.samples, self.steps_from(self.step), train=True))
        batch = next(self.batches)
        self.step += 1
        return batch

    def state_dict(self) -> dict:
        return {"layout": self.layout, "step": self.step}

    def differs(self, state: dict) -> str:
        before = state["layout"]
        return ", ".join(f"{key}={before[key]}, now {now}" for key, now in self.layout.items() if before[key] != now)

    def load_state_dict(self, state: dict) -> None:
        self.step, self.batches = state["step"], None


def ordered_batches(recipe, device: torch.device, batch_size: int | None = None) -> Iterator[dict]:
    """The samples of the test split in their order, on a device; `recipe.batch_size` a batch unless given."""
    samples = recipe.open_samples(train=False)
    numbers = [(number, seed_from(number)) for number in range(len(samples))]
    size = recipe.batch_size if batch_size is None else batch_size
    lists = [numbers[start : start + size] for start in range(0, len(samples), size)]
    for batch in build_loader(recipe, samples, lists, train=False):
        yield send_to_device(batch, device)


class Steps:
    """The samples of every step of a process, from step `first` on: lists of (number of the sample, seed of the step).

    Each epoch goes through all samples in an order of its own, except a remainder too small for a step of all.

    Raises:
        ValueError: too few samples for one step.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int, num_processes: int, first: int):
        self.num_samples, self.batch_size, self.seed, self.first = num_samples, batch_size, seed, first
        self.rank, self.num_processes = rank, num_processes
        self.steps_of_epoch = steps_per_epoch(num_samples, batch_size, num_processes)

    def __iter__(self):
        for step in count(self.first):
            epoch, place = divmod(step, self.steps_of_epoch)
            if step == self.first or place == 0:
                order = np.random.default_rng(seed_from(self.seed, epoch)).permutation(self.num_samples)
            start = (place * self.num_processes + self.rank) * self.batch_size
            seed = seed_from(self.seed, step, self.rank)
            yield [(int(number), seed) for number in order[start : start + self.batch_size]]


def steps_per_epoch(num_samples: int, batch_size: int, num_processes: int) -> int:
    """Steps that a training split of `num_samples` makes.

    Raises:
        ValueError: not one.
    """
    if steps := num_samples // (batch_size * num_processes):
        return steps
    raise ValueError(
        f"the training split has {num_samples} samples; a step takes batch_size={batch_size} on each of "
        f"{num_processes} processes."
    )


class Seeded(Dataset):
    """Samples by (number, seed), which come back with their seed."""

    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, item: tuple[int, int]):
        number, seed = item
        return self.samples[number], seed


def build_loader(recipe, samples, steps, train: bool) -> DataLoader:
    """Batches of `recipe.collate`, one for each list of `steps`."""
    collate = partial(collate_seeded, recipe, train)
    return DataLoader(Seeded(samples), batch_sampler=steps, num_workers=recipe.data.num_workers, collate_fn=collate)


def collate_seeded(recipe, train: bool, pairs: list[tuple[dict, int]]) -> dict[str, torch.Tensor]:
    examples, seeds = zip(*pairs, strict=True)
    return recipe.collate(list(examples), seeds[0], train)
