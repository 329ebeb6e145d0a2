"""How fast the hot pieces are beside their peers and beside what the machine can do at best, all in one run.

    python benchmarks/bench.py [--rounds 7] [--threads 2] [--clock cpu] [--only fbank] [--output DIR]

Prints one table, and how cost grows; DIR gets bench.json and growth.svg. Every row does our work and the others' in
turn, round by round; figures are medians, the ratio is the median of the rounds' ratios (below 1: ours is faster). On a
machine that is busy with something else, `--threads 1 --clock cpu` counts the seconds that this process had. `--small`
is a trial of all rows in seconds, and its figures mean nothing.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import torch
from frontend import fbank_rows
from growth import measure_growth, plot_growth
from loading import loading_rows
from measuring import CLOCKS, Row, measure, table
from models import (
    SMALL,
    SMALL_PHASES,
    TINY,
    classification_row,
    operators,
    peak_memory,
    phase_rows,
    precision_rows,
)
from quantizers import quantizer_rows

from bridle_hf.cli.process import keep_freed_memory
from bridle_hf.training import load_recipe

PACKAGES = ("torch", "torchaudio", "transformers", "vector-quantize-pytorch", "kaldi-native-fbank")
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def subjects(small: bool) -> dict[str, Callable[[], Iterable[Row]]]:
    """What makes the rows of each subject."""
    if small:
        return {
            "fbank": lambda: fbank_rows(clips=2, seconds=1.0),
            "loading": lambda: loading_rows(seconds=3.0, side=64),
            "quantizer": lambda: quantizer_rows(vectors=256, dim=8, stages=2, codes=16),
            "tiny": lambda: phase_rows("small", SMALL_PHASES, 2),
            "precision": lambda: precision_rows("small", SMALL_PHASES, 2),
            "classifier": lambda: [classification_row(SMALL, frames=128)],
        }
    demo = load_recipe("audio/demo")
    return {
        "fbank": fbank_rows,
        "loading": loading_rows,
        "quantizer": quantizer_rows,
        "tiny": lambda: phase_rows("tiny", TINY, 40),
        "base": lambda: phase_rows("ViT-B, 16 Swin layers", {}, 8),
        "precision": lambda: chain(precision_rows("audio/demo", demo.model, 24), precision_rows("tiny", TINY, 40)),
        "classifier": lambda: [classification_row(BASE)],
    }


def machine(threads: int, clock: str) -> dict:
    """What the figures were measured on and with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "clock": clock} | versions()


def versions() -> dict[str, str]:
    """Those of `PACKAGES`; a peer that is not installed has no rows."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", choices=[*subjects(small=False), "growth"], help="one subject")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that all works")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as in training; the peers have it too
    args.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(args.threads, args.clock), "rows": []}
    print(" | ".join(f"{name} {value}" for name, value in report["machine"].items()))
    for name, rows in subjects(args.small).items():
        if args.only in (None, name):
            report["rows"] += [measure(row, args.rounds, args.clock) for row in rows()]
    if report["rows"]:
        print(table(report["rows"]))
    if args.only is None:
        tiny, base = ((SMALL_PHASES, 2), (SMALL_PHASES, 2)) if args.small else ((TINY, 40), ({}, 8))
        report["operators"] = {kind: operators(*tiny, kind) for kind in ("encoder", "tokenizer")}
        for kind, shares in report["operators"].items():
            largest = ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:5])
            print(f"time of a tiny {kind} step: {largest}")
        kept = {"all activations kept": False, "gradient checkpointing": True}
        report["peak_memory_gb"] = {name: peak_memory(*base, recompute) for name, recompute in kept.items()}
        for name, peak in report["peak_memory_gb"].items():
            print(f"encoder phase, ViT-B, batch {base[1]}, {name}: {peak:.2f} GB at its peak")
    if args.only in (None, "growth"):
        report["growth"] = list(measure_growth(args.rounds, args.clock, points=2 if args.small else None))
        for axis in report["growth"]:
            print(f"{axis['axis']}: ms grow as size^{axis['exponent']:.2f}")
        plot_growth(report["growth"], args.output / "growth.svg")
    (args.output / "bench.json").write_text(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
