"""One step: its batches, masks and seeds, and losses that are means over all patches of all processes.

A loss is a mean over patches. Micro-batches and processes hold different numbers of them where clips are padded, so
each loss is weighted with its share of the step's patches: n processes, or n micro-batches, take the step of one large
batch.
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
        masks: of the patches, a multiple of B rows.
        seeds: of the random generators before each forward pass.
        loss: the `phase` argument of `BridleForPreTraining.forward`.
    """

    batches: list[dict[str, torch.Tensor]]
    masks: list[PatchMask]
    seeds: list[int]
    loss: str

    def inputs(self, device: torch.device):
        """The keyword arguments of the model's forward passes. Seeds the random generators before each."""
        for batch, mask, seed in zip(self.batches, self.masks, self.seeds, strict=True):
            torch.manual_seed(seed)
            moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            yield moved | {"patch_mask": mask.to(device), "phase": self.loss}


def draw_step(model: BridleForPreTraining, loader, place: tuple[int, ...], loss: str, count: int, masks: int) -> Step:
    """The next `count` batches of a loader with `masks` masks a clip, drawn for a place in the run."""
    step = Step([], [], [], loss)
    for micro in range(count):
        batch = next(loader)
        noise = draw_noise(model, batch, masks, seed_from(*place, micro, 1))
        step.batches.append(batch)
        step.seeds.append(seed_from(*place, micro))
        step.masks.append(
            model.bridle.make_patch_mask(batch[model.main_input_name], batch.get("attention_mask"), noise)
        )
    return step


def draw_noise(model: BridleForPreTraining, batch: dict, masks: int, seed: int) -> torch.Tensor:
    """Uniform noise (masks * B, N) for the masks, drawn on the CPU so that it is the same for every kind of device."""
    values = batch[model.main_input_name]
    patches = prod(model.bridle.embeddings.patch_embeddings.grid(values))
    return torch.rand(masks * len(values), patches, generator=torch.Generator().manual_seed(seed))


def weigh(model: BridleForPreTraining, step: Step, accelerator: Accelerator) -> tuple[torch.Tensor, bool]:
    """Every process must call it before its forward passes.

    Returns:
        (micro-batches, 2): weights of the encoder's and the tokenizer's loss, with which the mean over processes of the
        sum over micro-batches is the mean over all patches of the step; and whether any process's batch has NaN or inf.
    """
    counts = torch.stack([count_patches(model, *each) for each in zip(step.batches, step.masks, strict=True)])
    finite = all(torch.isfinite(batch[model.main_input_name].sum()) for batch in step.batches)
    mine = torch.cat([counts.sum(0), torch.tensor([0.0 if finite else 1.0])])
    encoder, tokenizer, bad = accelerator.reduce(mine.to(accelerator.device), "sum").tolist()
    totals = torch.tensor([encoder, tokenizer]).clamp(min=1)
    return counts * accelerator.num_processes / totals, bad > 0


def count_patches(model: BridleForPreTraining, batch: dict, mask: PatchMask) -> torch.Tensor:
    """(2,): how many patches a batch's encoder loss and its tokenizer losses are means over."""
    valid = valid_patches(model, batch)
    predicted = mask.masked.numel() if mask.masked_valid is None else mask.masked_valid.sum()
    tokens = len(batch[model.main_input_name]) * mask.mask.shape[1] if valid is None else valid.sum()
    return torch.tensor([float(predicted), float(tokens)])


def weighted_losses(output, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """The named losses of a forward pass, weighted with (2,) of `weigh`."""
    encoder, tokenizer = weights.tolist()
    return {name: loss * (encoder if name == "encoder" else tokenizer) for name, loss in output.losses.items()}


def total_loss(losses: dict[str, torch.Tensor], loss: str, joint_tokenizer_weight: float) -> torch.Tensor:
    """What a step minimises, of (weighted) named losses."""
    if loss == "joint":
        return losses["encoder"] + joint_tokenizer_weight * losses["tokenizer"]
    return losses[loss]
