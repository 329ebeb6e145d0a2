"""Memory that loader workers share with the run."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def shared_with_workers() -> Iterator[None]:
    """Python's garbage collector leaves alone what is there already. A forked worker shares it until either side writes
    to it, and a collection writes to every object it looks at: 126 MB of copies in a tiny run with two workers."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
