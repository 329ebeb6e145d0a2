"""Files and folders that are there as a whole, or stay."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    os.replace(beside, path)


def set_aside(folder: Path) -> Path:
    """Renames a folder to NAME.old-1, -2, ...: starting over must cost nobody what is in it. Returns the new one."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    os.replace(folder, old)
    return old
