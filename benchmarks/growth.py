"""How cost grows: with the length of a clip, the batch, M, K and d of the quantizer, the clips of a set and the
processes of a run."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure
from measuring import Row, measure, random
from models import TINY, Training
from quantizers import build, quantize

from bridle_hf import BridleConfig, BridleModel
from bridle_hf.data import DataArguments, build_processor
from bridle_hf.data.source import open_source


def quantizing(**sizes: int) -> Callable[[], None]:
    quantizer, z = build(**{"vectors": 4096, "dim": 256, "stages": 4, "codes": 256} | sizes)
    return lambda: quantize(quantizer, z, training=False)


def encoding(frames: int) -> Callable[[], object]:
    model, values = BridleModel(BridleConfig(modality="audio", **TINY)).eval(), random(1, frames, 128)
    return torch.no_grad()(lambda: model(input_values=values))


def training(batch_size: int) -> Callable[[], None]:
    return Training(TINY, batch_size, "encoder").step


def opening(folder: Path, clips: int) -> Callable[[], object]:
    """Open a folder of so many sounds, as each process of a run does at its start."""
    for number in range(clips):
        Path(folder, f"{number}.wav").touch()
    data, processor = DataArguments(str(folder)), build_processor(BridleConfig(modality="audio"))
    return lambda: open_source(data, processor)


def launched(processes: int, steps: int = 40) -> float:
    """Milliseconds of a step of the audio demo's model, 24 clips in each of so many processes, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = ["-m", "bridle_hf.cli", "pretrain", "audio/demo", f"output_dir={folder}", "training.logging_steps=5"]
        settings = ["training.tracker=null", "training.batch_size=24", f"phases=[{{kind: encoder, steps: {steps}}}]"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        subprocess.run([*launch, *command, *settings], check=True, capture_output=True, env=environment)
        records = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
        rates = [record["clips_per_second"] for record in records if "clips_per_second" in record]
    return 1e3 * 24 * processes / median(rates[2:])  # the first ones hold the start


AXES = {
    "frames of a clip, tiny encoder": (encoding, (256, 512, 1024, 2048, 4096)),
    "batch, step of the tiny encoder phase": (training, (4, 8, 16, 32, 64)),
    "M, codebooks": (lambda n: quantizing(stages=n), (1, 2, 4, 8, 16)),
    "K, codes": (lambda n: quantizing(codes=n), (128, 256, 512, 1024, 2048)),
    "d, dimensions": (lambda n: quantizing(dim=n), (32, 64, 128, 256, 512)),
}


SETS = (1_000, 4_000, 16_000, 64_000)
PROCESSES = (1, 2, 4)


def measure_growth(rounds: int, clock: str, points: int | None = None) -> Iterator[dict]:
    """Milliseconds along each axis; `points` cuts the axes to their first values."""

    def grown(name: str, sizes: tuple, milliseconds: Callable[[int], float]) -> dict:
        sizes = sizes[:points]
        times = [milliseconds(size) for size in sizes]
        return {"axis": name, "sizes": sizes, "ms": times, "exponent": exponent(sizes, times)}

    def timed(work: Callable[[], object]) -> float:
        return measure(Row("", work), rounds, clock)["ours_ms"]

    for name, (build_work, sizes) in AXES.items():
        yield grown(name, sizes, lambda size, build_work=build_work: timed(build_work(size)))
    with tempfile.TemporaryDirectory() as folder:  # it fills up as the sets grow
        yield grown("clips of a folder, opening it", SETS, lambda size: timed(opening(Path(folder), size)))
    yield grown(f"processes on {os.cpu_count()} cores, step of the demo", PROCESSES, launched)


def exponent(sizes: tuple, times: list[float]) -> float:
    """b of cost ~ size^b, fitted to the three largest sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(times[-3:]), 1)[0])


def plot_growth(results: list[dict], path: Path) -> None:
    """One panel an axis, both scales logarithmic, the exponent above; the dashed line grows in proportion."""
    columns = -(-len(results) // 2)
    figure = Figure(figsize=(3 * columns, 6), layout="constrained")
    panels = figure.subplots(2, columns).flatten()
    for axes, result in zip(panels, results, strict=False):
        sizes, times = result["sizes"], result["ms"]
        axes.loglog(sizes, times, "o-", base=2)
        axes.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], "--", color="grey", base=2)
        labels = [f"{size:,}" for size in sizes]
        axes.set(xlabel=result["axis"], ylabel="ms", xticks=sizes, xticklabels=labels)
        axes.set_title(f"size$^{{{result['exponent']:.2f}}}$", fontsize=10)
        axes.tick_params(axis="x", labelsize=8)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    figure.savefig(path)
