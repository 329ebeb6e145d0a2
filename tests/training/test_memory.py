"""Loader workers go on sharing the memory that the run had before its first step."""

import gc
import os
import subprocess
import sys

import pytest

from bridle_hf.training import engine

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


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux says what a process shares")
def test_a_collection_in_a_worker_copies_nothing_of_the_run(repository):
    environment = os.environ | {"PYTHONPATH": str(repository / "src")}
    shared, copied = (
        int(subprocess.check_output([sys.executable, "-c", COPIED, how], env=environment, text=True))
        for how in ("shared", "copied")
    )
    assert copied > 20_000 and shared < copied / 2  # kB


def test_a_run_shares_its_memory_from_before_its_first_step(train, tmp_path, monkeypatch):
    train_task, frozen = engine.train_task, []
    monkeypatch.setattr(engine, "train_task", lambda *given: frozen.append(gc.get_freeze_count()) or train_task(*given))
    train(tmp_path / "run", "phases=[{kind: encoder, steps: 1}]")
    assert frozen[0] > 10_000 and gc.get_freeze_count() == 0
