"""BRIDLE: self-supervised pretraining with residual quantization, in the HuggingFace ecosystem (arXiv 2502.02118)."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .extras import cure

if TYPE_CHECKING:
    from .loading import load as load
    from .training.pretraining import pretrain as pretrain
    from .training.trainer_callback import BridleTrainerCallback as BridleTrainerCallback

__version__ = "0.2.0"

# Names whose modules are imported when they are asked for: they read data or train, for which there is an extra.
LATER = {
    "BridleTrainerCallback": ".training.trainer_callback",
    "load": ".loading",
    "pretrain": ".training.pretraining",
}


def _is_command() -> bool:
    """Whether this process is `bridle`, which imports the rest once it knows what it is asked for."""
    words = sys.orig_argv
    return Path(sys.argv[0]).name == "bridle" or ("-m", "bridle_hf.cli") in zip(words, words[1:], strict=False)


def __getattr__(name: str):
    if name in LATER:
        try:
            return getattr(import_module(LATER[name], __name__), name)
        except ModuleNotFoundError as error:
            if (missing := cure(error, f"bridle_hf.{name}")) is None:
                raise
            raise ImportError(missing) from None
    public = import_module(".public", __name__)
    if name == "__all__" or name in public.__all__:
        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})


if not _is_command():
    from .public import *  # noqa: F403
    from .public import __all__ as __all__
