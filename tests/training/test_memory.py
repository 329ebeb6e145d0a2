"""Freed memory stays with the process, in one of its own: the setting cannot be taken back."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from bridle_hf.training import loop
from bridle_hf.training.memory import SETTINGS

FAULTS = """
import resource, torch
from bridle_hf.training.memory import keep_freed_memory
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


COPIED = """
import contextlib, gc, os, re, sys
from bridle_hf.training.memory import shared_with_workers
objects = [[number] for number in range(500_000)]  # about 40 MB
with shared_with_workers() if sys.argv[1] == "shared" else contextlib.nullcontext():
    if os.fork() == 0:
        gc.collect()
        print(re.search(r"Private_Dirty: +([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
        sys.stdout.flush()
        os._exit(0)
    os.wait()
assert gc.get_freeze_count() == 0
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux says what a process shares")
def test_a_collection_in_a_worker_copies_nothing_of_the_run(repository):
    environment = os.environ | {"PYTHONPATH": str(repository / "src")}
    shared, copied = (
        int(subprocess.check_output([sys.executable, "-c", COPIED, how], env=environment, text=True))
        for how in ("shared", "copied")
    )
    assert copied > 20_000 and shared < copied / 2  # kB


def test_a_run_shares_its_memory_from_before_its_first_step(train, tmp_path, monkeypatch):
    train_phase, frozen = loop.train_phase, []
    monkeypatch.setattr(loop, "train_phase", lambda *given: frozen.append(gc.get_freeze_count()) or train_phase(*given))
    train(tmp_path / "run", "phases=[{kind: encoder, steps: 1}]")
    assert frozen[0] > 10_000 and gc.get_freeze_count() == 0
