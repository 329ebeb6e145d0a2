"""Rows of work done in several ways, timed in turn, round by round, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Row:
    """One piece of work.

    Attributes:
        name: of the work.
        ours: does it once.
        others: who else does the same work, and what it takes at least, by name: peers, and floors such as a product.
        count: units of work in a call, for rates.
        unit: what is counted.
    """

    name: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]] = field(default_factory=dict)
    count: int = 1
    unit: str = "call"


def measure(row: Row, rounds: int, clock: str = "wall") -> dict:
    """Medians of a row in milliseconds, and the median over the rounds of the ratio ours / other (below 1: faster)."""
    now, works = CLOCKS[clock], {"ours": row.ours, **row.others}
    times = {name: [] for name in works}
    for work in works.values():
        work()  # caches, tables and averages are made here
    for _ in range(rounds):
        for name, work in works.items():
            start = now()
            work()
            times[name].append(now() - start)
    ours = times.pop("ours")
    return {
        "name": row.name,
        "ours_ms": 1e3 * statistics.median(ours),
        "per_second": row.count / statistics.median(ours),
        "unit": row.unit,
        "others": {
            name: {
                "ms": 1e3 * statistics.median(theirs),
                "ratio": statistics.median(ratios := [a / b for a, b in zip(ours, theirs, strict=True)]),
                "ratio_range": [min(ratios), max(ratios)],
            }
            for name, theirs in times.items()
        },
    }


def table(results: list[dict]) -> str:
    """Results as a Markdown table, a line for each row and what stands beside it."""
    lines = [
        "| what | ours, ms | a second | beside | theirs, ms | ours / theirs | range |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        start = f"| {result['name']} | {result['ours_ms']:.1f} | {result['per_second']:.2f} {result['unit']}s |"
        lines += [
            f"{start} {name} | {other['ms']:.1f} | {other['ratio']:.2f} | {low:.2f} to {high:.2f} |"
            for name, other in result["others"].items()
            for low, high in [other["ratio_range"]]
        ] or [f"{start} | | | |"]
    return "\n".join(lines)


def random(*shape: int) -> torch.Tensor:
    """Normally distributed numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
