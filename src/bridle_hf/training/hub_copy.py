"""Pushes a run to the Hub while it trains, for machines that may be taken away at any time."""

import logging
import os
import shutil
from concurrent.futures import Future, TimeoutError
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from ..files import WriteError, remove

logger = logging.getLogger(__name__)

COPIED = ("metrics.jsonl", "recipe.yaml", "tracker.json")  # of the run's folder, beside what it exports
STAGED = ".hub"


class HubCopy:
    """A repository on the Hub with a copy of a run: its newest checkpoint in the folder `checkpoint/`, its metrics and
    its recipe, and the models that it has exported.

    Each push is one commit, made in a background thread of huggingface_hub. A checkpoint that is written during a push
    is not pushed itself; the next one is. A push that fails logs a warning, and training goes on.

    Args:
        repo_id: of the repository, made where there is none.
        private: whether it is made private.
        folder: of the run.

    Raises:
        WriteError: the repository can be neither found nor made.
    """

    def __init__(self, repo_id: str, private: bool, folder: Path):
        self.repo_id, self.folder, self.api = repo_id, folder, HfApi()
        self.under_way: Future | None = None
        try:
            self.api.create_repo(repo_id, private=private, exist_ok=True)
        except (HTTPError, HFValidationError, OSError) as error:
            raise WriteError(f"training.hub_repo_id is {repo_id!r}, which cannot be pushed to: {error}") from error

    def push(self, checkpoint: Path) -> None:
        """Begin to push what there is now, unless a push is under way."""
        if self.under_way is not None and not self.under_way.done():
            return
        staged = self.folder / STAGED
        try:
            self._stage(checkpoint, staged)
        except OSError as error:
            return logger.warning("%s was not pushed to: %s", self.repo_id, error)
        self.under_way = self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=staged,
            commit_message=checkpoint.name,
            delete_patterns="checkpoint/*",
            run_as_future=True,
        )
        self.under_way.add_done_callback(self._say)

    def _stage(self, checkpoint: Path, staged: Path) -> None:
        """Link what is to be pushed into `staged`: a checkpoint may be pruned before its upload ends."""
        remove(staged)
        shutil.copytree(checkpoint, staged / "checkpoint", copy_function=_link)
        # not what a killed process left half-written, `.best.partial`
        for exported in (path.parent for path in self.folder.glob("[!.]*/config.json")):
            shutil.copytree(exported, staged / exported.name, copy_function=_link)
        for name in COPIED:
            if (self.folder / name).is_file():
                shutil.copy(self.folder / name, staged / name)

    def _say(self, done: Future) -> None:
        if (error := done.exception()) is not None:
            logger.warning("%s was not pushed to: %s", self.repo_id, " ".join(str(error).split()))

    def end(self, checkpoint: Path, seconds: float) -> None:
        """Push the finished run. Wait at most `seconds` for the push under way, and as long for this last one."""
        try:
            if self.under_way is not None:
                self.under_way.exception(seconds)
            self.push(checkpoint)
            if self.under_way is not None:
                self.under_way.exception(seconds)
        except TimeoutError:
            logger.warning("the last push to %s has not ended in %g seconds", self.repo_id, seconds)
        remove(self.folder / STAGED)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
