"""What a GPU makes of this package: share of its matrix rate, memory, where the host waits, and peers beside it.

    python benchmarks/gpu.py [--parts steps,peers,compiled] [--modalities audio,image,video] [--batch-sizes 64,256]
                             [--rounds 10] [--output DIR]

Prints tables; DIR gets gpu.json, anew after every row. `steps` are those of ViT-B in each phase, of each modality; rows
end at the batch size that does not fit. `compiled` are the same with torch.compile, layer by layer and as a whole.
`peers` are transformers' AST, ViTMAE and VideoMAE, vector-quantize-pytorch, and `kaldi_fbank` on the device. The matrix
rate is that of bfloat16 products (8192, 8192). Operations of a step are those of its matrix products. Where the host
waits is what `torch.cuda.set_sync_debug_mode` reports of one step. `--small` is a trial on the CPU, whose figures mean
nothing.
"""

import argparse
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from measuring import Row, measure, random, table
from models import SMALL, SMALL_PHASES, TINY, Training
from transformers.modeling_layers import GradientCheckpointingLayer

from bridle_hf.feature_extraction_bridle import kaldi_fbank

PARTS = ("steps", "peers", "compiled")
PHASES = {"encoder": True, "tokenizer": False, "encoder, iteration 2": False}  # and whether codes are the cold start's
COLUMNS = ("what", "phase", "batch", "ms", "clips per second", "TFLOP/s", "of the matrix rate", "GB", "the host waits")


def waiting(work: Callable[[], object], device: str) -> Callable[[], None]:
    """The same call with the device's work included."""

    def whole() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return whole


def seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """Median time of a call, the device's work included: of so many rounds, or of 3 and more that fit into 2 s."""
    whole = waiting(work, device)
    for _ in range(2):  # kernels are chosen and memory is taken in the first
        start = time.perf_counter()
        whole()
    fitting = int(2 / (time.perf_counter() - start))
    return measure(Row("", whole), min(rounds, max(3, fitting)))["ours_ms"] / 1e3


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


def models(small: bool, modalities: list[str]) -> dict[str, dict]:
    """Config keys of the models whose steps are measured."""
    if small:
        return {"audio": SMALL_PHASES}
    found = {f"{name}, ViT-B": {"modality": name} for name in modalities}
    return found | ({"audio, tiny": TINY} if "audio" in modalities else {})


def step_rows(name: str, config: dict, sizes: list[int], device: str, rounds: int, how: str = "") -> Iterator[dict]:
    """Each phase at each batch size, as far as the memory goes.

    Args:
        how: "" takes steps as they are; "layers" compiles the layers, each kind of which is one graph; "whole" the
            model.
    """
    for phase, cold in PHASES.items():
        if how and not cold and phase != "tokenizer":
            continue  # the same layers again
        kind = phase.split(",")[0]
        training = Training(config, 1, kind, cold_start=cold, device=device)
        operations = training.operations()
        if how == "layers":
            for module in training.model.modules():
                if isinstance(module, GradientCheckpointingLayer):  # the layers of all transformers
                    module.compile()
        elif how == "whole":
            training.model.compile()
        for size in sizes:
            try:
                training.draw(size)
                row = time_steps(training, rounds)
            except torch.OutOfMemoryError:
                break
            each = row["ms"] / 1e3
            speed = {"clips_per_second": size / each, "tflops": operations * size / each / 1e12}
            yield {"what": f"{name}{how and ', compiled: ' + how}", "phase": phase, "batch": size, **row, **speed}
        del training
        free()


def time_steps(training: Training, rounds: int) -> dict:
    """A step's milliseconds; on a GPU its memory in GB, and where the host waits."""
    gpu = training.device == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return {
        "ms": 1e3 * seconds(training.step, rounds, training.device),
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
        "waits": waits(training.step) if gpu else [],
    }


def peer_table(device: str, rounds: int, small: bool) -> Iterator[dict]:
    """Rows of peers beside ours, as `measure` gives them."""
    from peers import peer_rows
    from quantizers import quantizer_rows

    quantizers = {"vectors": 256, "dim": 8, "codes": 16} if small else {"vectors": 65_536}
    trained = {"batch_size": 64, "sizes": {}, "decoder": {}}
    if small:
        decoder = {key: value for key, value in SMALL_PHASES.items() if key.startswith("decoder_")}
        trained = {"batch_size": 2, "sizes": SMALL, "decoder": decoder, "frames": 128, "side": 64, "pictures": 8}
    for rows in (quantizer_rows(device=device, **quantizers), peer_rows(device=device, **trained)):
        for row in rows:
            others = {name: waiting(other, device) for name, other in row.others.items()}
            yield measure(Row(row.name, waiting(row.ours, device), others, row.count, row.unit), rounds)
            del row, others
            free()


def free() -> None:
    """Give memory back that the rows before have taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def line(row: dict, matrix_tflops: float) -> str:
    """A row of steps as a line of the table."""
    share, memory = row["tflops"] / matrix_tflops, row["memory_gb"] or float("nan")
    speed = f"{row['ms']:.1f} | {row['clips_per_second']:.0f} | {row['tflops']:.1f} | {share:.0%}"
    waited = ", ".join(row["waits"]) or "nowhere"
    return f"| {row['what']} | {row['phase']} | {row['batch']} | {speed} | {memory:.1f} | {waited} |"


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, in this order")
    parser.add_argument("--modalities", default="audio,image,video", help="of `steps` and `compiled`")
    parser.add_argument("--batch-sizes", default="64,128,256,512", help="clips per step, one row for each number")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU, to see that all works")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts has {', '.join(sorted(unknown))}; it takes {', '.join(PARTS)}")
    if not args.small and not torch.cuda.is_available():
        parser.error("there is no GPU; --small is a trial without one")
    device, sizes = "cpu" if args.small else "cuda", [int(size) for size in args.batch_sizes.split(",")]
    report = {
        "gpu": "none" if args.small else torch.cuda.get_device_name(),
        "torch": version("torch"),
        "matrix_tflops": matrix_rate(device, args.rounds, 64 if args.small else 8192),
        "rows": [],
        "peers": [],
    }
    args.output.mkdir(parents=True, exist_ok=True)

    def add(rows: Iterator[dict], key: str) -> Iterator[dict]:
        for row in rows:
            report[key].append(row)
            (args.output / "gpu.json").write_text(json.dumps(report, indent=2))
            yield row

    show(f"{report['gpu']}, torch {report['torch']}: {report['matrix_tflops']:.0f} TFLOP/s in products")
    for part in args.parts.split(","):
        show("")
        if part == "peers":
            waveforms = random(8 if args.small else 256, 160_000).to(device)
            each = seconds(lambda: kaldi_fbank(waveforms), args.rounds, device)  # noqa: B023
            report["fbank_clips_per_second"] = len(waveforms) / each
            show(f"fbank of 10 s there: {report['fbank_clips_per_second']:.0f} clips per second\n")
            del waveforms
            show(table(list(add(peer_table(device, args.rounds, args.small), "peers"))))
            continue
        show(f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|")
        ways = ("",) if part == "steps" else ("layers",) if args.small else ("layers", "whole")  # a CPU takes minutes
        for how in ways:
            for name, config in models(args.small, args.modalities.split(",")).items():
                for row in add(step_rows(name, config, sizes, device, args.rounds, how), "rows"):
                    show(line(row, report["matrix_tflops"]))
    return report


def show(text: str) -> None:
    print(text, flush=True)  # a part that is stopped has said what it found


if __name__ == "__main__":
    main()
