"""Files of a fine-tuned fold, from which an interrupted run of the same recipe resumes.

fold-K/, final/ (the latter without scores and tables)
    checkpoint-STEP/   Trainer's, from the end of an epoch, and manifest.json; removed when the fold is done
    metrics.jsonl      the curves, one record per epoch
    logits.npy, *.csv  what it says of the test clips
    config.json, ...   the model, as soon as it is trained
    fold.json          the fold, the recipe and the data that all of this follows from; the scores and the epoch that
                       the weights are of once it is done

Trainer keeps the optimizer, the schedule and the random state of a checkpoint as pickles. They are read only if the
manifest says that they are what was written, and with torch's `weights_only=True`, which runs nothing that is in them.
"""

import hashlib
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..files import FolderLock, set_aside, sha256, share_files, write_whole
from ..recipe_reader import changed_keys
from ..saved_models import is_whole
from ..training.checkpoints import CheckpointError
from .validation import best_record

logger = logging.getLogger(__name__)

RECORD = "fold.json"
MANIFEST = "manifest.json"  # of a checkpoint: the sha256 of its files; written last
CHECKPOINTS = 20  # of a fold at most: where epochs take seconds, one after each would take as long as they do
KEPT = 2  # checkpoints that stay: the newest, and the one before in case that it is damaged
PLAIN = re.compile(r"[\w-]+(\.[\w-]+)*")
LONGEST = 60  # characters of a fold's value that its folder is called by


def folder_names(folds: Sequence) -> dict:
    """The name of the folder of each fold: fold-K, where K is its value as text.

    A value of the data never leads out of the folder that holds them: one that is no plain name, too long, or the same
    as another but for capitals gets what is plain of it and a hash.
    """
    alike = Counter(str(fold).casefold() for fold in folds)

    def name(text: str) -> str:
        plain = PLAIN.fullmatch(text) and ".old-" not in text and len(text) <= LONGEST
        if plain and alike[text.casefold()] == 1:
            return f"fold-{text}"
        mark = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        return f"fold-{re.sub(r'[^a-zA-Z0-9-]+', '_', text)[:LONGEST]}-{mark}"

    return {fold: name(str(fold)) for fold in folds}


class KeptFold:
    """The folder of one fold.

    Args:
        folder: fold-K/ in the recipe's `output_dir`.
        fold: the value of the fold; None for final/.
        recipe: the `FinetuneRecipe`.
        model: the pretrained model that it names for this fold.
        data: what was read, see `describe_data`.
        dataset: fingerprint of a dataset that the caller built.
    """

    def __init__(self, folder: Path, fold, recipe, model: str, data: dict, dataset: str | None = None):
        self.lock = FolderLock(folder.with_name(f".{folder.name}.lock"), folder)  # outside, since `begin` may rename it
        self.folder, self.fold = folder, fold
        self.recipe = describe(recipe, model) | {"data_read": data} | ({"given_dataset": dataset} if dataset else {})

    def scores(self) -> dict[str, float] | None:
        """The scores of the fold if it was completed with this recipe and its model is intact; otherwise None."""
        record = self._read()
        if record.get("recipe") != self.recipe or "scores" not in record or not is_whole(self.folder):
            return None
        return {name: np.nan if value is None else float(value) for name, value in record["scores"].items()}

    def epoch(self) -> int:
        """The epoch that the weights of a completed fold are of."""
        return self._read()["epoch"]

    def checkpoint(self) -> Path | None:
        """The newest whole checkpoint of this recipe; None to start from scratch. Removes later ones, which are damaged
        (or whose best one is) or were not finished. In the main process only."""
        if self._read().get("recipe") != self.recipe:
            return None
        for path in reversed(self._checkpoints()):
            if is_checkpoint(path) and all(map(is_checkpoint, self._best_of(path))):
                return path
            logger.warning("passing over %s, which is damaged or was not finished", path)
            shutil.rmtree(path)
        return None

    def begin(self) -> None:
        """Create the folder, in the main process only. A folder of another recipe is moved away."""
        before = self._read().get("recipe", {})
        if before == self.recipe:
            return
        if self.folder.exists():
            changed = ", ".join(changed_keys(before, self.recipe)) if before else f"there is no readable {RECORD}"
            old = set_aside(self.folder)
            logger.warning("%s is of another recipe (%s); it was moved to %s", self.folder, changed, old)
        self.folder.mkdir(parents=True)
        self._write({})

    def seal(self, step: int) -> None:
        """Write the manifest of the checkpoint of a step, then remove old ones. In the main process only."""
        path = self.folder / f"checkpoint-{step}"
        files = sorted(each for each in path.rglob("*") if each.is_file() and each.name != MANIFEST)
        write_whole(
            path / MANIFEST, json.dumps({str(each.relative_to(path)): sha256(each) for each in files}, indent=1)
        )
        newest = self._checkpoints()[-KEPT:]
        needed = {*newest, *(best for each in newest for best in self._best_of(each))}
        for old in set(self._checkpoints()) - needed:
            shutil.rmtree(old)

    def finish(self, scores: dict[str, float], epoch: int) -> None:
        """Write the scores and the epoch of the weights, and delete the checkpoints, in the main process only."""
        # of a measure that has no value and of one without bounds, the latter alone counts in the mean over folds
        kept = {name: str(value) if np.isinf(value) else finite(value) for name, value in scores.items()}
        self._write({"scores": kept, "epoch": epoch})
        for path in self._checkpoints():
            shutil.rmtree(path)
        share_files(self.folder)

    def _best_of(self, checkpoint: Path) -> list[Path]:
        """The checkpoint of the best epoch up to one, where the best is kept: none or one."""
        try:
            history = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME).log_history
        except (OSError, ValueError, TypeError):
            return []
        best = best_record(history) if self.recipe["training"]["keep"] == "best" else None
        return [checkpoint.with_name(f"checkpoint-{best['step']}")] if best else []

    def _checkpoints(self) -> list[Path]:
        """The folders of checkpoints, oldest first."""
        found = (path for path in self.folder.glob("checkpoint-*") if re.fullmatch("checkpoint-[0-9]+", path.name))
        found = (path for path in found if path.is_dir())
        return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def _read(self) -> dict:
        try:
            record = json.loads((self.folder / RECORD).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self, more: dict) -> None:
        record = {"fold": self.fold, "recipe": self.recipe} | more
        write_whole(self.folder / RECORD, json.dumps(record, indent=1) + "\n")


def begun_with(output_dir: Path) -> dict:
    """The `training` section of the recipe that the folds of a folder were begun with; {} where there are none."""
    for path in sorted(output_dir.glob(f"*/{RECORD}")):
        try:
            return json.loads(path.read_text())["recipe"]["training"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged; `KeptFold` says so
    return {}


def is_checkpoint(checkpoint: Path) -> bool:
    """Whether a folder is a checkpoint whose files match its manifest."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        return TRAINER_STATE_NAME in manifest and all(sha256(checkpoint / n) == there for n, there in manifest.items())
    except (OSError, ValueError, TypeError):
        return False


def skip_epochs_done(checkpoint: Path, sampler: Sampler | None, steps: int) -> None:
    """Advance a sampler to the position of `checkpoint`; Trainer does so for its own samplers only.

    Raises:
        CheckpointError: a run of `steps` steps does not fit the checkpoint.
    """
    state = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME)
    if state.max_steps != steps:
        raise CheckpointError(
            f"{checkpoint} is of a run of {state.max_steps} steps and this one takes {steps}: start it with as many "
            "processes as before, or remove the checkpoint."
        )
    logger.info("going on from %s", checkpoint)
    for _ in range(round(state.epoch) if sampler else 0):
        next(iter(sampler))  # draws an epoch


def describe(recipe, model: str) -> dict:
    """What the scores of a fold follow from, as JSON values: not where files lie, how they are read, or other folds."""
    described = json.loads(json.dumps(asdict(recipe), default=str))  # YAML makes dates of some values
    for key in ("output_dir", "folds", "final"):
        del described[key]
    for key in ("cache_dir", "in_memory", "num_workers"):
        del described["data"][key]
    for key in ("tracker", "tracker_project"):
        del described["training"][key]
    return described | {"model_files": digest(model)}


def describe_data(examples, folds: np.ndarray) -> dict:
    """What was read, as JSON values: scores follow from it as from the recipe, and a folder may hold other clips now,
    also under the same names.

    Args:
        examples: `Examples`.
        folds: (n,) the fold of each, drawn or given.
    """
    found = hashlib.sha256(np.ascontiguousarray(examples.labels).data)
    for name, fold in zip(examples.clip_names, folds.tolist(), strict=True):
        found.update(f"{PurePath(name).name}\0{fold}\0".encode(errors="surrogatepass"))  # their folder may have moved
    return {"clips": len(examples), "classes": list(examples.label_names), "sha256": found.hexdigest()} | {
        "files": examples.state
    }


def digest(model: str) -> str:
    """Of the files of a model's folder, since pretraining may have put others there under the same name."""
    found = hashlib.sha256()
    for path in sorted(Path(model).glob("*")):
        if path.suffix in (".json", ".safetensors"):
            found.update(bytes.fromhex(sha256(path)))
    return found.hexdigest()


def mean_over_folds(values: Sequence[float]) -> float:
    """The mean of a measure over the folds that have one (not NaN); NaN where none has."""
    known = [value for value in values if not np.isnan(value)]
    return np.mean(known) if known else np.nan


def finite(number: float) -> float | None:
    """A number for JSON, which has no infinity: None stands for it, as for the d-prime of a perfect ranking."""
    return float(number) if np.isfinite(number) else None
