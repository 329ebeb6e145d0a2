"""How cost grows: with the length of a clip, the batch, and M, K and d of the quantizer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measuring import Row, measure, random
from models import TINY, Training
from quantizers import build, quantize

from bridle_hf import BridleConfig, BridleModel


def quantizing(**sizes: int) -> Callable[[], None]:
    quantizer, z = build(**{"vectors": 4096, "dim": 256, "stages": 4, "codes": 256} | sizes)
    return lambda: quantize(quantizer, z, training=False)


def encoding(frames: int) -> Callable[[], object]:
    model, values = BridleModel(BridleConfig(modality="audio", **TINY)).eval(), random(1, frames, 128)
    return torch.no_grad()(lambda: model(input_values=values))


def training(batch_size: int) -> Callable[[], None]:
    return Training(TINY, batch_size, "encoder").step


AXES = {
    "frames of a clip, tiny encoder": (encoding, (256, 512, 1024, 2048, 4096)),
    "batch, step of the tiny encoder phase": (training, (4, 8, 16, 32, 64)),
    "M, codebooks": (lambda n: quantizing(stages=n), (1, 2, 4, 8, 16)),
    "K, codes": (lambda n: quantizing(codes=n), (128, 256, 512, 1024, 2048)),
    "d, dimensions": (lambda n: quantizing(dim=n), (32, 64, 128, 256, 512)),
}


def measure_growth(rounds: int, clock: str, points: int | None = None) -> Iterator[dict]:
    """Milliseconds along each axis; `points` cuts the axes to their first values."""
    for name, (build_work, sizes) in AXES.items():
        times = [measure(Row(name, build_work(size)), rounds, clock)["ours_ms"] for size in sizes[:points]]
        yield {"axis": name, "sizes": sizes[:points], "ms": times}


def plot_growth(results: list[dict], path: Path) -> None:
    """One panel an axis, both scales logarithmic; the dashed line grows in proportion."""
    figure = Figure(figsize=(3 * len(results), 3), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results)), results, strict=True):
        sizes, times = result["sizes"], result["ms"]
        axes.loglog(sizes, times, "o-", base=2)
        axes.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], "--", color="grey", base=2)
        axes.set(xlabel=result["axis"], ylabel="ms", xticks=sizes, xticklabels=sizes)
    figure.savefig(path)
