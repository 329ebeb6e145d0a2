"""What transformers' `Trainer` does not do for a pretraining model: it moves nothing that has no gradients."""

from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..codebook_bridle import this_process
from ..codebook_metrics import code_counts, few_codes, usage
from ..codebook_training_bridle import real_patches, reset_dead_codes_
from ..modeling_bridle import BridleForPreTraining
from .remarks import EASY, OF_THE_CLIPS
from .seeds import seed_from

logger = logging.get_logger(__name__)

OF_THE_TOKENIZER = (
    f"{EASY}: give the tokenizer more steps, and in a phase of "
    "a few hundred let its codes follow faster, quantizer_config={'ema_decay': 0.9, 'reset_interval': 10}"
)
HOOKS = WeakKeyDictionary()  # model -> handle of its hook, to remove the hook of an interrupted training


class BridleTrainerCallback(TrainerCallback, ExportableState):
    """Makes `Trainer(model=BridleForPreTraining(config), callbacks=[BridleTrainerCallback()], ...)` train as the loop
    of `bridle_hf.pretrain` does.

    It sets codebooks that were never set from the first batches of the training set, before the first step. Where
    `model.phase` trains the tokenizer, it moves the codebooks by the statistics of each step (eq. 9-13), and replaces
    dead codes as `quantizer_config.reset` says. At the end it warns of codebooks that use few of their codes. A
    `Trainer` trains one phase: for the next one begin it by `model.start_tokenizer_phase()` or
    `model.start_encoder_phase()`, and make a new `Trainer`. Set the phase also before resuming from a checkpoint,
    because the model's weights do not contain it.

    Raises (when training begins):
        TypeError: another model.
        ValueError: several GPUs in one process, fewer tokens in the training set than codes, or a checkpoint that was
            saved in another phase than the model is in.
    """

    def __init__(self):
        self.inputs, self.statistics, self.phase, self.codes, self.valid = [], None, None, None, None

    def state(self):
        """The state that `Trainer` saves in trainer_state.json."""
        return {"args": {}, "attributes": {"phase": self.phase}}

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        if not isinstance(model, BridleForPreTraining):
            raise TypeError(f"BridleTrainerCallback got a {type(model).__name__}; it takes a BridleForPreTraining.")
        if args.n_gpu > 1:
            raise ValueError(
                f"Trainer would share {args.n_gpu} GPUs in one process, which leaves the codebooks behind: start it by "
                "torchrun or accelerate launch, or show it one GPU (CUDA_VISIBLE_DEVICES)."
            )
        if state.global_step > 0:  # resumed
            saved = (state.stateful_callbacks.get(type(self).__name__) or {}).get("attributes", {}).get("phase")
            if saved not in (None, model.phase):
                raise ValueError(
                    f"the checkpoint was saved while model.phase was {saved!r}, and it is {model.phase!r}: begin the "
                    f"phase before Trainer is made, by model.start_tokenizer_phase() or by model.phase = {saved!r}."
                )
        self.phase = model.phase
        if not model.tokenizer.quantizer.was_set:
            rank, _ = this_process()
            with torch.random.fork_rng():
                batches = first_batches(train_dataloader, args.per_device_train_batch_size, seed_from(args.seed, rank))
                model.initialize_codebooks(batches, torch.Generator().manual_seed(args.seed))
        self.inputs, self.statistics = [], None
        if model in HOOKS:  # left by an interrupted training; statistics would be counted twice
            HOOKS[model].remove()
        HOOKS[model] = model.register_forward_hook(self.note, with_kwargs=True)

    def note(self, model, args, inputs, output):
        """Keep the inputs and the statistics of a forward pass in training for the end of its step."""
        if not model.training:
            return
        self.codes, self.valid = output.codes, inputs.get("valid")
        if (found := output.quantizer_stats) is not None:
            self.inputs.append({name: inputs.get(name) for name in (model.main_input_name, "attention_mask", "valid")})
            before = self.statistics
            self.statistics = found if before is None else {name: before[name] + found[name] for name in found}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.statistics is not None:
            model.tokenizer.update_(self.statistics)
            self.statistics = None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.inputs:
            step = state.global_step - 1
            generator = torch.Generator().manual_seed(seed_from(args.seed, step))
            reset_dead_codes_(model, self.inputs, step, state.max_steps, generator)
            self.inputs = []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        HOOKS.pop(model).remove()
        if self.codes is not None:
            sizes = model.tokenizer.quantizer.codebook_sizes
            counts = code_counts(real_patches(self.codes, self.valid).cpu(), sizes)
            few = few_codes(usage(counts, sizes)["perplexity"], sizes, int(counts[0].sum()))
            if few:
                first = model.phase == "encoder" and model.tokenizer.cold_start is not None
                logger.warning("%s. %s", "; ".join(few), OF_THE_CLIPS if first else OF_THE_TOKENIZER)


def first_batches(loader: DataLoader, batch_size: int, seed: int) -> DataLoader:
    """Batches of the training set of a loader, which itself stays where it is. They are drawn at random where the set
    is indexable."""
    options = {}
    if not isinstance(loader.dataset, IterableDataset):
        options = {"shuffle": True, "generator": torch.Generator().manual_seed(seed)}
    return DataLoader(loader.dataset, batch_size=batch_size, collate_fn=loader.collate_fn, **options)
