"""Whether the Hub can be reached, asked once instead of through the retries of its client."""

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

TIMEOUT = 10.0  # seconds
LOADED_FIRST = {"model": "config.json", "dataset": "README.md"}


def check_connection(repo_id: str, repo_type: str = "model") -> None:
    """Ask the Hub for a repository, once. To download from a Hub that does not answer, its client tries six times over
    half a minute, which is long for a folder whose name was misspelt.

    Args:
        repo_id: what may be the id of a repository. Whether it is one is left to the library that loads it.
        repo_type: "model" or "dataset".

    Raises:
        ConnectionError: the Hub cannot be reached, and the cache holds nothing of it.
    """
    try:
        if not try_to_load_from_cache(repo_id, LOADED_FIRST[repo_type], repo_type=repo_type):
            HfApi().repo_info(repo_id, repo_type=repo_type, timeout=TIMEOUT)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return  # an answer, no possible id, or nothing is asked of the Hub
    except HTTPError as error:
        raise ConnectionError(f"the Hub cannot be reached: {error}") from error
