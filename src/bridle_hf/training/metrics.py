"""Metrics of training steps: one record per logged step, in metrics.jsonl and in the trackers."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..codebook_metrics import usage
from ..files import write_whole


@torch.no_grad()
def stage_predictions(output, accelerator: Accelerator) -> dict[str, list[float]]:
    """Cross-entropy and accuracy of the masked patches' codes, codebook by codebook. Empty without predictions."""
    if output.logits is None:
        return {}
    logits, labels = output.logits.flatten(0, 1).float(), output.labels.flatten(0, 1)  # (n, M, K), (n, M)
    valid = labels != -100
    entropy = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(0)  # (M,)
    correct = ((logits.argmax(-1) == labels) & valid).sum(0)
    sums = accelerator.reduce(torch.stack([entropy, correct, valid.sum(0)]), "sum")
    return {"cross_entropy": (sums[0] / sums[2]).tolist(), "accuracy": (sums[1] / sums[2]).tolist()}


def real_patches(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """(n, d), the rows of `values` (B, N, d) where `valid` (B, N) is True; all of them without `valid`."""
    return values.flatten(0, 1) if valid is None else values[valid.to(values.device)]


@torch.no_grad()
def code_usage(
    codes: torch.Tensor, valid: torch.Tensor | None, codebook_size: int, accelerator: Accelerator
) -> dict[str, list[float]]:
    """CUR, ECU and perplexity of each codebook over the codes of a batch on all processes.

    Args:
        codes: (B, N, M).
        valid: (B, N) True for codes that count; None where all do.
    """
    codes = real_patches(codes, valid)  # (n, M)
    counts = torch.stack([codes[:, stage].bincount(minlength=codebook_size) for stage in range(codes.shape[1])])
    measured = usage(accelerator.reduce(counts, "sum").cpu().numpy())
    return {name: measured[name].tolist() for name in ("cur", "ecu", "perplexity")}


class MetricsFile:
    """metrics.jsonl: one JSON object per line. Every line is on its way to disk before the next step."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def rewind(self, phase: int, step: int) -> set[str]:
        """Forgets the records after `step` steps of phase number `phase`, and a line that was cut off.

        Returns:
            The names of the clips that the records left say were skipped.
        """
        kept, skipped = [], set()
        for line, record in _lines(self.path):
            if (record["phase_index"], record["step"]) <= (phase, step):
                kept.append(line)
                skipped |= record.get("skipped", {}).keys()
        write_whole(self.path, "".join(kept))
        return skipped

    def append(self, record: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(path: str | Path) -> Iterable[dict]:
    """Records of a metrics.jsonl; a last line that is not complete is left out."""
    return (record for _, record in _lines(Path(path)))


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The whole lines of a file and what they say."""
    if path.is_file():
        with path.open() as file:
            for line in file:
                try:
                    yield line.rstrip("\n") + "\n", json.loads(line)
                except json.JSONDecodeError:
                    return


def flat(record: dict, prefix: str = "") -> dict[str, float]:
    """Numbers of a record under one-level names (`codebooks/cur/0`), as trackers take them."""
    numbers = {}
    for name, value in record.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{name}"] = value
    return numbers
