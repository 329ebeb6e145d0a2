"""The tokenizer's codebooks in training: how they start, when dead codes are replaced, and what each of them leaves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule

from ..codebook_bridle import all_reduce_sum_
from ..layers_bridle import evaluating

EMPTY_BATCHES = 100  # consecutive batches of padding only, after which the search for tokens ends


def initialize_codebooks_(model: torch.nn.Module, batches: Iterator[dict], generator: torch.Generator) -> None:
    """Starts the tokenizer's codebooks from the tokens of the first batches."""
    patches, name = model.bridle.patch_layer, model.main_input_name

    def vectors():
        for batch in batches:
            values, valid = patches.mask_padding(batch[name], batch.get("attention_mask"))
            yield project(model, {name: values} | ({} if valid is None else {"valid": valid}))

    start_codebooks_(model.tokenizer.quantizer, vectors(), generator)


@torch.no_grad()
def start_codebooks_(quantizer: torch.nn.Module, vectors: Iterator[torch.Tensor], generator: torch.Generator) -> None:
    """k-means (or what `codebook_init` says) on the first of `vectors`, (..., d) each: as many over all processes as
    the quantizer asks for. Learned codebooks ask for none and take none.

    Raises:
        ValueError: batch after batch of all processes is nothing but padding.
    """
    tokens, found, empty = [], 0, 0
    while found < quantizer.init_sample_size:
        tokens.append(next(vectors).flatten(0, -2))
        more = int(all_reduce_sum_(torch.tensor(len(tokens[-1]), device=tokens[-1].device)))
        found, empty = found + more, 0 if more else empty + 1
        if empty == EMPTY_BATCHES:
            raise ValueError(f"{EMPTY_BATCHES} batches in a row hold nothing but padding: no token for the codebooks.")
    if tokens:
        quantizer.initialize_(torch.cat(tokens), generator=generator)


def reset_dead_codes_(model, batches: list[dict], step: int, steps: int, generator: torch.Generator) -> int:
    """Moves codes that are hardly used to tokens of this step, when `quantizer_config.reset` says so.

    Periodic resets end half-way, so that the codes the encoder is to predict have settled by the end of the phase.
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
    """What the quantizer receives for a batch of `Phase.draw`, without padding: (tokens, d)."""
    values, valid = batch[model.main_input_name].to(model.device), batch.get("valid")
    with gathered(model), evaluating(model.tokenizer):
        tokens = model.tokenizer.project(values, valid=None if valid is None else valid.to(model.device))  # (B, N, d)
    return tokens.flatten(0, 1) if valid is None else tokens[valid.to(model.device)]


@torch.no_grad()
def residual_energy(model: torch.nn.Module, codes: torch.Tensor, batch: dict, accelerator: Accelerator) -> list[float]:
    """Share of the energy of a batch's tokens that is left after each codebook; empty where none are subtracted."""
    quantizer, valid = model.tokenizer.quantizer, batch.get("valid")
    if not quantizer.codebooks:
        return []
    codes = codes.flatten(0, 1) if valid is None else codes[valid.to(codes.device)]  # (n, M)
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
    """Has the parameters at hand that FSDP2 keeps in shards outside the model's forward."""
    sharded = isinstance(model, FSDPModule)
    if sharded:
        model.unshard()
    try:
        yield
    finally:
        if sharded:
            model.reshard()
