"""Quick checks: whether the Hub can be reached, and what a repository can be called."""

from functools import cache

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, validate_repo_id

TIMEOUT = 10.0  # seconds
LOADED_FIRST = {"model": "config.json", "dataset": "README.md"}


@cache  # every split of a dataset is opened several times
def check_connection(repo_id: str, repo_type: str = "model") -> None:
    """Raise an error at once if there is no connection to the Hub. Without this check, a misspelt folder name is
    reported only after the Hub's client has retried for half a minute.

    Args:
        repo_id: a possible repository id. Whether the repository exists is checked by the library that loads it.
        repo_type: "model" or "dataset".

    Raises:
        ConnectionError: there is no connection to the Hub, and the cache holds nothing of the repository.
    """
    try:
        if not try_to_load_from_cache(repo_id, LOADED_FIRST[repo_type], repo_type=repo_type):
            HfApi().repo_info(repo_id, repo_type=repo_type, timeout=TIMEOUT)
    except httpx.ConnectError as error:
        raise ConnectionError(f"the Hub cannot be reached: {error}") from error
    except (HTTPError, HFValidationError, OfflineModeIsEnabled):
        return  # an answer or a slow one, no possible id, or nothing is asked of the Hub


def check_repo_id(repo_id: str, argument: str = "--repo-id") -> None:
    """Raise a `ValueError` for a name that no repository of the Hub can have."""
    if not is_repo_id(repo_id) or "/" not in repo_id:
        raise ValueError(f"{argument} is {repo_id!r}; it takes ORG/NAME, of letters, digits, '-', '_' and '.'.")


def is_repo_id(text: str) -> bool:
    """Whether a repository of the Hub can have this name."""
    try:
        validate_repo_id(text)
        return True
    except HFValidationError:
        return False
