"""The share of unusable samples at which a run ends."""

from .media import UnusableDataError

# The share is taken of the samples read so far, but of at least the first number, and of the whole set where its size
# is known, up to the second number: a few bad files at the beginning of a set do not end a run.
JUDGED_OVER = 100, 10_000


class BadShareError(UnusableDataError):
    """Too many samples that cannot be used.

    Attributes:
        name, reason: of the last of them; empty where the error comes from a worker of a loader, as text.
    """

    def __init__(self, message: str, name: str = "", reason: Exception | str = ""):
        super().__init__(message)
        self.name, self.reason = name, reason


def is_short(reason: Exception | str) -> bool:
    """Whether a sample was left out because it is short, which does not count as bad. A length of 0 s is damage."""
    return str(reason).startswith("too short: ") and not str(reason).startswith("too short: 0.000 s")


def check_bad_share(
    bad: int, seen: int, max_bad_share: float, name: str, reason: Exception | str, hint: str = "", total: int = 0
) -> None:
    """Check that no more than `max_bad_share` of a set could not be used.

    Args:
        bad: samples that could not be used, without those that `is_short` says are left out.
        seen: samples that were read.
        name, reason: of the last one that could not be used.
        hint: is added to the message.
        total: samples of the set; 0 where that is not known.

    Raises:
        BadShareError: they are more.
    """
    if bad > max_bad_share * max(seen, JUDGED_OVER[0], min(total, JUDGED_OVER[1])):
        raise BadShareError(
            f"{bad} of {seen} clips read so far could not be used, more than data.max_bad_share={max_bad_share} "
            f"allows; the last one was {name}: {reason}. Remove what is broken, or raise the share.{hint}",
            name,
            reason,
        )


def check_bad_shards(bad: int, shards: int, max_bad_share: float, reason: Exception | str) -> None:
    """Raise an `UnusableDataError` if more than `max_bad_share` of the shards could not be read."""
    if bad > max_bad_share * shards:
        raise UnusableDataError(
            f"{bad} of {shards} shards could not be read, more than data.max_bad_share={max_bad_share} allows; "
            f"the last one was {reason}"
        )
