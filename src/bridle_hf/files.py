"""Atomic writes of files and folders; moving old folders aside; one writer at a time.

What is being written lies beside its place as `.NAME.partial`, and is renamed once it is whole and on disk.
"""

import errno
import hashlib
import logging
import os
import shutil
import socket
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def at_home(path: str | os.PathLike) -> str:
    """Expand a leading `~/` to the home folder. Other tildes stay as they are: a folder may be named `~x`."""
    path = os.fspath(path)
    return os.path.expanduser(path) if path == "~" or path.startswith("~/") else path


def final_of(source: str) -> str:
    """`final/` of the folder of a run, which holds no model itself; anything else as it is."""
    folder = Path(at_home(source))
    is_run = not (folder / "config.json").is_file() and (folder / "final" / "config.json").is_file()
    return str(folder / "final") if is_run else source


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; the file takes the place of `path` once the block ends without an error.

    After an error nothing is left of it, and `path` is as it was; an error of writing says the path.

    Raises:
        IsADirectoryError: `path` is a folder, which no file takes the place of.
        FileExistsError: it is a device or a pipe: `/dev/null` would become a file for all who use it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder lies where a file is to be written", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "a device or pipe lies where a file is to be written", str(path))
    partial = partial_of(path)
    try:
        yield partial
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _say_where(error, path)
        raise
    put_in_place(path)


@contextmanager
def whole_folder(path: Path, resume: str | None = None) -> Iterator[Path]:
    """Yield an empty folder to write into; it takes the place of `path` once the block ends without an error.

    After an error nothing is left of it, and `path` is as it was; an error of writing says the path.

    Args:
        resume: name of a file that says how far the writing got. A folder that holds it is kept after an error, also of
            a process that was killed, and the next call yields it again.
    """
    partial = partial_of(path)

    def clear() -> None:
        if resume is None or not (partial / resume).exists():
            remove(partial)

    clear()
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException as error:
        clear()
        _say_where(error, path)
        raise
    put_in_place(path)


def _say_where(error: BaseException, path: Path) -> None:
    """Name the path in an error of the system that names none, as those of a full disk do not."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def partial_of(path: Path) -> Path:
    """Where a file or folder lies while it is written."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(path: Path) -> None:
    """Flush the file or folder at `partial_of(path)` to disk and rename it to `path`. A file replaces a file, a
    folder a folder.

    A power cut cannot leave a renamed folder of empty files.
    """
    partial = partial_of(path)
    inside = share_files(partial)
    for each in (*inside, partial):
        _flush(each)
    retired = path.with_name(f".{path.name}.old")
    remove(retired)
    if partial.is_dir() and path.is_dir():  # a folder cannot be renamed to one that holds something
        os.replace(path, retired)
    os.replace(partial, path)
    _flush(path.parent)
    remove(retired)


def share_files(folder: Path) -> list[Path]:
    """Let whoever may read a folder read the weights in it: safetensors makes files for their owner alone.

    Other files stay as they are, and so does what links lead to: they may be somebody's keys.

    Returns:
        All files in the folder; none of what is no folder.
    """
    inside = [each for each in folder.rglob("*") if each.is_file()] if folder.is_dir() else []
    for file in inside:
        if file.suffix == ".safetensors" and not file.is_symlink():
            file.chmod(file.stat().st_mode | folder.stat().st_mode & 0o066)
    return inside


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a folder if it is there; of a symbolic link to one, the link alone. What cannot be removed is logged."""
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        logger.warning("%s could not be removed: %s", path, error)


def set_aside(folder: Path) -> Path:
    """Rename a folder or a file to NAME.old-1, -2, ..., so that starting over deletes nothing. Returns the new path.

    A symbolic link stays and leads to a new, empty folder where the old one was.
    """
    linked, folder = folder.is_symlink(), folder.resolve()
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    os.replace(folder, old)
    if linked:
        folder.mkdir()
    return old


NO_FOLDER = ("", "null", "None", "~")  # what is meant by them is none, as it is for other keys


class FolderError(OSError):
    """A folder that cannot be written to, or that another process writes to."""


def check_writable(
    folder: str | Path, argument: str = "output_dir", folders: Sequence[str] = (), files: Sequence[str] = ()
) -> None:
    """Check that a folder can be written to, or made, without making it.

    Args:
        argument: names the folder in the error.
        folders, files: patterns of the names that are written in it as folders and as files.

    Raises:
        FolderError: it cannot, or a file lies where a folder is to be written, or a folder where a file is.
    """
    if str(folder) in NO_FOLDER:
        raise FolderError(f"{argument} is {str(folder)!r}; it takes the name of a folder, such as runs/mine.")
    for names, fits, wrong in ((folders, Path.is_dir, "no folder"), (files, Path.is_file, "no file")):
        for path in (path for name in names for path in sorted(Path(folder).glob(name)) if not fits(path)):
            raise FolderError(f"{argument} is {str(folder)!r}, in which {path.name} is {wrong}; it takes another one.")
    there = Path(folder).resolve()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not _takes_files(there):
        reason = "may not be written to" if there.is_dir() else "is no folder"
        raise FolderError(f"{argument} is {str(folder)!r}, and {there} {reason}; it takes a folder to write to.")


def _takes_files(folder: Path) -> bool:
    """Whether a file can be created in a folder, apart from a full disk. Permissions do not tell for all file systems,
    such as /proc."""
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return is_of_a_full_disk(error)


class WriteError(OSError):
    """What a run could not write, as on a full disk. The message says what is left and how to go on."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_of_a_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that there is no room to write: in the system's words, in those of
    safetensors, which end with the system's number, or in those of `torch.save`, which gives no reason."""
    if error is None:
        return False
    texts = ("inline_container", *(f"(os error {number})" for number in NO_ROOM))
    found = isinstance(error, OSError) and error.errno in NO_ROOM
    return found or any(text in str(error) for text in texts) or is_of_a_full_disk(error.__cause__)


def end_with(parser: ArgumentParser, error: Exception) -> NoReturn:
    """Exit with a one-line message about an error: with code 1 if the disk is full, otherwise with code 2, which
    argparse uses for invalid arguments."""
    line = " ".join(str(error).split())
    if is_of_a_full_disk(error):
        parser.exit(1, f"\n{parser.prog}: error: no room to write: {line}. Make room and start again.\n")
    parser.error(line)


class FolderLock:
    """A lock that only one process holds: the one that may write to a folder.

    The kernel frees it when that process is gone, however it ended, and not before: an orphan keeps it, and what a
    process forked does not have it. Between machines it works where their file system can lock, as NFS 4 can; where it
    cannot, a warning says so. Two threads of one process are not kept apart.

    Args:
        path: of the lock file, which is there as long as the lock is held.
        folder: what messages call the folder; that of the lock file unless given.
    """

    def __init__(self, path: Path, folder: Path | None = None):
        self.path, self.folder, self.file = path, folder or path.parent, None

    def acquire(self) -> None:
        """Take the lock, and make the folder of the lock file if need be; once more after it was renamed.

        Raises:
            FolderError: another process holds it, which the message names; or the folder cannot be written to.
        """
        while True:
            try:
                self.path.parent.resolve().mkdir(parents=True, exist_ok=True)  # a link may lead to none yet
                file = self.path.open("a+")
            except OSError as error:
                reason = error.strerror or error
                raise FolderError(f"{self.folder} cannot be written to: {reason}. Give another output_dir.") from error
            try:
                self._lock(file)
            except FolderError:
                file.close()
                raise
            # Whoever held it until now may have removed or renamed the file after it was opened here.
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                break
            file.close()
        with suppress(OSError):  # a full disk: the lock is held, and what is written next says so
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        if self.file is not None:
            self.file.close()
        self.file = file

    def release(self) -> None:
        """Give the lock back, if it is held, and remove its file."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None

    def _lock(self, file) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks on this system")
            # Not flock(): a loader worker would inherit it and keep it for seconds after the process was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning(
                    "%s cannot be locked (%s): see to it that one run alone writes there", self.folder, error
                )
                return
            file.seek(0)
            raise FolderError(
                f"{self.folder} is in use: {file.read() or 'another process'} writes there. Wait for it or end it "
                "(its launcher may be gone already), or give another output_dir."
            ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
