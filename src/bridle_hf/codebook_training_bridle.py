"""A pretraining model's codebooks in training: set from data, started anew, dead codes replaced; phases begun."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from .codebook_bridle import all_reduce_sum_, gather_rows, is_first_process
from .layers_bridle import evaluating

EMPTY_BATCHES = 100  # consecutive batches of padding only, after which the search for tokens ends


def initialize_codebooks(
    self, batches: Iterable, generator: torch.Generator | None = None, batches_per_step: int = 1
) -> None:
    """Set the tokenizer's codebooks from the tokens of the first batches, as `codebook_init` says; before training, and
    after `start_tokenizer_phase`. Call it in every process.

    It takes batches until there are `quantizer.init_sample_size` tokens over all processes, by default 64 a code, or
    until they end. Codebooks that an optimizer learns need no data, and take none.

    Args:
        batches: of the model's inputs, dicts with `input_values` or `pixel_values`, such as a `DataLoader` gives; other
            keys than that and `attention_mask` are passed over.
        generator (*optional*): of the draws; only that of process 0 is used.
        batches_per_step: batches that a process takes in a step. The sample is one of whole steps, so that it is the
            same however a step's clips are shared out.

    Raises:
        TypeError: `batches` is one batch.
        ValueError: batches without the model's input, fewer tokens than codes, nothing but padding, or NaN or inf.
    """
    if isinstance(batches, Mapping | torch.Tensor):
        raise TypeError(f"batches is a {type(batches).__name__}; it takes a list of batches, or a DataLoader.")
    batches = iter(batches)

    def vectors():
        while rows := [project(self, batch) for _, batch in zip(range(batches_per_step), batches, strict=False)]:
            yield torch.cat(rows)

    start_codebooks_(self.tokenizer.quantizer, vectors(), generator)


def start_tokenizer_phase(self, from_encoder: bool = True) -> None:
    """Begin the phase in which the tokenizer learns what the encoder knows: new weights for the tokenizer, no cold
    start, and `phase` "tokenizer" from here on. Its codebooks are to be set next, by `initialize_codebooks`.

    Args:
        from_encoder: start the tokenizer's transformer as a copy of the encoder; otherwise it is drawn anew, and a
            phase of a few hundred steps is too short for it to learn what the encoder knows.
    """
    self.tokenizer.reset_()
    if self.is_activation_checkpointing:  # in the new layers, too
        self.activation_checkpointing_enable()
    if from_encoder:
        self.tokenizer.encoder.load_state_dict(self.bridle.state_dict())
    self.phase = "tokenizer"


def start_encoder_phase(self) -> None:
    """Begin the phase in which the encoder learns to predict the codes of a new tokenizer: a new head for the decoder,
    since the codes mean something else, and `phase` "encoder" from here on."""
    self.decoder.reset_head_()
    self.phase = "encoder"


@torch.no_grad()
def start_codebooks_(
    quantizer: torch.nn.Module, vectors: Iterator[torch.Tensor], generator: torch.Generator | None = None
) -> None:
    """Initialize codebooks from the first `init_sample_size` vectors over all processes, as `codebook_init` says.

    Learned codebooks need no data: their `init_sample_size` is 0.

    Args:
        vectors: batches of vectors, (..., d) each. It may end, in one process before the others.

    Raises:
        ValueError: batch after batch of all processes is nothing but padding; or as `initialize_` says.
    """
    if not quantizer.init_sample_size:
        return
    device, found, empty = next(quantizer.buffers()).device, 0, 0
    tokens = [torch.empty(0, quantizer.dim, device=device)]
    while found < quantizer.init_sample_size:
        rows = next(vectors, None)
        if not all_reduce_sum_(torch.tensor(float(rows is not None), device=device)):
            break
        # Gathered batch by batch, as one process with the joined batches has them: k-means depends on the order.
        tokens.append(gather_rows(tokens[0] if rows is None else rows.flatten(0, -2)))
        more = len(tokens[-1])
        found, empty = found + more, 0 if more else empty + 1
        if empty == EMPTY_BATCHES:
            raise ValueError(f"{EMPTY_BATCHES} batches in a row hold nothing but padding: no token for the codebooks.")
    # `initialize_` takes what is of this process, and gathers that.
    sample = torch.cat(tokens) if is_first_process() else tokens[0]
    quantizer.initialize_(sample, generator=generator)


def reset_dead_codes_(model, batches: list[dict], step: int, steps: int, generator: torch.Generator | None) -> int:
    """Replace rarely used codes by tokens of this step, when `quantizer_config.reset` says so.

    Periodic resets stop half-way through the phase, so that the codes have settled before the encoder predicts them.

    Args:
        batches: the step's inputs, as `project` takes them.
        step, steps: number of the step, from 0, and of all steps of the phase.

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
def project(model: torch.nn.Module, batch: Mapping) -> torch.Tensor:
    """(n, d), the input of the quantizer for the real patches of a batch of the model's inputs.

    Args:
        batch: the input by its name; and `attention_mask`, or `valid` where padded frames are zero already.

    Raises:
        ValueError: the model's input is not there.
    """
    name = model.main_input_name
    if not isinstance(batch, Mapping) or name not in batch:
        got = f"keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"a batch is {got}; the model takes a dict with {name!r}.")
    values, mask, valid = (
        None if each is None else each.to(model.device)
        for each in (batch[name], batch.get("attention_mask"), batch.get("valid"))
    )
    values, valid = model.bridle.patch_layer.mask_padding(values, mask, valid)
    with gathered(model), evaluating(model.tokenizer):
        tokens = model.tokenizer.project(values, valid=valid)  # (B, N, d)
    return real_patches(tokens, valid)


def real_patches(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """(n, d), the rows of `values` (B, N, d) where `valid` (B, N) is True; all of them without `valid`."""
    return values.flatten(0, 1) if valid is None else values[valid.to(values.device)]


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Gather the parameters that FSDP2 keeps sharded outside the model's forward pass."""
    sharded = hasattr(model, "unshard")  # `FSDPModule`, which not every build of torch has
    if sharded:
        model.unshard()
    try:
        yield
    finally:
        if sharded:
            model.reshard()
