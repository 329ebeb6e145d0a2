"""Evaluation while pretraining: measures of the frozen encoder on a set of its own, and the best encoder so far.

The encoder that is measured is a copy, which the first process makes of the gathered weights. Modes, shards and
compiled code of the one that trains are never touched, and the random generators are put back, so that a run takes the
same steps with and without it.
"""

import json
import logging
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from ..data import DataArguments, Examples, load_examples
from ..evaluation.cross_validation import check_probe, choose_folds, outer_folds
from ..evaluation.features import POOLINGS, encoder_features
from ..evaluation.measures import knn_accuracy, rank_me, spread
from ..evaluation.probe import linear_probe
from ..files import remove, whole_folder
from ..modeling_bridle import BridleModel
from .checkpoints import WHOLE, Checkpoint, random_state, set_random_state_
from .task import Task

logger = logging.getLogger(__name__)

OF_LABELS = ("knn", "linear")
RARELY = 30  # clips trained on for each clip that is looked at, unless `every_steps` says otherwise
SHARE = 0.05  # of the time that evaluations may take before a warning says so
ABOUT = "best.json"


class EvaluationError(ValueError):
    """A set that cannot be evaluated on."""


@dataclass
class EvaluateArguments(DataArguments):
    """What to measure of the encoder while it trains, on which clips, and when. Clips and labels are read as
    `DataArguments` says; without a `label_column` the measures that need no labels are taken alone.

    Attributes:
        every_steps: optimizer steps from one evaluation to the next; by default as many as see 30 clips for each clip
            that is evaluated. The end of a phase counts in any case, and phases that leave the encoder as it is do not.
        max_clips: most clips that are looked at, drawn from all of the set.
        pooling: of the encoder's patches, as for `bridle probe`.
        neighbours: votes of the kNN classifier; by default 20, or as many as a class has clips to learn from.
        linear_c: C of the linear probe, which is not searched here.
        batch_size: clips in one forward pass.
        keep_best: measure by which the best encoder is kept in `best/`; null keeps none.

    Raises:
        ValueError: a value outside its range.
    """

    every_steps: int | None = None
    max_clips: int = 2000
    pooling: str = "mean"
    neighbours: int | None = None
    linear_c: float = 0.1
    batch_size: int = 32
    keep_best: Literal["knn", "linear", "rankme"] | None = None

    def __post_init__(self):
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(of_section(str(error))) from error
        for name, least in (("every_steps", 1), ("max_clips", 2), ("neighbours", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` is {value}; it takes a whole number of at least {least}.")
        if not 0 < self.linear_c < float("inf"):
            raise ValueError(f"`linear_c` is {self.linear_c}; it takes a number above 0.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` is {self.pooling!r}; it takes one of {', '.join(POOLINGS)}.")
        if self.keep_best in OF_LABELS and not self.label_column:
            raise ValueError(f"`keep_best` is {self.keep_best!r}, which takes labels; name a `label_column`.")


def of_section(message: str) -> str:
    """A message that names keys of the section `data` as those of the section `evaluate`."""
    return re.sub(r"\bdata\.(?=[a-z])", "evaluate.", message)


class Evaluation:
    """The evaluations of a run.

    Args:
        recipe: `PretrainRecipe` with a section `evaluate`; its seed is that of the clips and folds that are drawn.
        accelerator: the processes; the first one decodes and measures, the others wait.
        dataset: a dataset in hand instead of `evaluate.dataset`.

    Attributes:
        every: steps from one evaluation to the next.
        seconds: that the evaluations took so far.
        shown: the latest measures, as the progress bar shows them.
    """

    def __init__(self, recipe: Any, accelerator: Accelerator, dataset=None):
        self.recipe, self.accelerator, self.dataset = recipe, accelerator, dataset
        self.settings, self.seed, self.best_folder = recipe.evaluate, recipe.seed, Path(recipe.output_dir) / "best"
        self.processor = recipe.build_processor()
        self.examples, self.encoder, self.best = None, None, None
        self.every, self.seconds, self.shown = self.settings.every_steps, 0.0, {}
        self.begun, self.taken, self.warned = 0.0, 0, False

    def begin(self, checkpoint: Checkpoint | None, samples_per_step: int) -> None:
        """Decode the set and look at its labels, and forget a best encoder later than the checkpoint that the run goes
        on from. Every process calls it.

        Raises:
            EvaluationError: in every process, the set cannot be evaluated on.
        """
        found = [0, None]
        if self.accelerator.is_main_process:
            state = random_state()
            try:
                self.examples = self._load()
                found[0] = len(self.examples)
            except (ValueError, OSError, RuntimeError) as error:
                found[1] = of_section(" ".join(str(error).split()))
            finally:
                set_random_state_(state)
            self._find_best((checkpoint.task, checkpoint.step) if checkpoint else (-1, 0))
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        self.begun = time.perf_counter()
        clips, error = found
        if error:
            raise EvaluationError(f"`evaluate`: {error}")
        self.every = self.settings.every_steps or max(1, -(-RARELY * clips // samples_per_step))
        logger.info("evaluating on %d clips every %d steps and at the end of a phase", clips, self.every)

    def is_due(self, task: Task, step: int) -> bool:
        """Whether to evaluate after `step` steps of a task."""
        trains = "bridle" in task.trains
        return trains and (step % self.every == 0 or step == task.steps) and (step > 0 or task.index == 0)

    def take(self, model: torch.nn.Module, place: dict) -> dict | None:
        """Measure the encoder of a model as prepared by the accelerator. Every process calls it.

        Args:
            place: `phase`, `phase_index`, `step` and `total_step`.

        Returns:
            The measures, and the `seconds` that they took; None where they failed, which a warning says, and in all
            processes but the first.
        """
        begun = time.perf_counter()
        weights = get_model_state_dict(model, options=WHOLE)
        if not self.accelerator.is_main_process:
            return None
        weights = {name.removeprefix("bridle."): w for name, w in weights.items() if name.startswith("bridle.")}
        state, measured = random_state(), None
        try:
            measured = {**self._measure(weights), "clips": len(self.examples)}
            if place["step"] > 0:  # at the start it is nothing to keep
                self._keep_best(measured, place)
        except Exception as error:  # whatever it is, the run is worth more
            logger.warning("the evaluation after step %d of %s failed: %s", place["step"], place["phase"], error)
        finally:
            set_random_state_(state)
        seconds = time.perf_counter() - begun
        self.seconds, self.taken = self.seconds + seconds, self.taken + 1
        self._look_at_the_time()
        if measured is None:
            return None
        self.shown = {name: f"{measured[name]:.3g}" for name in (*OF_LABELS, "rankme") if name in measured}
        return measured | {"seconds": seconds}

    def _look_at_the_time(self) -> None:
        """Say once that evaluations take much of the time, after some of them."""
        share = self.seconds / (time.perf_counter() - self.begun)
        if self.taken > 3 and share > SHARE and not self.warned:
            self.warned = True
            fewer = round(self.every * share / SHARE)
            logger.warning(
                "evaluations take %.0f %% of the time; evaluate.every_steps=%d would take about %.0f %%, and so does a "
                "smaller evaluate.max_clips",
                100 * share, fewer, 100 * SHARE,
            )  # fmt: skip

    def _load(self) -> Examples:
        """The clips, decoded, no more than `max_clips`."""
        settings = self.recipe.written(self.settings)
        check = partial(check_probe, seed=self.seed) if settings.label_column else None
        examples = load_examples(settings, self.processor, self.dataset, check=check, for_training=False)
        if len(examples) < 2:
            raise ValueError(f"data.dataset is {settings.dataset!r} and holds one clip; it takes two at least.")
        rows = np.arange(len(examples))
        if len(rows) > settings.max_clips:
            rows = np.sort(np.random.default_rng(self.seed).choice(len(rows), settings.max_clips, replace=False))
        examples = examples.choose(rows)
        if check is not None and len(rows) == settings.max_clips:
            check(examples)
        return examples

    @torch.no_grad()
    def _measure(self, weights: dict[str, torch.Tensor]) -> dict[str, float]:
        settings, examples = self.settings, self.examples
        if self.encoder is None:
            self.encoder = BridleModel(self.recipe.config()).to(self.accelerator.device)
        self.encoder.load_state_dict(weights)
        with self.accelerator.autocast():
            found = encoder_features(
                self.encoder, examples, poolings=(settings.pooling,), batch_size=settings.batch_size, description=None
            )
        features, measured = found[None, settings.pooling], {}
        if not np.isfinite(features).all():
            raise ValueError("the features hold NaN or inf")
        if examples.labels is not None:
            folds = outer_folds(examples.labels, examples.folds, self.seed)
            tested = choose_folds(None, folds, examples.test_folds)
            given = features, examples.labels, folds
            measured["knn"] = knn_accuracy(*given, k=settings.neighbours, test_folds=tested)
            measured["linear"] = linear_probe(*given, grid=(settings.linear_c,), test_folds=tested).accuracy
        return measured | {"rankme": rank_me(features), "std": spread(features)}

    def _find_best(self, place: tuple[int, int]) -> None:
        """What `best/` holds; it goes where a run resumes from before it."""
        folder = self.best_folder
        try:
            about = json.loads((folder / ABOUT).read_text())
            if (about["phase_index"], about["step"]) > place:
                remove(folder)
            elif about["measure"] == self.settings.keep_best:
                self.best = about["value"]
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or none of ours
            return

    def _keep_best(self, measured: dict[str, float], place: dict) -> None:
        """Write `best/` where the encoder is better than all before it."""
        measure, settings = self.settings.keep_best, self.settings
        if measure is None or (self.best is not None and measured[measure] <= self.best):
            return
        about = {"measure": measure, "value": measured[measure], **place}
        about |= {"chosen_on": settings.dataset or "the given dataset", "split": settings.split}
        about |= {"clips": len(self.examples), "pooling": settings.pooling}
        about["note"] = "Chosen on these clips: what is measured on them is too good. Test on others."
        with whole_folder(self.best_folder) as beside:
            self.encoder.save_pretrained(beside)
            self.processor.save_pretrained(beside)
            (beside / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        self.best = measured[measure]
