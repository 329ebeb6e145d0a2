"""Checkpoints: one folder each, written atomically, with a manifest that detects damage.

    checkpoints/phase-00-step-00000500/
        model.safetensors        weights and codebooks
        optimizer.safetensors    moments of AdamW by parameter name, its settings as JSON in the header
        rank-0.json, ...         of every process: position in the data, state of the random generators
        state.json               phase, step, learning rate, number of processes, minutes
        recipe.yaml              the recipe of the run
        manifest.json            size and sha256 of the files above

Nothing in them is pickled. The learning rate and the random numbers of a step follow from (seed, phase, step), so phase
and step are the whole state of the scheduler.
"""

import json
import logging
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ..files import partial_of, remove, sha256, whole_folder

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Whole tensors on the CPU of the first process, under the names of the bare model, however the model is wrapped.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
NAME = re.compile(r"phase-(\d+)-step-(\d+)")
UNFINISHED = re.compile(r"\.phase-\d+-step-\d+\.(partial|old)")  # what `put_in_place` leaves when it is killed
OF_EVERY_CHECKPOINT = {"model.safetensors", "optimizer.safetensors", "state.json", "recipe.yaml"}


class CheckpointError(ValueError):
    """A checkpoint is damaged, or it does not fit the run that is to be resumed from it."""


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint folder and the place in the run it was taken at: `step` steps of task `task` are done."""

    path: Path
    task: int
    step: int
    state: dict

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model.safetensors")

    def rank_state(self, rank: int) -> dict:
        return json.loads((self.path / f"rank-{rank}.json").read_text())

    def load_optimizer_(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        path, state = self.path / "optimizer.safetensors", {}
        with safe_open(path, "pt") as file:
            groups = json.loads(file.metadata()["param_groups"])
        for name, value in load_file(path).items():
            parameter, key = name.rsplit("/", 1)
            state.setdefault(parameter, {})[key] = value
        saved = {"state": state, "param_groups": groups}
        try:
            set_optimizer_state_dict(model, optimizer, saved, options=StateDictOptions(full_state_dict=True))
        except KeyError as error:
            raise CheckpointError(
                f"{path} is of another optimizer than the run's ({error} is missing). Within a phase "
                "training.optimizer stays as it was."
            ) from error


def checkpoint_name(task: int, step: int) -> str:
    return f"phase-{task:02d}-step-{step:08d}"


def place_of(path: Path) -> tuple[int, int] | None:
    """The task and step in a checkpoint's name; None for any other name, such as that of a backup beside it."""
    found = NAME.fullmatch(path.name)
    place = tuple(map(int, found.groups())) if found else None
    return place if place is not None and checkpoint_name(*place) == path.name else None


def save_checkpoint(folder, accelerator, model, optimizer, *, task, step, state, data, recipe, keep) -> Path:
    """Writes a checkpoint, then removes the oldest. Every process must call it; processes share the file system.

    Args:
        folder: `checkpoints/` of the run.
        model, optimizer: as prepared by the accelerator.
        state: further JSON values for state.json.
        data: this process's position in the data.
        recipe: the recipe as YAML.
        keep: how many of the newest checkpoints stay.
    """
    target = Path(folder) / checkpoint_name(task, step)
    weights = get_model_state_dict(model, options=WHOLE)
    moments = get_optimizer_state_dict(model, optimizer.optimizer, options=WHOLE)
    with folder_written_beside(target, accelerator, manifest=True) as beside:
        rank_state = {"data": data, "random": random_state()}
        (beside / f"rank-{accelerator.process_index}.json").write_text(json.dumps(rank_state))
        if accelerator.is_main_process:
            save_file(contiguous(weights), beside / "model.safetensors")
            tensors = {f"{name}/{key}": v for name, values in moments["state"].items() for key, v in values.items()}
            groups = {"param_groups": json.dumps(moments["param_groups"])}
            save_file(contiguous(tensors), beside / "optimizer.safetensors", groups)
            state = {"phase": task, "step": step, "num_processes": accelerator.num_processes, **state}
            (beside / "state.json").write_text(json.dumps(state, indent=1))
            (beside / "recipe.yaml").write_text(recipe)
    if accelerator.is_main_process:
        prune_(target, keep)
    return target


@contextmanager
def folder_written_beside(target: Path, accelerator, manifest: bool = False) -> Iterator[Path]:
    """`whole_folder` for all processes: a folder to write into that takes the place of `target` once the block ends
    without an error.

    Every process must enter it. `manifest` adds size and sha256 of every file. After an error (a full disk) nothing is
    left of it.
    """
    partial, main = partial_of(target), accelerator.is_main_process
    with whole_folder(target) if main else nullcontext():
        accelerator.wait_for_everyone()
        yield partial
        accelerator.wait_for_everyone()
        if main and manifest:
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            entries = {str(path.relative_to(partial)): _fingerprint(path) for path in files}
            (partial / MANIFEST).write_text(json.dumps(entries, indent=1))
    accelerator.wait_for_everyone()


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoint folders, oldest first. Other names are left out."""
    return sorted((path for path in Path(folder).glob("phase-*") if place_of(path) and path.is_dir()), key=place_of)


def find_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The newest intact checkpoint of a run. Damaged ones are logged and skipped."""
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoint = open_checkpoint(path)
            if (checkpoint.task, checkpoint.step) == place_of(path):
                return checkpoint
            error = f"{path} was {checkpoint_name(checkpoint.task, checkpoint.step)} when it was written."
        except ValueError as reason:
            error = reason
        logger.warning("passing over a damaged checkpoint: %s", error)
    return None


def open_checkpoint(path: str | Path, verify: bool = True) -> Checkpoint:
    """Checks a checkpoint against its manifest.

    Args:
        verify: whether to read all of every file, and not only its size.

    Raises:
        CheckpointError: not a checkpoint, or a file of it is missing or not what was written.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} has no readable {MANIFEST}, so it is no whole checkpoint ({error}).") from error
    lists_files = isinstance(manifest, dict) and all(isinstance(about, dict) for about in manifest.values())
    if not lists_files or not OF_EVERY_CHECKPOINT <= manifest.keys():
        raise CheckpointError(
            f"{path / MANIFEST} holds {str(manifest)[:200]}; it takes size and sha256 of "
            f"{', '.join(sorted(OF_EVERY_CHECKPOINT))} and more."
        )
    for name, expected in manifest.items():
        found = _fingerprint(path / name, verify) if os.path.isfile(path / name) else {}
        if not found or any(expected.get(key) != value for key, value in found.items()):
            raise CheckpointError(f"{path / name} is {found or 'missing'}; the manifest says {expected}.")
    state = json.loads((path / "state.json").read_text())
    return Checkpoint(path, state["phase"], state["step"], state)


def prune_(newest: Path, keep: int) -> None:
    """Removes what is older than a checkpoint, except for the `keep` - 1 newest that are whole."""
    older = [path for path in list_checkpoints(newest.parent) if place_of(path) < place_of(newest)]
    whole = [path for path in older if _is_whole(path)]
    for path in set(older) - set(whole[max(0, len(whole) - keep + 1) :]):
        remove(path)


def _is_whole(path: Path) -> bool:
    try:
        return bool(open_checkpoint(path, verify=False))
    except ValueError:
        return False


def drop_later_(folder: str | Path, checkpoint: Checkpoint | None) -> None:
    """Remove checkpoints later than the one that a run resumes from (they are damaged or of an abandoned run), all of
    them where it starts from nothing, and unfinished ones of a killed process."""
    for path in list_checkpoints(folder):
        if checkpoint is None or place_of(path) > (checkpoint.task, checkpoint.step):
            remove(path)
    for path in Path(folder).glob(".phase-*"):
        if UNFINISHED.fullmatch(path.name):
            remove(path)


def contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as contiguous ones, which safetensors requires."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def random_state() -> dict:
    """State of the random generators of this process as JSON values."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "accelerator": torch.cuda.get_rng_state().numpy().tobytes().hex() if torch.cuda.is_available() else None,
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
    }


def set_random_state_(state: dict) -> None:
    """Restore the result of `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_from_hex(state["torch"]))
    if state["accelerator"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_hex(state["accelerator"]))


def _from_hex(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _fingerprint(path: Path, whole: bool = True) -> dict:
    """Size of a file and, if `whole`, the sha256 of what it holds."""
    size = {"size": path.stat().st_size}
    if not whole:
        return size
    return size | {"sha256": sha256(path)}
