"""What `auto` in a recipe means: the faster precision and attention of the machine; mean and deviation of the data."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.arguments import AUTO, DataArguments
from ..data.modalities import modality_of
from ..data.streaming import build_loader

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")  # a dataclass with the fields `mixed_precision` and `attention`
MEASURED, AT_A_TIME = 1000, 20  # clips
PLAIN = {
    "cache": False, "num_workers": 0, "roll": False, "gain": False, "frequency_mask": 0.0, "time_mask": 0.0,
    "flip_time": False, "rand_augment": 0, "erase": 0.0,
}  # fmt: skip
STATISTICS = ("mean", "std", "image_mean", "image_std")  # of the processor: of sounds, and of images and videos


def settle(settings: Settings, earlier: dict) -> Settings:
    """The settings without `auto`.

    Args:
        settings: of a recipe, with `mixed_precision` and `attention`.
        earlier: those of the run that this one goes on from, {} for none. What it began with stays, on any machine:
            half of a run in another precision would be another run.

    Returns:
        The settings, with the earlier run's choice or the machine's in the place of each `auto`.
    """
    chosen = {key: earlier.get(key, AUTO) for key in ("mixed_precision", "attention") if getattr(settings, key) == AUTO}
    if chosen.get("mixed_precision") == AUTO:
        chosen["mixed_precision"] = "bf16" if has_bf16_units() else "no"
    if chosen.get("attention") == AUTO:
        precision = chosen.get("mixed_precision", settings.mixed_precision)
        # The backward pass of the CPU's fused kernel is slow in bfloat16, and as fast as the other in float32.
        slow = precision == "bf16" and not torch.accelerator.is_available()
        chosen["attention"] = "eager" if slow else "sdpa"
    if chosen:
        logger.info("auto: %s", ", ".join(f"{key}={value}" for key, value in chosen.items()))
    return replace(settings, **chosen)


def has_bf16_units() -> bool:
    """Whether the accelerator, or the CPU where there is none, multiplies matrices of bfloat16 faster than of float32.

    CPUs do so with AMX or AVX512-BF16. Others emulate bfloat16: on an AVX-512 Xeon without either, a product takes
    twice as long as in float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type == "xpu"
    has = torch.cpu.get_capabilities()
    return has.get("amx_bf16", False) or has.get("avx512_bf16", False)


def check_statistics(processor: dict[str, Any]) -> None:
    """Raise a `ValueError` if a setting besides mean and deviation is "auto", or only one of these two."""
    auto = [key for key, value in processor.items() if value == AUTO]
    if auto and tuple(sorted(auto)) not in (STATISTICS[:2], STATISTICS[2:]):
        raise ValueError(
            f"`processor` has auto for {', '.join(auto)}; it takes it for mean and std, both at once, or, of images "
            "and videos, for image_mean and image_std."
        )


def measure_statistics(data: DataArguments, processor, dataset=None, seed: int = 0) -> dict[str, Any]:
    """Mean and deviation of what a training would see, without augmentation: of log-mel values, or of the colours.

    Args:
        processor: with `Modality.unnormalised`.
        dataset: a dataset in hand instead of `data.dataset`.
        seed: of the order and of the windows. 1,000 are drawn; of a smaller set each clip several times.
    """
    loader = build_loader(replace(data, **PLAIN), processor, dataset, batch_size=AT_A_TIME, seed=seed)
    clips = _clips(islice(loader, ceil(MEASURED / AT_A_TIME)))
    found = modality_of(processor).measure(tqdm(clips, total=MEASURED, unit="clip"), processor)
    logger.info("auto: %s", ", ".join(f"processor.{key}={value}" for key, value in found.items()))
    return found


def _clips(batches: Iterator[dict]) -> Iterator[np.ndarray]:
    """Each clip of batches, without padding."""
    for batch in batches:
        masks = batch.pop("attention_mask", None)
        batch.pop("skipped", None)
        (values,) = batch.values()
        for row, clip in enumerate(values.numpy()):
            yield clip if masks is None else clip[masks[row].bool().numpy()]
