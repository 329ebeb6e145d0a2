"""Metrics of training steps: one record per logged step, in metrics.jsonl."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import isfinite, nan
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..codebook_metrics import usage
from ..codebook_training_bridle import real_patches
from ..files import write_whole

logger = logging.getLogger(__name__)


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


@torch.no_grad()
def code_usage(
    codes: torch.Tensor, valid: torch.Tensor | None, codebook_sizes: tuple[int, ...], accelerator: Accelerator
) -> dict[str, list[float]]:
    """CUR, ECU and perplexity of each codebook over the codes of a batch on all processes.

    Args:
        codes: (B, N, M).
        valid: (B, N) True for codes that count; None where all do.
        codebook_sizes: K of each codebook.
    """
    codes = real_patches(codes, valid)  # (n, M)
    counts = torch.stack([stage.bincount(minlength=max(codebook_sizes)) for stage in codes.T])
    measured = usage(accelerator.reduce(counts, "sum").cpu().numpy(), codebook_sizes)
    return {name: measured[name].tolist() for name in ("cur", "ecu", "perplexity")}


class MetricsFile:
    """metrics.jsonl: one JSON object per line. Every line is on its way to disk before the next step."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def rewind(self, phase: int, step: int) -> set[str]:
        """Forgets the records after `step` steps of phase number `phase`, and lines that are not JSON.

        Other lines that are no records, such as notes made by hand, stay where they are.

        Returns:
            The names of the clips that the records left say were skipped.
        """
        kept, skipped = [], set()
        for line in _lines(self.path):
            try:
                record = _record(line)
            except json.JSONDecodeError:
                logger.warning("a line of %s cannot be read and was left out: %.40r", self.path, line)
                continue
            if record is None or (record["phase_index"], record["step"]) <= (phase, step):
                kept.append(line)
                skipped |= (record or {}).get("skipped", {}).keys()
        write_whole(self.path, "".join(kept))
        return skipped

    def append(self, record: dict) -> None:
        """Write a record; what is not finite becomes null, which JSON has."""
        finite = _each(record, lambda value: None if isinstance(value, float) and not isfinite(value) else value)
        with self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")


def read_metrics(path: str | Path) -> Iterator[dict]:
    """Records of a metrics.jsonl, with NaN for null; lines that are no records are passed over."""
    for line in _lines(Path(path)):
        with suppress(json.JSONDecodeError):
            if record := _record(line):
                yield _each(record, lambda value: nan if value is None else value)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that hold something, each with its end."""
    if path.is_file():
        with path.open(errors="replace", newline="\n") as file:
            yield from (line.rstrip("\n") + "\n" for line in file if line != "\n")


def _record(line: str) -> dict | None:
    """What a line says; None where that is JSON, but not what a run wrote."""
    found = json.loads(line)
    place = [found.get("phase_index"), found.get("step")] if isinstance(found, dict) else []
    return found if place and all(isinstance(number, int) for number in place) else None


def _each(value, change: Callable):
    """The lists and dicts of a record with every value in them changed."""
    if isinstance(value, dict):
        return {name: _each(each, change) for name, each in value.items()}
    return [_each(each, change) for each in value] if isinstance(value, list) else change(value)
