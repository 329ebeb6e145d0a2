"""What tests of whole runs share: processes that are forked, and what a run leaves behind."""

import faulthandler
import gc
import json
import logging
import multiprocessing
import os
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

TIMINGS = ("clips_per_second", "data_wait")
FORK = multiprocessing.get_context("fork")


def records(folder: Path) -> list[dict]:
    """metrics.jsonl without what no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def stop_after(folder: Path, steps: int):
    """The `stop` of a run that writes down every step: it asks to stop after so many of them."""
    metrics = folder / "metrics.jsonl"
    return nullcontext(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= steps - 1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(one: dict, other: dict) -> set[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def forked(function, arguments, errors: Path, environment: dict):
    """The body of a forked process, which needs no second import of everything. Standard error goes to a file."""
    gc.freeze()  # what the other process left is not finalised here: a decoder would wait for threads that it has there
    gc.enable()
    torch.set_num_threads(1)  # OpenMP does not survive a fork
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.stderr = open(errors, "a", buffering=1)  # closed with the process
    faulthandler.dump_traceback_later(200, file=sys.stderr)  # where a process is that hangs
    logging.getLogger().handlers.clear()
    function(*arguments)


def fork(function, *arguments, errors: Path, ranks: int = 1) -> list:
    """Start `function(*arguments)` in one process a rank, which know of each other."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), **rendezvous} if ranks > 1 else {}
    processes = []
    for rank in range(ranks):
        environment = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        process = FORK.Process(target=forked, args=(function, arguments, errors, environment))
        gc.disable()
        process.start()
        gc.enable()
        processes.append(process)
    return processes


def join(processes: list, errors: Path, exitcode: int | None = 0, timeout: float = 240) -> None:
    """Wait for processes to end; fails with what they said unless all end with `exitcode`."""
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"a process hangs: {errors.read_text()}")
    if exitcode is not None:
        assert [process.exitcode for process in processes] == [exitcode] * len(processes), errors.read_text()
