"""BRIDLE: self-supervised pretraining with residual quantization, in the HuggingFace ecosystem (arXiv 2502.02118)."""

import sys
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"


def _is_command() -> bool:
    """Whether this process is `bridle`, which imports the rest once it knows what it is asked for."""
    words = sys.orig_argv
    return Path(sys.argv[0]).name == "bridle" or ("-m", "bridle_hf.cli") in zip(words, words[1:], strict=False)


def __getattr__(name: str):
    public = import_module(".public", __name__)
    if name == "__all__" or name in public.__all__:
        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not _is_command():
    from .public import *  # noqa: F403
    from .public import __all__ as __all__
