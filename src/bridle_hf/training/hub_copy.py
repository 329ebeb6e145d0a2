"""A copy of a run on the Hub, pushed while the run goes on: for machines that may be gone tomorrow."""

import logging
import os
import shutil
from concurrent.futures import Future, TimeoutError
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ..files import remove

logger = logging.getLogger(__name__)

COPIED = ("metrics.jsonl", "recipe.yaml", "tracker.json")  # of the run's folder, beside what it exports
STAGED = ".hub"


class HubCopy:
    """The newest checkpoint of a run as `checkpoint/`, its metrics and recipe, and what it exports.

    A push is one commit, in a thread of the Hub's client. While one is under way the next checkpoint is left out; one
    that fails is a warning.

    Args:
        repo_id: of the repository, made where there is none.
        private: whether it is made private.
        folder: of the run.

    Raises:
        ValueError: the repository can be neither found nor made.
    """

    def __init__(self, repo_id: str, private: bool, folder: Path):
        self.repo_id, self.folder, self.api = repo_id, folder, HfApi()
        self.under_way: Future | None = None
        try:
            self.api.create_repo(repo_id, private=private, exist_ok=True)
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            raise ValueError(f"`hub_repo_id` is {repo_id!r}, which cannot be pushed to: {error}") from error

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
        """Links, where the file system has them: a checkpoint may be pruned before it is pushed, and never changes."""
        remove(staged)
        shutil.copytree(checkpoint, staged / "checkpoint", copy_function=_link)
        for exported in (path.parent for path in self.folder.glob("*/config.json")):
            shutil.copytree(exported, staged / exported.name, copy_function=_link)
        for name in COPIED:
            if (self.folder / name).is_file():
                shutil.copy(self.folder / name, staged / name)

    def _say(self, done: Future) -> None:
        if (error := done.exception()) is not None:
            logger.warning("%s was not pushed to: %s", self.repo_id, " ".join(str(error).split()))

    def end(self, checkpoint: Path, seconds: float) -> None:
        """Push the end of the run; waits for it, and for a push under way, no longer than so many seconds each."""
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
