"""Conversion of reference checkpoints to our models and back, and releases on the Hub."""

from .export import to_official
from .official import ConversionReport, load_official

__all__ = ["ConversionReport", "load_official", "to_official"]
