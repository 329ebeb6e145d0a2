"""Seeds. Every random draw comes from a place in the run, never from what earlier steps left behind."""

import numpy as np


def seed_from(*place: int) -> int:
    """A seed for a place in the run; neighbouring places get unrelated ones."""
    # With its length in front, since numpy takes (a, b) and (a, b, 0) for the same.
    return int(np.random.SeedSequence((len(place), *place)).generate_state(1, np.uint64)[0] >> 1)
