"""What every test shares: offline libraries, few threads, and the data beside the repository."""

import os
import tempfile
from pathlib import Path

import pytest

# Before any import of torch or a HuggingFace library: they read these when imported, and so do the processes that tests
# start. Caches go to a folder of this run; one thread each is what tiny tensors and busy machines want.
_cache = tempfile.TemporaryDirectory(prefix="bridle-hf-tests-")
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=_cache.name, HF_DATASETS_DISABLE_PROGRESS_BARS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def _shared(*parts: str) -> Path:
    """A folder of `shared/`, beside the repository or above it; the test is skipped where there is none."""
    for parent in Path(__file__).resolve().parents[1:]:
        folder = parent.joinpath("shared", *parts)
        if folder.is_dir():
            return folder
    pytest.skip(f"shared/{'/'.join(parts)} is not beside the repository")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Vectors recorded from the reference implementation."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def esc10_dir() -> Path:
    """ESC-10 as a dataset folder: columns audio, target, category, fold."""
    return _shared("data", "esc10")


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """A part of CIFAR-10 as a dataset folder: columns img, label."""
    return _shared("data", "cifar10-small")


@pytest.fixture(scope="session")
def torchaudio():
    """What our features and resampling are compared with. It loads only beside the torch it was built for."""
    try:
        import torchaudio
    except Exception as error:
        pytest.skip(f"torchaudio does not load: {error}")
    return torchaudio


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT
