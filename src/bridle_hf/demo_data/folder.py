"""Writing a synthesized set: whole or not at all, once for all processes of a run."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from ..files import whole_folder

FOLDS = 5
RECEIPT = ".synthesized"  # file that says what a finished set holds


def write_set(folder: str | os.PathLike, receipt: dict, write: Callable[[Path], Iterable[dict]]) -> Path:
    """Write a dataset folder, or leave it alone where the same set is already there.

    Args:
        folder: new folder, or one that this function wrote; a set of another receipt is replaced.
        receipt: what the set's content depends on.
        write: writes the files of the set into the folder it is given, and yields a row of metadata for each.

    Raises:
        FileExistsError: where `folder` holds anything else.
    """
    folder, receipt = Path(folder), json.dumps(receipt)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # the processes of a run all ask for the set; one of them writes it
        if folder.exists() and any(folder.iterdir()):
            if not (folder / RECEIPT).is_file():
                raise FileExistsError(f"{folder} holds something else than a synthesized set: name a new folder.")
            if (folder / RECEIPT).read_text() == receipt:
                return folder
        with whole_folder(folder) as partial:
            (partial / "train").mkdir()
            with open(partial / "train" / "metadata.jsonl", "w") as metadata:
                metadata.writelines(json.dumps(row) + "\n" for row in write(partial / "train"))
            (partial / RECEIPT).write_text(receipt)
    return folder
