"""Process settings of commands: logging, malloc thresholds, signals that stop a run."""

import ctypes
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from ..data import source

# Of glibc's malloc.h. The values are int.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def launched() -> tuple[int, int]:
    """Rank of this process, and how many `accelerate launch` or torchrun started."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device() -> str:
    """The GPU of this process; the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


class AboveBars(logging.Handler):
    """Writes messages to standard error on lines of their own: above the progress bars, or in a log file, where these
    would be written anew each time, behind them. A clip that cannot be used is named once, however often it is read."""

    def __init__(self):
        super().__init__()
        self.named = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == source.__name__:
            if (message := record.getMessage()) in self.named:
                return
            self.named.add(message)
        if sys.stderr.isatty():
            tqdm.write(self.format(record), file=sys.stderr)
        else:
            sys.stderr.write("\n" * bool(getattr(tqdm, "_instances", ())) + self.format(record) + "\n")
            sys.stderr.flush()


def log_progress() -> None:
    """Log to standard error: all messages of the first process, and warnings of the others. No progress bars of reading
    and writing weights, which take moments; those of downloads stay."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[AboveBars()])
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.getLogger("bridle_hf").setLevel(level)
    wanted = not are_progress_bars_disabled()
    disable_progress_bar()  # switches those of downloads off, too
    if wanted:
        enable_progress_bars()


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for the next step instead of giving it back; for models that run on a CPU.

    Activations are freed in every layer. Given back to the kernel, each of their pages has to be zeroed and mapped
    anew: 300,000 a step of ViT-B, a fifth of its time. The process is no larger at its peak, but stays as large.

    Returns:
        Whether it does now: not beside an accelerator, nor with another C library, nor where the environment says what
        malloc is to do.
    """
    if torch.accelerator.is_available() or platform.libc_ver()[0] != "glibc" or any(s in os.environ for s in SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MOST) and mallopt(M_TRIM_THRESHOLD, MOST))


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Context in which SIGTERM and SIGINT only set a flag; yields a function that returns the flag.

    Entered in the main thread alone, as Python lets no other set signal handlers.
    """
    received = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
