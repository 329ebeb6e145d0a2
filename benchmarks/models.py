"""Steps of the phases beside matrix products of as many operations, and the classifier beside transformers' AST."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import Row, random
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTForAudioClassification

from bridle_hf import BridleConfig, BridleForAudioClassification, BridleForPreTraining
from bridle_hf.training.phases import KINDS

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
TINY = {
    "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768,
    "input_size": (512, 128), "decoder_type": "plain", "decoder_hidden_size": 128, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4, "estimator_num_hidden_layers": 2, "predict_ratio": 0.34,
    "quantizer_config": {"codebook_dim": 64},
}  # fmt: skip
SMALL = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SMALL_PHASES = SMALL | {
    "input_size": (64, 32), "decoder_hidden_size": 48, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 2,
    "estimator_num_hidden_layers": 1, "quantizer_config": {"codebook_size": 16, "codebook_dim": 8},
}  # fmt: skip


class Training:
    """A model in one kind of phase, and an optimizer step of it that can be repeated.

    Args:
        config: keyword arguments of `BridleConfig`; sounds unless they say otherwise.
        batch_size: clips of a step.
        kind: "encoder", "tokenizer" or "joint".
        cold_start: False takes codes from the full tokenizer in an encoder phase.
        masks: a clip.
        device: "cpu" or "cuda".
        precision: dtype of the matrix products; `torch.float32` turns autocast off.
    """

    def __init__(
        self,
        config: dict,
        batch_size: int,
        kind: str,
        cold_start: bool = True,
        masks: int = 1,
        device: str = "cpu",
        precision: torch.dtype = torch.bfloat16,
    ):
        torch.manual_seed(0)
        attention = {"attn_implementation": "eager"} if device == "cpu" else {}
        config = BridleConfig(**{"modality": "audio"} | attention | config)
        with torch.device(device):
            self.model, self.kind, self.device = BridleForPreTraining(config), kind, device
        if kind == "tokenizer" or not cold_start:
            self.model.tokenizer.reset_()
        KINDS[kind]().set_modes_(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        self.masks, self.precision = masks, precision
        self.draw(batch_size)

    def draw(self, batch_size: int) -> None:
        """Other inputs and masks for the steps that follow."""
        config, device = self.model.config, self.device
        frames, size = config.input_size[:-2], config.input_size[-2:]
        channels = () if config.modality == "audio" else (config.num_channels,)
        self.inputs = {self.model.main_input_name: random(batch_size, *frames, *channels, *size).to(device)}
        noise = torch.rand(self.masks * batch_size, prod(config.grid), generator=torch.Generator().manual_seed(0))
        self.noise = noise.to(device)

    def step(self, **inputs) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.model(**self.inputs, noise=self.noise, phase=self.kind, **inputs)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if output.quantizer_stats is not None:
            self.model.tokenizer.update_(output.quantizer_stats)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self) -> int:
        """FLOPs of the matrix products of one step, without those that a fused kernel computes again for gradients."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.step()  # other kernels compute products again in their backward pass
        return counter.get_total_flops()


def products(operations: int, largest: int = 2048) -> Callable[[], None]:
    """As many operations in bfloat16 products of square matrices: what this machine needs for them at best.

    The matrices are `largest` wide, or as small as makes one product of them all.
    """
    size = min(largest, round((operations / 2) ** (1 / 3)))
    a, b = random(size, size).bfloat16(), random(size, size).bfloat16()

    def work() -> None:
        for _ in range(round(operations / (2 * size**3))):
            a @ b

    return work


def phase_rows(name: str, config: dict, batch_size: int) -> Iterator[Row]:
    """A step of each kind of phase. The second encoder phase is given its codes: it should cost what the first does."""
    for kind in ("encoder", "tokenizer"):
        training = Training(config, batch_size, kind)
        floor = products(training.operations())
        others = {"floor: products alone": floor}
        yield Row(f"{kind} phase, {name}, batch {batch_size}", training.step, others, batch_size, "clip")
    first, second = (Training(config, batch_size, "encoder", cold_start=cold) for cold in (True, False))
    codes = second.model.tokenizer.encode(*second.inputs.values())
    yield Row(
        f"encoder phase 2, codes given, {name}, batch {batch_size}",
        lambda: second.step(codes=codes),
        {"encoder phase 1": first.step, "encoder phase 2, codes computed": second.step},
        batch_size,
        "clip",
    )


def precision_rows(name: str, config: dict, batch_size: int) -> Iterator[Row]:
    """A step in bfloat16 with eager attention, compared with the other combinations that `auto` chooses from."""
    choices = {
        f"{dtype}".removeprefix("torch.") + f", {attention}": (dtype, attention)
        for dtype in (torch.bfloat16, torch.float32)
        for attention in ("eager", "sdpa")
    }
    for kind in ("encoder", "tokenizer"):
        steps = {
            label: Training(config | {"attn_implementation": attention}, batch_size, kind, precision=dtype).step
            for label, (dtype, attention) in choices.items()
        }
        (label, ours), *others = steps.items()
        yield Row(f"{kind} phase, {name}, batch {batch_size}: {label}", ours, dict(others), batch_size, "clip")


def operators(config: dict, batch_size: int, kind: str) -> dict[str, float]:
    """Share of a step's processor time by operator, the largest first, all matrix products taken together."""
    training = Training(config, batch_size, kind)
    training.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        training.step()
    shares = Counter()
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        shares["matrix products" if name in PRODUCTS else name] += event.self_cpu_time_total
    return {name: time / shares.total() for name, time in shares.most_common()}


def peak_memory(config: dict, batch_size: int, recompute: bool) -> float:
    """GB that a process needs at most for steps of the encoder phase, the interpreter and its libraries included.

    Args:
        recompute: keep the inputs of layers alone for the backward pass, and compute the rest again.
    """
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_steps, (config, batch_size, recompute))


def _peak_of_steps(config: dict, batch_size: int, recompute: bool) -> float:
    training = Training(config, batch_size, "encoder")
    if recompute:
        training.model.activation_checkpointing_enable()
    for _ in range(3):
        training.step()
    # Of this process alone, in kB: ru_maxrss begins at what the parent had.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) / 1e6


def classification_row(sizes: dict, frames: int = 1024) -> Row:
    """One clip through a classifier and through an AST of the same width and depth, in float32."""
    ours = BridleForAudioClassification(BridleConfig(modality="audio", input_size=(frames, 128), **sizes)).eval()
    ast = ASTForAudioClassification(ASTConfig(max_length=frames, **sizes)).eval()
    values = random(1, frames, 128)

    def forward(model: torch.nn.Module) -> None:
        with torch.no_grad():
            model(input_values=values)

    return Row(f"classify a clip of {frames} frames", lambda: forward(ours), {"transformers AST": lambda: forward(ast)})
