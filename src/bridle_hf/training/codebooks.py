"""The tokenizer's codebooks in training: initialization, reset of dead codes, energy left after each codebook."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule

from ..codebook_bridle import gather_rows, is_first_process
from ..layers_bridle import evaluating
from .metrics import real_patches

EMPTY_BATCHES = 100  # consecutive batches of padding only, after which the search for tokens ends


def initialize_codebooks_(
    model: torch.nn.Module, batches: Iterator[dict], generator: torch.Generator, micro_batches: int = 1
) -> None:
    """Initialize the tokenizer's codebooks from the tokens of the first batches.

    Args:
        micro_batches: batches that a process takes in a step. The sample is one of whole steps, so that it is the same
            however a step's clips are shared out.
    """
    patches, name = model.bridle.patch_layer, model.main_input_name

    def tokens(batch):
        values, valid = patches.mask_padding(batch[name], batch.get("attention_mask"))
        return project(model, {name: values} | ({} if valid is None else {"valid": valid}))

    def vectors():
        while True:
            yield torch.cat([tokens(next(batches)) for _ in range(micro_batches)])

    start_codebooks_(model.tokenizer.quantizer, vectors(), generator)


@torch.no_grad()
def start_codebooks_(quantizer: torch.nn.Module, vectors: Iterator[torch.Tensor], generator: torch.Generator) -> None:
    """Initialize codebooks from the first `init_sample_size` vectors over all processes, as `codebook_init` says.

    Learned codebooks need no data: their `init_sample_size` is 0.

    Args:
        vectors: batches of vectors, (..., d) each.

    Raises:
        ValueError: batch after batch of all processes is nothing but padding.
    """
    tokens, found, empty = [], 0, 0
    while found < quantizer.init_sample_size:
        # Gathered batch by batch, as one process with the joined batches has them: k-means depends on the order.
        tokens.append(gather_rows(next(vectors).flatten(0, -2)))
        more = len(tokens[-1])
        found, empty = found + more, 0 if more else empty + 1
        if empty == EMPTY_BATCHES:
            raise ValueError(f"{EMPTY_BATCHES} batches in a row hold nothing but padding: no token for the codebooks.")
    if tokens:
        # `initialize_` takes what is of this process, and gathers that.
        sample = torch.cat(tokens) if is_first_process() else tokens[0][:0]
        quantizer.initialize_(sample, generator=generator)


def reset_dead_codes_(model, batches: list[dict], step: int, steps: int, generator: torch.Generator) -> int:
    """Replace rarely used codes by tokens of this step, when `quantizer_config.reset` says so.

    Periodic resets stop half-way through the phase, so that the codes have settled before the encoder predicts them.

    Returns:
        how many codes were replaced.
    """
    config = model.config.quantizer_config
    due = {
        "never": False,
        "first_batch": step == 0,
        "periodic": (step + 1) % config.reset_interval == 0 and step < steps // 2,
    }[config.reset]
    if not due:
        return 0
    tokens = torch.cat([project(model, batch) for batch in batches])
    tokens = tokens[torch.isfinite(tokens).all(-1)]  # what is not finite makes the next step's loss NaN
    return model.tokenizer.quantizer.reset_dead_codes_(tokens, generator=generator)


@torch.no_grad()
def project(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """(n, d), the input of the quantizer for the real patches of a batch of `Phase.draw`."""
    values, valid = batch[model.main_input_name].to(model.device), batch.get("valid")
    with gathered(model), evaluating(model.tokenizer):
        tokens = model.tokenizer.project(values, valid=None if valid is None else valid.to(model.device))  # (B, N, d)
    return real_patches(tokens, valid)


@torch.no_grad()
def residual_energy(model: torch.nn.Module, codes: torch.Tensor, batch: dict, accelerator: Accelerator) -> list[float]:
    """Share of the tokens' energy that is left after each codebook; empty for quantizers without residuals."""
    quantizer, valid = model.tokenizer.quantizer, batch.get("valid")
    if not quantizer.codebooks:
        return []
    codes = real_patches(codes, valid)  # (n, M)
    with accelerator.autocast():
        tokens = project(model, batch)
    left = quantizer.flatten(tokens)  # (n, d)
    energy = [left.square().sum()]
    for stage, book in enumerate(quantizer.codebooks):
        left = left - book.embed[codes[:, stage]]
        energy.append(left.square().sum())
    energy = accelerator.reduce(torch.stack(energy), "sum")
    return (energy[1:] / energy[0]).tolist()


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Gather the parameters that FSDP2 keeps sharded outside the model's forward pass."""
    sharded = isinstance(model, FSDPModule)
    if sharded:
        model.unshard()
    try:
        yield
    finally:
        if sharded:
            model.reshard()
