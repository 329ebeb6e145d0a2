"""Steps with NaN or inf: what is written down about them, and how they are taken again.

failure/phase-00-step-00000123/
    model.safetensors      weights and codebooks before the step
    rank-0.safetensors     of every process: the micro-batches and their masks
    rank-0.json            of every process: their seeds, and what went wrong
    config.json            of the model
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from ..configuration_bridle import BridleConfig
from ..masking_bridle import PatchMask
from ..modeling_bridle import BridleForPreTraining
from .checkpoints import WHOLE, checkpoint_name, contiguous
from .phases import KINDS, Phase
from .steps import Step, total_loss, weighted_losses


def save_failure(
    folder: Path, accelerator: Accelerator, model, bare, phase: Phase, number: int, step: Step, reason: str
) -> Path:
    """Writes down step `number` (from 0) of a phase. Every process must call it. Returns the folder."""
    folder, rank = folder / checkpoint_name(phase.index, number), accelerator.process_index
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{micro}.{name}": v for micro, batch in enumerate(step.batches) for name, v in batch.items()}
    for micro, mask in enumerate(step.masks):
        tensors |= {f"{micro}.mask.{name}": value for name, value in vars(mask).items() if value is not None}
    save_file(contiguous(tensors), folder / f"rank-{rank}.safetensors")
    about = {"phase": phase.name, "kind": phase.kind, "step": number, "loss": step.loss, "reason": reason}
    about |= {"seeds": step.seeds, "weights": step.weights.tolist(), "processes": accelerator.num_processes}
    (folder / f"rank-{rank}.json").write_text(json.dumps(about, indent=1))
    state = get_model_state_dict(model, options=WHOLE)
    if accelerator.is_main_process:
        save_file(contiguous(state), folder / "model.safetensors")
        bare.config.save_pretrained(folder)
    return folder


def replay(folder: str | Path, rank: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """Takes the forward and backward passes of a saved step again, on the CPU in float32, for one of its processes.

    Returns:
        The losses of the step, name -> number, and the norm of every parameter's gradient, name -> number.
    """
    folder = Path(folder)
    about = json.loads((folder / f"rank-{rank}.json").read_text())
    tensors = load_file(folder / f"rank-{rank}.safetensors")
    model = BridleForPreTraining(BridleConfig.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    KINDS[about["kind"]].set_modes_(model)
    count = len(about["seeds"])
    batches = [{k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{i}.")} for i in range(count)]
    masks = [PatchMask(**{k[5:]: batch.pop(k) for k in list(batch) if k.startswith("mask.")}) for batch in batches]
    step = Step(batches, masks, about["seeds"], about["loss"], torch.tensor(about["weights"]), bad=torch.tensor(0.0))
    totals = {}
    for inputs, weights in zip(step.inputs(torch.device("cpu")), step.weights, strict=True):
        losses = weighted_losses(model(**inputs), weights)
        losses["loss"] = total_loss(losses, step.loss, model.config.joint_tokenizer_weight)
        losses["loss"].backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach())
    gradients = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    return totals, gradients
