"""The check of the environment that runs when the package is imported.

torchaudio 2.11 is the last of its line and loads only beside the builds of torch it fits, as each torchvision does.
Beside any other their import fails, and with it the modules of transformers for sounds and pictures, with an error that
names neither cause nor cure.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

INSTALL = 'pip install --force-reinstall "torch>=2.11,<2.15" "torchaudio>=2.11,<2.12" "torchvision>=0.26,<0.30"'


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def check_beside_torch(package: str) -> None:
    """Raise an `ImportError` of one sentence where torch and `package` do not load together."""
    try:
        import_module(package)
    except Exception as error:  # a library that does not fit fails in many ways: OSError, RuntimeError, ImportError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportError(
            f"bridle_hf needs a torch and a {package} that load together, and {_installed('torch')} with "
            f"{_installed(package)} does not ({reason}): run `{INSTALL}`, without a CPU-only index, because only "
            "the CUDA 13.0 builds of torch fit torchaudio 2.11, and they run without a GPU too."
        ) from error


for companion in ("torchaudio", "torchvision"):
    check_beside_torch(companion)
