"""One step: its batches, masks and seeds, and losses that are means over all patches of all processes.

A loss is a mean over patches. Micro-batches and processes hold different numbers of them where clips are padded, so
each loss is weighted with its share of the step's patches: n processes, or n micro-batches, take the step of one large
batch.

Nothing here waits for an accelerator: a step is drawn while the one before it is computed.
"""

from dataclasses import dataclass
from math import prod

import torch
from accelerate import Accelerator

from ..masking_bridle import PatchMask
from ..modeling_bridle import BridleForPreTraining
from .phases import valid_patches
from .seeds import seed_from


@dataclass
class Step:
    """What a process feeds to the model in one optimizer step, one entry a micro-batch.

    Attributes:
        batches: inputs of the model, on the CPU.
        masks: of the patches, a multiple of B rows, on the CPU.
        seeds: of the random generators before each forward pass.
        loss: the `phase` argument of `BridleForPreTraining.forward`.
        weights: (micro-batches, 2) of the encoder's and the tokenizer's loss, with which the mean over processes of the
            sum over micro-batches is the mean over all patches of the step.
        bad: () above 0 where a batch of any process holds NaN or inf.
    """

    batches: list[dict[str, torch.Tensor]]
    masks: list[PatchMask]
    seeds: list[int]
    loss: str
    weights: torch.Tensor
    bad: torch.Tensor

    def inputs(self, device: torch.device):
        """The keyword arguments of the model's forward passes. Seeds the random generators before each."""
        for batch, mask, seed in zip(self.batches, self.masks, self.seeds, strict=True):
            torch.manual_seed(seed)
            moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            yield moved | {"patch_mask": mask.to(device), "phase": self.loss}


def draw_step(
    model: BridleForPreTraining,
    loader,
    accelerator: Accelerator,
    place: tuple[int, ...],
    loss: str,
    count: int,
    masks: int,
) -> Step:
    """The next `count` batches of a loader with `masks` masks a clip, drawn for a place in the run.

    Every process must call it.
    """
    batches, drawn, seeds, counts, device = [], [], [], [], accelerator.device
    for micro in range(count):
        batch = next(loader)
        if batch.get("attention_mask", torch.zeros(())).all():
            del batch["attention_mask"]  # a GPU does not look whether there is padding, and calculates as if there were
        noise = draw_noise(model, batch, masks, seed_from(*place, micro, 1))
        mask = model.bridle.make_patch_mask(batch[model.main_input_name], batch.get("attention_mask"), noise)
        counts.append(count_patches(model, batch, mask))
        batches.append({name: pinned(value, device) for name, value in batch.items()})
        drawn.append(mask.map(lambda value: pinned(value, device)))
        seeds.append(seed_from(*place, micro))
    return Step(batches, drawn, seeds, loss, *weigh(torch.stack(counts), accelerator))


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In memory from which a GPU copies by itself, without the process waiting for it."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def draw_noise(model: BridleForPreTraining, batch: dict, masks: int, seed: int) -> torch.Tensor:
    """Uniform noise (masks * B, N) for the masks, drawn on the CPU so that it is the same for every kind of device."""
    values = batch[model.main_input_name]
    patches = prod(model.bridle.embeddings.patch_embeddings.grid(values))
    return torch.rand(masks * len(values), patches, generator=torch.Generator().manual_seed(seed))


def weigh(counts: torch.Tensor, accelerator: Accelerator) -> tuple[torch.Tensor, torch.Tensor]:
    """`Step.weights` and `Step.bad`, on the device, of (micro-batches, 3) of `count_patches`."""
    counts = pinned(counts, accelerator.device).to(accelerator.device, non_blocking=True)
    totals = accelerator.reduce(counts.sum(0), "sum")
    return counts[:, :2] * accelerator.num_processes / totals[:2].clamp(min=1), totals[2]


def count_patches(model: BridleForPreTraining, batch: dict, mask: PatchMask) -> torch.Tensor:
    """(3,): how many patches a batch's encoder loss and its tokenizer losses are means over; 1 if it has NaN or inf."""
    values, valid = batch[model.main_input_name], valid_patches(model, batch)
    predicted = mask.masked.numel() if mask.masked_valid is None else mask.masked_valid.sum()
    tokens = len(values) * mask.mask.shape[1] if valid is None else valid.sum()
    return torch.tensor([float(predicted), float(tokens), float(not torch.isfinite(values.sum()))])


def weighted_losses(output, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """The named losses of a forward pass, weighted with (2,) of `weigh`."""
    encoder, tokenizer = weights
    return {name: loss * (encoder if name == "encoder" else tokenizer) for name, loss in output.losses.items()}


def total_loss(losses: dict[str, torch.Tensor], loss: str, joint_tokenizer_weight: float) -> torch.Tensor:
    """What a step minimises, of (weighted) named losses."""
    if loss == "joint":
        return losses["encoder"] + joint_tokenizer_weight * losses["tokenizer"]
    return losses[loss]
