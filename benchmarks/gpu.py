"""What a GPU makes of the steps of ViT-B: share of its matrix rate, memory, and where the host waits for it.

    python benchmarks/gpu.py [--batch-sizes 128,256,512] [--rounds 10] [--compile] [--output DIR]

Prints a table; DIR gets gpu.json. The matrix rate is that of bfloat16 products (8192, 8192); operations of a step are
those of its matrix products, counted on the CPU. Rows end at the batch size that does not fit. Where the host waits is
what `torch.cuda.set_sync_debug_mode` reports of one step. `--small` is a trial on the CPU, whose figures mean nothing.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from bench import SMALL_PHASES
from measuring import Row, measure, random
from models import Training

from bridle_hf.feature_extraction_bridle import kaldi_fbank

PHASES = {"encoder": True, "tokenizer": False, "encoder, iteration 2": False}  # and whether codes are the cold start's


def seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """Median time of a call, the device's work included."""

    def whole() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):  # besides the one of `measure`: kernels are chosen and memory is taken in the first
        whole()
    return measure(Row("", whole), rounds)["ours_ms"] / 1e3


def matrix_rate(device: str, rounds: int, size: int) -> float:
    """TFLOP/s of bfloat16 products (size, size)."""
    a, b = (random(size, size).to(device, torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, rounds, device) / 1e12


def waits(step: Callable[[], object]) -> list[str]:
    """The lines, file:number, at which the host waits for the GPU in a step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]


def phase_rows(config: dict, sizes: list[int], device: str, rounds: int, compiled: bool) -> Iterator[dict]:
    """Each phase at each batch size, as far as the memory goes."""
    for phase, cold in PHASES.items():
        kind = phase.split(",")[0]
        operations = Training(config, 1, kind, cold_start=cold).operations()
        for size in sizes:
            try:
                row = time_steps(Training(config, size, kind, cold_start=cold, device=device), rounds, compiled)
            except torch.OutOfMemoryError:
                break
            each = row["ms"] / 1e3
            speed = {"clips_per_second": size / each, "tflops": operations * size / each / 1e12}
            yield {"phase": phase, "batch": size, **row, **speed}


def time_steps(training: Training, rounds: int, compiled: bool) -> dict:
    """A step's milliseconds; on a GPU its memory in GB, and where the host waits."""
    gpu = training.device == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if compiled:
        training.model.compile()
    return {
        "ms": 1e3 * seconds(training.step, rounds, training.device),
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
        "waits": waits(training.step) if gpu else [],
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", default="128,256,512", help="clips of a step, a row each")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="as training.compile=true")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU, to see that all works")
    args = parser.parse_args(arguments)
    if not args.small and not torch.cuda.is_available():
        parser.error("there is no GPU; --small is a trial without one")
    device, config = ("cpu", SMALL_PHASES) if args.small else ("cuda", {})
    report = {
        "gpu": "none" if args.small else torch.cuda.get_device_name(),
        "torch": version("torch"),
        "compiled": args.compile,
        "matrix_tflops": matrix_rate(device, args.rounds, 64 if args.small else 8192),
        "rows": [],
    }
    print(f"{report['gpu']}, torch {report['torch']}: {report['matrix_tflops']:.0f} TFLOP/s in products\n")
    columns = ("phase", "batch", "ms", "clips a second", "TFLOP/s", "of the matrix rate", "GB", "the host waits")
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for row in phase_rows(config, [int(n) for n in args.batch_sizes.split(",")], device, args.rounds, args.compile):
        share, memory = row["tflops"] / report["matrix_tflops"], row["memory_gb"] or float("nan")
        speed = f"{row['ms']:.1f} | {row['clips_per_second']:.0f} | {row['tflops']:.0f} | {share:.0%}"
        waited = ", ".join(row["waits"]) or "nowhere"
        print(f"| {row['phase']} | {row['batch']} | {speed} | {memory:.1f} | {waited} |")
        report["rows"].append(row)
    waveforms = random(8 if args.small else 256, 160_000).to(device)
    report["fbank_clips_per_second"] = len(waveforms) / seconds(lambda: kaldi_fbank(waveforms), args.rounds, device)
    print(f"\nfbank of 10 s there: {report['fbank_clips_per_second']:.0f} clips a second")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "gpu.json").write_text(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
