"""Labelled sets made on the spot as ordinary files: sounds, pictures of digits, videos of moving digits."""

from .digits import write_digit_set
from .motion import write_motion_set
from .sounds import write_sound_set

__all__ = ["write_digit_set", "write_motion_set", "write_sound_set"]
