"""What `auto` means for `mixed_precision` and `attention`: the faster choice of the machine at hand."""

import logging
from dataclasses import replace
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")  # a dataclass with the fields `mixed_precision` and `attention`
AUTO = "auto"


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

    A CPU without AMX emulates them: on an AVX-512 Xeon a product takes twice the time of one in float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type == "xpu"
    return torch.cpu.get_capabilities().get("amx_bf16", False)
