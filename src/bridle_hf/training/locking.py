"""The lock of an output folder, for all processes of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import broadcast_object_list

from ..files import FolderError, FolderLock


@contextmanager
def sole_writer(lock: FolderLock, is_main_process: bool) -> Iterator[None]:
    """Context in which no other run holds the lock. Every process enters it; the first one holds it for all.

    Raises:
        FolderError: in every process: another run holds it, or the folder cannot be written to.
    """
    try:
        take_lock(lock, is_main_process)
        yield
    finally:
        lock.release()


def take_lock(lock: FolderLock, is_main_process: bool) -> None:
    """Take a lock in the first process; what that raises, every process raises. Every process calls it."""
    problem = None
    if is_main_process:
        try:
            lock.acquire()
        except FolderError as error:
            problem = str(error)
    (problem,) = broadcast_object_list([problem])
    if problem:
        raise FolderError(problem)
