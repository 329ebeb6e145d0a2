"""Whether the Hub can be reached, asked once instead of through the retries of its client."""

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

TIMEOUT = 10.0  # seconds
LOADED_FIRST = {"model": "config.json", "dataset": "README.md"}


def check_connection(repo_id: str, repo_type: str = "model") -> None:
    """Ask the Hub for a repository, once. To download from a Hub to which there is no connection, its client tries six
    times over half a minute, which is long for a folder whose name was misspelt.

    Args:
        repo_id: what may be the id of a repository. Whether it is one is left to the library that loads it.
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
