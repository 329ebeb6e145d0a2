"""BRIDLE: self-supervised pretraining with residual quantization, in the HuggingFace ecosystem (arXiv 2502.02118)."""

from . import _compat  # noqa: F401  # isort: split

__version__ = "0.1.0"
