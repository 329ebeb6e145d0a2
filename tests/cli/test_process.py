"""Freed memory stays with the process, in one of its own: the setting cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

from bridle_hf.cli.process import SETTINGS

FAULTS = """
import resource, torch
from bridle_hf.cli.process import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(1 << 24)  # 64 MB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def run(repository, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    merged = inherited | {"PYTHONPATH": str(repository / "src")} | environment
    kept, faults = subprocess.check_output([sys.executable, "-c", FAULTS], env=merged, text=True).split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise(repository):
    kept, faults = run(repository)
    assert kept and faults < 1000
    kept, faults = run(repository, MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept and faults > 10 * 1000
