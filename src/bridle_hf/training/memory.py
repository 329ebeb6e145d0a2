"""What becomes of memory: that which a step has freed, and that which loader workers share with the run."""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h. The values are int.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for the next step instead of giving it back; for models that run on a CPU.

    Activations are freed in every layer. Given back to the kernel, each of their pages has to be zeroed and mapped
    anew: 300,000 a step of ViT-B, a fifth of its time. The process is no larger at its peak, but stays as large.

    Returns:
        Whether it does now: not with another C library, nor where the environment says what malloc is to do.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MOST) and mallopt(M_TRIM_THRESHOLD, MOST))


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
