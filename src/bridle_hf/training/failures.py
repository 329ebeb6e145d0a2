"""Files of a step with NaN or inf, which `replay.py` reads.

failure/phase-00-step-00000123/
    model.safetensors      weights and codebooks before the step
    recipe.yaml            the recipe of the run
    rank-0.safetensors     of every process: the inputs of its forward passes
    rank-0.json            of every process: their seeds, and what went wrong
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from ..files import remove
from ..masking_bridle import PatchMask
from ..recipe_reader import recipe_to_yaml
from .checkpoints import WHOLE, checkpoint_name, contiguous
from .task import Batch

KEPT = 3  # failures, each with a whole model


def save_failure(run, task, model, step, reason: str) -> Path:
    """Save the inputs of a failed step. Every process must call it. Returns the folder."""
    accelerator, folder = run.accelerator, run.folder / "failure" / checkpoint_name(task.index, step.number)
    rank = accelerator.process_index
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{micro}.{name}": v for micro, batch in enumerate(step.batches) for name, v in flat(batch).items()}
    save_file(contiguous(tensors), folder / f"rank-{rank}.safetensors")
    about = {"phase": task.name, "step": step.number, "reason": reason, "seeds": step.seeds}
    about |= {"counts": {name: float(count) for name, count in step.counts.items()}}
    about |= {"processes": accelerator.num_processes, "recipe": type(run.recipe).__name__}
    (folder / f"rank-{rank}.json").write_text(json.dumps(about, indent=1))
    state = get_model_state_dict(model, options=WHOLE)
    if accelerator.is_main_process:
        save_file(contiguous(state), folder / "model.safetensors")
        (folder / "recipe.yaml").write_text(recipe_to_yaml(run.recipe))
        for old in sorted(folder.parent.iterdir())[:-KEPT]:
            remove(old)
    return folder


def flat(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as a flat dict of tensors; those of a `PatchMask` are prefixed with its name."""
    tensors = {}
    for name, value in batch.items():
        if isinstance(value, PatchMask):
            tensors |= {f"{name}.{key}": tensor for key, tensor in vars(value).items() if tensor is not None}
        else:
            tensors[name] = value
    return tensors


def nested(tensors: dict[str, torch.Tensor]) -> Batch:
    """Inverse of `flat`."""
    batch, masks = {}, {}
    for name, tensor in tensors.items():
        outer, _, inner = name.partition(".")
        if inner:
            masks.setdefault(outer, {})[inner] = tensor
        else:
            batch[name] = tensor
    return batch | {name: PatchMask(**parts) for name, parts in masks.items()}
