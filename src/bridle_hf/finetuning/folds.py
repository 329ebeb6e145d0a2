"""Files of a fine-tuned fold, from which an interrupted run of the same recipe resumes.

fold-K/
    checkpoint-STEP/   Trainer's, from the end of an epoch; removed when the fold is done
    config.json, ...   the model, as soon as it is trained
    fold.json          the recipe that all of this follows from, and the scores once the fold is done
"""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..files import FolderLock, set_aside, write_whole
from ..recipe_reader import changed_keys

logger = logging.getLogger(__name__)

RECORD = "fold.json"
CHECKPOINTS = 20  # of a fold at most: where epochs take seconds, one after each would take as long as they do


class KeptFold:
    """The folder of one fold.

    Args:
        folder: fold-K/ in the recipe's `output_dir`.
        recipe: the `FinetuneRecipe`.
        model: the pretrained model that it names for this fold.
        dataset: fingerprint of a dataset that the caller built.
    """

    def __init__(self, folder: Path, recipe, model: str, dataset: str | None = None):
        self.lock = FolderLock(folder.with_name(f".{folder.name}.lock"), folder)  # outside, since `begin` may rename it
        self.folder, self.recipe = folder, describe(recipe, model) | ({"given_dataset": dataset} if dataset else {})

    def scores(self) -> dict[str, float] | None:
        """The scores of a fold that was completed with this recipe; otherwise None."""
        record = self._read()
        if record.get("recipe") != self.recipe or "scores" not in record:
            return None
        return {name: np.nan if value is None else value for name, value in record["scores"].items()}

    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint of this recipe; None to start from scratch."""
        if self._read().get("recipe") != self.recipe:
            return None
        whole = [path.parent for path in self.folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]  # it is written last
        return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)

    def begin(self) -> None:
        """Create the folder, in the main process only. A folder of another recipe is moved away."""
        before = self._read().get("recipe", {})
        if before == self.recipe:
            return
        if self.folder.exists():
            changed = ", ".join(changed_keys(before, self.recipe)) if before else f"there is no {RECORD}"
            old = set_aside(self.folder)
            logger.warning("%s is of another recipe (%s); it was moved to %s", self.folder, changed, old)
        self.folder.mkdir(parents=True)
        self._write({"recipe": self.recipe})

    def finish(self, scores: dict[str, float]) -> None:
        """Write the scores and delete the checkpoints, in the main process only."""
        self._write({"recipe": self.recipe, "scores": {name: finite(value) for name, value in scores.items()}})
        for path in self.folder.glob("checkpoint-*"):
            shutil.rmtree(path)

    def _read(self) -> dict:
        path = self.folder / RECORD
        return json.loads(path.read_text()) if path.is_file() else {}

    def _write(self, record: dict) -> None:
        write_whole(self.folder / RECORD, json.dumps(record, indent=1) + "\n")


def skip_epochs_done(checkpoint: Path, sampler: Sampler | None, steps: int) -> None:
    """Advance a sampler to the position of `checkpoint`; Trainer does so for its own samplers only.

    Raises:
        ValueError: a run of `steps` steps does not fit the checkpoint.
    """
    state = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME)
    if state.max_steps != steps:
        raise ValueError(
            f"{checkpoint} is of a run of {state.max_steps} steps and this one takes {steps}: start it with as many "
            "processes as before, or remove the checkpoint."
        )
    logger.info("going on from %s", checkpoint)
    for _ in range(round(state.epoch) if sampler else 0):
        next(iter(sampler))  # draws an epoch


def describe(recipe, model: str) -> dict:
    """What the scores of a fold follow from, as JSON values: not where files lie, how they are read, or other folds."""
    described = json.loads(json.dumps(asdict(recipe)))
    for key in ("output_dir", "folds"):
        del described[key]
    for key in ("cache_dir", "in_memory", "num_workers"):
        del described["data"][key]
    return described | {"model_files": digest(model)}


def digest(model: str) -> str:
    """Of the files of a model's folder, since pretraining may have put others there under the same name."""
    found = hashlib.sha256()
    for path in sorted(Path(model).glob("*")):
        if path.suffix in (".json", ".safetensors"):
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def finite(number: float) -> float | None:
    """A number for JSON, which has no infinity: None stands for it, as for the d-prime of a perfect ranking."""
    return float(number) if np.isfinite(number) else None
