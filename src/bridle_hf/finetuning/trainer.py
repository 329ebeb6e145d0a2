"""How a fold is trained and tested: transformers' `Trainer` with a sampler, batches, losses and checks of its own."""

from functools import partial
from math import isfinite, prod

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn import functional as F
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..clip_features_bridle import clip_logits
from ..data.listing import name_some
from ..data.mixing import cutmix, mixup
from ..data.pixels import drawn_from


class FoldArguments(TrainingArguments):
    """`TrainingArguments` that use one GPU per process. With several visible GPUs, Trainer would use DataParallel and
    multiply the batch size."""

    @property
    def gpus(self) -> int:
        """GPUs that this process sees."""
        return super().n_gpu

    @property
    def n_gpu(self) -> int:
        return min(1, self.gpus)


class FoldTrainer(Trainer):
    """Trainer with a `sampler` of its own for the training clips, or Trainer's default when it is None.

    `measure` takes the trainer and returns measures of the clips held out, name -> value; what it draws leaves the
    random numbers of training alone.
    A step whose loss or gradient is not finite raises a `FloatingPointError` that names its clips, in all processes and
    before it has changed a weight. `clip_names` are those of all clips.
    """

    def __init__(self, sampler, clip_names=(), measure=None, **options):
        self.sampler, self.clip_names, self.measure = sampler, clip_names, measure
        self.taken = []  # clips, those of them that are not finite, and loss of the micro-batches since the last step
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler or super()._get_train_sampler(train_dataset)

    def _get_learning_rate(self):
        """That of the head, for the records: the highest of the groups."""
        return max(self.lr_scheduler.get_last_lr())

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed
            measures = self.measure(self)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def load_weights(self, checkpoint):
        """Put the weights of a checkpoint into the model."""
        self._load_from_checkpoint(str(checkpoint))

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows = inputs.pop("rows")
        bad = ~torch.isfinite(inputs[self.model.main_input_name].flatten(1)).all(dim=1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.taken.append((rows, bad, loss))
        if self.accelerator.sync_gradients:
            self.check_step()
        return loss

    def check_step(self):
        """Look at the loss and the gradient of a step that is about to be taken."""
        rows, bad, losses = (torch.stack(x) if x[0].ndim == 0 else torch.cat(x) for x in zip(*self.taken, strict=True))
        self.taken.clear()
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        loss, norm = self.accelerator.reduce(torch.stack([losses.sum(), norm]), "mean").tolist()
        if isfinite(loss) and isfinite(norm):
            return
        # a clip that holds NaN has spoilt those that it was mixed with
        of_step, suspects = gather_object(rows.tolist()), gather_object(rows[bad].tolist())
        raise FloatingPointError(
            f"step {self.state.global_step + 1}: loss {loss}, gradient norm {norm}; it changed no weight. "
            f"{'NaN or inf came with these clips' if suspects else 'The clips of the step'}: "
            f"{some(self.clip_names, suspects or of_step)}. Leave out what is broken (data.exclude); "
            "where the clips are sound, a lower training.learning_rate or training.mixed_precision=no helps."
        )


class Sealing(TrainerCallback):
    """Seals each checkpoint of a fold (`KeptFold`) once all processes have written their part of it."""

    def __init__(self, kept):
        self.kept = kept

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        if args.should_save:
            self.kept.seal(state.global_step)


def some(names, rows):
    """The names of the first of several clips, for a message, with their rows, since names may be the same."""
    return name_some([f"{names[row]} (row {row})" for row in dict.fromkeys(rows)])


class TrainingBatches:
    """Collates row numbers to an augmented batch, with mixup or CutMix, and the `rows` that it was made of."""

    def __init__(self, examples, settings):
        self.examples, self.settings = examples, settings

    def __call__(self, rows):
        # torch's generator is seeded by the run, and anew in every worker of every epoch.
        rng = np.random.default_rng(torch.randint(2**63 - 1, ()).item())
        batch = self.examples.training_batch(rows, rng)
        classes = len(self.examples.label_names)
        wanted = targets(self.examples.labels[rows], classes)
        wanted += self.settings.label_smoothing * (1 / classes - wanted)
        if self.settings.cutmix and rng.random() < self.settings.cutmix:
            with drawn_from(rng):
                batch["pixel_values"], wanted = cutmix(batch["pixel_values"], wanted)
        else:
            batch, wanted = self.mix(batch, wanted, rng)
        batch |= {"labels": wanted, "rows": rows}
        return {name: torch.as_tensor(value) for name, value in batch.items()}

    def mix(self, batch, targets, rng):
        """Mix a random share of the clips with each other. A mixed clip is as long as the longer of the two."""
        mask = batch.pop("attention_mask", None)
        ((name, values),) = batch.items()
        chosen = np.flatnonzero(rng.random(len(values)) < self.settings.mixup)
        # The mask goes along as one more mel bin, so that it is mixed with the same partners.
        stacked = values
        if mask is not None:
            bin_ = mask.astype(values.dtype).reshape(*mask.shape, *[1] * (values.ndim - 2))
            stacked = np.concatenate([values, np.broadcast_to(bin_, (*values.shape[:-1], 1))], axis=-1)
        stacked[chosen], targets[chosen] = mixup(stacked[chosen], targets[chosen], rng, alpha=self.settings.mixup_alpha)
        if mask is None:
            return {name: stacked}, targets
        real = stacked[..., -1].reshape(*mask.shape, -1)[..., 0] > 0
        return {name: stacked[..., :-1], "attention_mask": real.astype(mask.dtype)}, targets


def targets(labels, classes):
    """Float32 targets (B, classes) of labels: (B,) classes, or multi-hot (B, classes)."""
    return labels.astype(np.float32) if labels.ndim > 1 else np.eye(classes, dtype=np.float32)[labels]


def predict(trainer, examples, rows, views=(1, 1)):
    """Logits (rows, classes) of clips as they are: with several views of a video, or windows of a long sound
    (`clip_logits`), the mean of their logits.

    Each process takes its share of the clips, batch by batch, and gets the logits of all.
    """
    trainer.model.eval()  # training leaves it hiding patches and dropping paths
    arguments, workers = trainer.args, trainer.args.dataloader_num_workers
    loader = DataLoader(
        rows,
        batch_size=arguments.per_device_eval_batch_size,
        collate_fn=partial(plain_batch, examples, views),
        num_workers=workers,
        prefetch_factor=1 if workers else None,  # the views of a batch of videos are a gigabyte
        pin_memory=arguments.dataloader_pin_memory,
    )

    def classify(values, mask):
        batch = {"input_values": values, "attention_mask": mask}
        return trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)[1]

    logits = []
    for batch in trainer.accelerator.prepare(loader):
        if examples.window is None:
            _, scores, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
        else:
            values, unit = batch["input_values"], trainer.model.config.patch_size[0]
            scores = clip_logits(classify, values, batch["attention_mask"], examples.window, unit, len(values))
        scores = scores.float().unflatten(0, (-1, prod(views))).mean(dim=1)  # (B, classes)
        logits.append(trainer.accelerator.gather_for_metrics(scores).cpu().numpy())
    return np.concatenate(logits)


def plain_batch(examples, views, rows):
    """Collate row numbers to a batch without augmentation; see `VideoCollator.plain` for `views`."""
    options = {} if tuple(views) == (1, 1) else {"views": views}
    return {name: torch.as_tensor(value) for name, value in examples.whole(rows, **options).items()}


def cross_entropy(outputs, labels, num_items_in_batch=None):
    """Cross-entropy with soft targets (B, classes): what mixup makes of labels is no class index any more."""
    return F.cross_entropy(outputs["logits"].float(), labels)


def binary_cross_entropy(outputs, labels, num_items_in_batch=None):
    """Binary cross-entropy with targets (B, classes), mean over clips and classes."""
    return F.binary_cross_entropy_with_logits(outputs["logits"].float(), labels)


LOSSES = {"cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy}
