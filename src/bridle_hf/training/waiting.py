"""What a process says when another one of its run is lost."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from ..codebook_bridle import world_size


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not get to the same point in time."""


@contextmanager
def waiting_for_others(deadline: float | None = None) -> Iterator[None]:
    """Context that turns errors of a lost process into one clear message.

    Args:
        deadline: seconds after which a process that hangs is lost, for the message; None where there is no such.

    Raises:
        LostProcessError: another process ended, or did not come to the same point within `deadline` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "pair closure" in text):
            late = "" if deadline is None else f", or did not get here in deadline={deadline:g} seconds"
            raise LostProcessError(
                f"another process ended{late}; what it said last tells why. Started again, the run goes on from its "
                f"last checkpoint ({text})."
            ) from error
        raise
