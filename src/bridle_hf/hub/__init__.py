"""Between this package and the world: conversion of reference checkpoints, both ways."""

from .export import to_official
from .official import ConversionReport, load_official

__all__ = ["ConversionReport", "load_official", "to_official"]
