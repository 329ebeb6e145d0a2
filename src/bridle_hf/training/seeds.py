"""Seeds. Every random draw comes from a place in the run, never from what earlier steps left behind."""

import numpy as np


def seed_from(*place: int) -> int:
    """A seed for a place in the run; neighbouring places get unrelated ones."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
