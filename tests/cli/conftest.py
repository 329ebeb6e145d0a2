"""Fixtures of a tiny run, which other tests use too."""

from tiny_run import fresh_accelerator, sounds, tiny_recipe, train, unused_port  # noqa: F401
