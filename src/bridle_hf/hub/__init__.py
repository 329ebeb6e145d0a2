"""Between this package and the world: conversion of reference checkpoints."""

from .convert import ConversionReport, load_official

__all__ = ["ConversionReport", "load_official"]
