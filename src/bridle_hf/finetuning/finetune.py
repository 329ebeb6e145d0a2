"""Fine-tuning of a pretrained encoder for classification with transformers' Trainer, fold by fold."""

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import WeightedRandomSampler
from transformers import set_seed

from .. import modeling_bridle
from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.examples import balanced_weights, load_examples
from ..data.labels import LabelError
from ..data.listing import name_some
from ..data.modalities import MODALITIES, load_processor, modality_of, processor_keys
from ..evaluation.cross_validation import check_folds, choose_folds, outer_folds
from ..evaluation.metrics import load_metric
from ..files import write_whole
from ..recipe_reader import config_keys, recipe_to_yaml
from ..training.locking import sole_writer
from ..training.parameters import check_finite, parameter_groups
from ..training.precision import settle
from .folds import (
    CHECKPOINTS,
    KeptFold,
    begun_with,
    describe_data,
    finite,
    folder_names,
    mean_over_folds,
    skip_epochs_done,
)
from .trainer import LOSSES, FoldArguments, FoldTrainer, Sealing, TrainingBatches, predict, some

logger = logging.getLogger(__name__)


@dataclass
class FinetuneTraining:
    """How a fold is trained.

    Attributes:
        epochs: passes over the training folds; the model of the last one is reported and saved.
        batch_size: clips a process takes in one forward pass.
        learning_rate: peak of the cosine schedule, of the head; warmed up linearly over `warmup_epochs`.
        max_grad_norm: gradients are scaled down to this norm; null never clips.
        layer_decay: each layer further from the head learns by this factor more slowly; null is one rate for all, and 0
            a linear probe: the encoder is frozen, and the head and the norm in front of it learn.
        loss: "cross_entropy", or "binary_cross_entropy" over all classes (the paper's, also for ESC-50), which clips
            with several labels need.
        balanced: draw clips with replacement, each with a weight of the sum over its labels of 1 / clips with that
            label, so that rare sounds are heard as often as frequent ones (the recipe of AudioSet's 2 M).
        clips_per_epoch: with `balanced`, clips drawn an epoch; null is as many as there are.
        mixup: share of the clips of a batch that are mixed with another one.
        mixup_alpha: weights are drawn from Beta(alpha, alpha).
        cutmix: share of the batches in which a box of each clip comes from another one instead (images, videos).
        label_smoothing: share of each target that is spread over all classes.
        mixed_precision: "no" or "bf16"; "auto" is bf16 where the processor has matrix units for it.
        attention: an attention implementation of transformers; null leaves the choice to it, "auto" is the faster of
            eager and sdpa.
    """

    epochs: int = 100
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    warmup_epochs: float = 10.0
    weight_decay: float = 1e-4
    layer_decay: float | None = 0.75
    max_grad_norm: float | None = 1.0
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    mixup: float = 0.5
    mixup_alpha: float = 10.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    balanced: bool = False
    clips_per_epoch: int | None = None
    mixed_precision: Literal["auto", "no", "bf16"] = "no"
    attention: str | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a whole number of at least 1.")
        if self.clips_per_epoch is not None and not (self.balanced and self.clips_per_epoch > 0):
            raise ValueError(
                f"`clips_per_epoch` is {self.clips_per_epoch}; it takes a number of at least 1, with balanced=true."
            )
        for name in ("mixup", "cutmix", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a share between 0 and 1.")


@dataclass
class FinetuneRecipe:
    """A fine-tuning run over the folds of a labelled set.

    Attributes:
        model: folder or Hub id of a pretrained model; `{fold}` in it stands for the test fold (one model a fold).
        output_dir: receives fold-K/ (a model that transformers' pipelines load, and fold.json with its scores; see
            `folder_names`), results.json and finetune.yaml, this recipe with nothing left to look up.
        data: the labelled clips, and how the training ones are augmented. With `test_split` it is the only fold, named
            as the split is; without that and without `fold_column`, five folds are drawn.
        from_scratch: draw random weights of the same architecture, the control without pretraining. It is a fair one
            with `training.layer_decay` null: random weights have no layers that should change slowly.
        folds: test folds to run; null is all of them.
        seed: of weights, order, augmentation and drawn folds.
        config: what to change in the model's config, such as `drop_path_rate` or `classifier_mask_ratio`.
        processor: what to change in the settings of its processor, such as `mean` or `frame_stride`.
    """

    model: str
    output_dir: str
    data: DataArguments
    from_scratch: bool = False
    folds: list[int | str] | None = None
    seed: int = 0
    config: dict = field(default_factory=dict, metadata={"keys": lambda _: config_keys(BridleConfig)})
    processor: dict = field(default_factory=dict, metadata={"keys": processor_keys})
    training: FinetuneTraining = field(default_factory=FinetuneTraining)

    def __post_init__(self):
        if "{fold}" in self.model and not self.folds:
            raise ValueError("`folds` is missing; with {fold} in `model` it takes the list of test folds.")
        if not self.data.label_column:
            raise ValueError("`data.label_column` is missing; it takes the name of the column with the classes.")


def finetune(recipe, dataset=None, test_dataset=None):
    """Fine-tunes one model a fold on the other folds and tests it on that fold, after the last epoch.

    Started again, it passes over folds that are done and goes on with the unfinished one from its last checkpoint.
    What another recipe or pretrained model left in the folder of a fold is moved to fold-K.old-1, fold-K.old-2, ...

    Args:
        recipe (`FinetuneRecipe`)
        dataset: a dataset in hand instead of `recipe.data.dataset`, see `load_examples`.
        test_dataset: one to test on, instead of folds.

    Returns:
        dict: the measures of `score`, as means over folds; `folds`, and in their order the lists `per_fold` of the
        first measure and `per_fold_MEASURE` of the others; `from_scratch`, `seed`. Also written to results.json.

    Raises:
        LabelError: for labels or folds that cannot be used, before the first clip is decoded.
        FloatingPointError: the loss or the gradient of a step is NaN or inf.
        FolderError: for a fold's folder that another run writes to.
        ValueError: for an option that the modality does not have, and for another number of processes than a fold was
            begun with.
    """
    recipe = replace(recipe, training=settle(recipe.training, begun_with(Path(recipe.output_dir))))
    processor = load_processor(_model_of(recipe, (recipe.folds or [None])[0]), recipe.config, **recipe.processor)
    modality = modality_of(processor)
    if recipe.training.cutmix and not modality.has_boxes:
        raise ValueError(f"`training.cutmix` is {recipe.training.cutmix}; {modality.name} takes 0, it has no boxes.")
    if tuple(recipe.data.test_views) != (1, 1) and not modality.has_views:
        raise ValueError(f"`data.test_views` is {recipe.data.test_views}; {modality.name} takes [1, 1] alone.")
    examples = load_examples(recipe.data, processor, dataset, test_dataset, partial(check_labels, recipe))
    folds = outer_folds(examples.labels, examples.folds, recipe.seed)
    names, read = folder_names(np.unique(folds).tolist()), describe_data(examples, folds)
    scores = {}
    for fold in choose_folds(recipe.folds, folds, examples.test_folds):
        folder = Path(recipe.output_dir) / names[fold]
        kept = KeptFold(folder, fold, recipe, _model_of(recipe, fold), read, examples.fingerprint)
        if (before := kept.scores()) is not None:
            scores[fold] = before
            logger.info("fold %s was done before: %s", fold, before)
            continue
        of_this_fold = load_processor(_model_of(recipe, fold), recipe.config, **recipe.processor)
        if of_this_fold.to_dict() != processor.to_dict():
            processor = of_this_fold
            examples = load_examples(recipe.data, processor, dataset, test_dataset)
        with sole_writer(kept.lock, PartialState(cpu=not torch.accelerator.is_available()).is_main_process):
            scores[fold] = finetune_fold(recipe, fold, examples, folds == fold, processor, kept)
        logger.info("fold %s: %s", fold, scores[fold])
    measures = list(next(iter(scores.values())))
    per_fold = {name: [finite(score[name]) for score in scores.values()] for name in measures}
    main, *others = measures
    results = {
        **{name: finite(mean_over_folds([score[name] for score in scores.values()])) for name in measures},
        "folds": list(scores),
        "per_fold": per_fold[main],
        **{f"per_fold_{name}": per_fold[name] for name in others},
        "from_scratch": recipe.from_scratch,
        "seed": recipe.seed,
    }
    if PartialState(cpu=not torch.accelerator.is_available()).is_main_process:
        folder = Path(recipe.output_dir)
        write_whole(folder / "finetune.yaml", recipe_to_yaml(recipe))
        write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def check_labels(recipe, found):
    """Raise a `LabelError` where labels or folds (`Labels`) are not what the recipe takes."""
    if found.labels.ndim > 1:
        if recipe.training.loss == "cross_entropy":
            raise LabelError("`training.loss` is 'cross_entropy'; clips with several labels take binary_cross_entropy.")
        if found.folds is None:
            raise LabelError("`data.test_split` is missing; clips with several labels take it, or `data.fold_column`.")
    elif joined := joined_label(found.label_names):
        parts = f"data.label_column: the parts of {joined!r} are labels of other clips"
        if recipe.training.loss == "binary_cross_entropy":
            raise LabelError(
                f"{parts}; several labels are a list (in jsonl or parquet, say), and if this is one class, its name "
                "takes no comma, semicolon or bar."
            )
        logger.warning("%s; it is taken for a class of its own", parts)
    check_folds(found, recipe.seed, recipe.folds)


def joined_label(names):
    """The first class whose name is that of several joined by a separator: each part of it is also found in others."""
    parts = {name: {part.strip(" []'\"") for part in re.split("[,;|]", name)} for name in names}
    often = Counter(part for each in parts.values() for part in each)
    return next((name for name, each in parts.items() if len(each) > 1 and all(often[part] > 1 for part in each)), None)


def finetune_fold(recipe, fold, examples, test, processor, kept):
    """Trains on the clips outside `test` (n,), tests on those inside, and saves to the folder of `kept` (`KeptFold`).

    Returns:
        dict: what `score` gives for the test clips.
    """
    set_seed(recipe.seed)
    model = build_classifier(recipe, _model_of(recipe, fold), examples.label_names)
    check_finite(model, f"model is {_model_of(recipe, fold)!r}")
    settings = recipe.training
    if settings.layer_decay == 0:
        model.bridle.requires_grad_(False)  # no gradient through it, and none of it in the norm that is clipped
    train_rows, test_rows = np.flatnonzero(~test).tolist(), np.flatnonzero(test).tolist()
    clips_per_epoch = settings.clips_per_epoch or len(train_rows)
    arguments = FoldArguments(
        output_dir=str(kept.folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(1, 4 * settings.batch_size // prod(recipe.data.test_views)),
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=settings.max_grad_norm or 0.0,  # Trainer's word for none
        use_cpu=not torch.accelerator.is_available(),
        bf16=settings.mixed_precision == "bf16",
        seed=recipe.seed,
        eval_strategy="no",
        save_strategy="steps",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # `FoldTrainer` looks itself
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=0 if recipe.data.in_memory else recipe.data.num_workers,
        dataloader_pin_memory=torch.accelerator.is_available(),
        average_tokens_across_devices=False,
    )
    if arguments.gpus > 1:
        logger.warning("one of %d GPUs is used; started by `accelerate launch` all are", arguments.gpus)
    if arguments.should_save:
        kept.begin()
    clips_per_step = settings.batch_size * settings.gradient_accumulation_steps * arguments.world_size
    steps_per_epoch = ceil(clips_per_epoch / clips_per_step)
    arguments.warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    arguments.save_steps = ceil(settings.epochs / CHECKPOINTS) * steps_per_epoch  # at the end of epochs
    groups = parameter_groups(model, settings.learning_rate, settings.weight_decay, settings.layer_decay)
    sampler = None
    if settings.balanced:
        weights = balanced_weights(examples.labels[train_rows])
        # seeded, because all processes have to draw the same clips before they share them out
        generator = torch.Generator().manual_seed(recipe.seed)
        sampler = WeightedRandomSampler(weights, clips_per_epoch, generator=generator)
    trainer = FoldTrainer(
        sampler,
        examples.clip_names,
        callbacks=[Sealing(kept)],
        model=model,
        args=arguments,
        train_dataset=train_rows,
        data_collator=TrainingBatches(examples, settings),
        compute_loss_func=LOSSES[settings.loss],
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "lr": settings.learning_rate}),
    )
    # Each micro-batch is a mean of its own, so accumulation has to divide by their number.
    trainer.loss_is_scaled_for_ga = False
    (checkpoint,) = broadcast_object_list([kept.checkpoint() if arguments.should_save else None])
    if checkpoint is not None:
        skip_epochs_done(checkpoint, sampler, settings.epochs * steps_per_epoch)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if arguments.should_save:
        model.save_pretrained(kept.folder)
        processor.save_pretrained(kept.folder)
    logits = predict(trainer, examples, test_rows, recipe.data.test_views)
    sound = np.isfinite(logits).all(axis=1)
    if not sound.all():
        bad = [row for row, is_sound in zip(test_rows, sound, strict=True) if not is_sound]
        named = some(examples.clip_names, bad)
        logger.warning("fold %s is scored without %d clips that give NaN or inf: %s", fold, len(bad), named)
    scores = score(logits[sound], examples.labels[test_rows][sound])
    if missing := [name for name, value in scores.items() if np.isnan(value)]:
        logger.warning("fold %s has no %s: no class has both clips with it and without", fold, ", ".join(missing))
    if arguments.should_save:
        kept.finish(scores)
    return scores


def build_classifier(recipe, source, label_names):
    """A classifier over the encoder of `source`, or over random weights of its architecture.

    A `source` that is a classifier itself keeps its head where the classes are the same; otherwise a new one is drawn.
    """
    config = BridleConfig.from_pretrained(source, attn_implementation=recipe.training.attention, **recipe.config)
    classifier = getattr(modeling_bridle, MODALITIES[config.modality].classifier)
    before = list(config.id2label.values()) if classifier.__name__ in (config.architectures or ()) else None
    single = recipe.training.loss == "cross_entropy"
    config.problem_type = "single_label_classification" if single else "multi_label_classification"
    names = {"id2label": dict(enumerate(label_names)), "label2id": {n: label for label, n in enumerate(label_names)}}
    if recipe.from_scratch or before in (None, label_names):
        config.update(names)
        return classifier(config) if recipe.from_scratch else classifier.from_pretrained(source, config=config)
    logger.warning(
        "model %s is a classifier of other classes (%s); the head for these is drawn anew", source, name_some(before)
    )
    model = classifier.from_pretrained(source, config=config)
    model.config.update(names)
    model.num_labels = len(label_names)
    model.classifier = torch.nn.Linear(config.hidden_size, model.num_labels)
    model._init_weights(model.classifier)
    return model


def score(logits, labels):
    """Measures of logits (n, classes), the main one first.

    NaN stands for what the clips cannot tell: the precision where none has a label, AUC and d-prime where each class is
    on all of them or on none.

    Args:
        labels: (n,) classes, for accuracy, top-5 accuracy and mean average precision; or multi-hot (n, classes), for
            mean average precision, the mean area under the ROC curve and d-prime.
    """
    given = {"predictions": logits, "references": labels}
    if labels.ndim > 1:
        there = labels.any(axis=0)
        measures = dict.fromkeys(("mean_average_precision", "auc", "d_prime"), np.nan)
        if there.any():
            measures |= load_metric("mean_average_precision").compute(**given)
        if (there & ~labels.all(axis=0)).any():
            measures |= load_metric("d_prime").compute(**given)
        return {name: measures[name] for name in ("mean_average_precision", "auc", "d_prime")}
    precision = load_metric("mean_average_precision").compute(**given)["mean_average_precision"]
    top = load_metric("top_k_accuracy").compute(**given, k=min(5, logits.shape[1]))
    return {
        "accuracy": top["accuracy"],
        "top_5_accuracy": top["top_k_accuracy"],
        "mean_average_precision": precision,
    }


def _model_of(recipe, fold):
    """The pretrained model for a test fold."""
    return recipe.model.replace("{fold}", str(fold))
