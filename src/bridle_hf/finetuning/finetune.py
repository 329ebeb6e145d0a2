"""Fine-tuning of a pretrained encoder for classification with transformers' Trainer, fold by fold."""

import json
import logging
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import WeightedRandomSampler
from transformers import set_seed

from ..configuration_bridle import BridleConfig
from ..data.examples import balanced_weights, load_examples
from ..data.labels import LabelError
from ..data.modalities import load_processor
from ..evaluation.cross_validation import check_classes, check_folds, choose_folds, outer_folds
from ..evaluation.metrics import load_metric
from ..files import write_whole
from ..recipe_reader import recipe_to_yaml
from ..training.auto import settle
from ..training.locking import sole_writer
from ..training.parameters import check_finite, parameter_groups
from .classifier import build_classifier
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
from .lora import ADAPTER, add_adapters, require_peft
from .recipe import FinetuneRecipe, FinetuneTraining
from .tables import keep_results, write_fold_tables, write_tables
from .trainer import LOSSES, FoldArguments, FoldTrainer, Sealing, TrainingBatches, predict, some, targets
from .validation import Curves, Stopping, best_record, hold_out

__all__ = ["FinetuneRecipe", "FinetuneTraining", "finetune"]

logger = logging.getLogger(__name__)


def finetune(recipe, dataset=None, test_dataset=None):
    """Fine-tunes one model per fold: trained on all other folds, tested on this one.

    It is tested after the last epoch, or with the weights of the best one, see `FinetuneTraining.keep`.

    Started again, it passes over folds that are done and goes on with the unfinished one from its last checkpoint.
    What another recipe or pretrained model left in the folder of a fold is moved to fold-K.old-1, fold-K.old-2, ...

    Args:
        recipe (`FinetuneRecipe`)
        dataset: a dataset in hand instead of `recipe.data.dataset`, see `load_examples`.
        test_dataset: one to test on, instead of folds.

    Returns:
        dict: the measures of `score`, as means over folds; `folds`, and in their order the lists `per_fold` of the
        first measure and `per_fold_MEASURE` of the others; with `training.validation_share` the `epochs` that the
        weights are of, and with `final` its `final_epochs`; `from_scratch`, `seed`. Also written to results.json, and
        tables of the classes and the clips to the files that `tables` names.

    Raises:
        LabelError: for labels or folds that cannot be used, before the first clip is decoded.
        FloatingPointError: the loss or the gradient of a step is NaN or inf.
        FolderError: for a fold's folder that another run writes to.
        ModuleNotFoundError: `training.lora_rank` without peft.
        ValueError: for an option that the modality does not have, and for another number of processes than a fold was
            begun with.
    """
    recipe = replace(recipe, training=settle(recipe.training, begun_with(Path(recipe.output_dir))))
    source = _model_of(recipe, (recipe.folds or [None])[0])
    processor = load_processor(source, recipe.config, **recipe.processor)
    recipe.check_against(BridleConfig.from_pretrained(source, **recipe.config))
    if recipe.training.lora_rank:
        require_peft()
    if recipe.final and test_dataset is not None:
        raise ValueError("`final` is true; with a test_dataset it takes false, since its fold has all training clips.")
    examples = load_examples(recipe.data, processor, dataset, test_dataset, partial(check_labels, recipe))
    alone = recipe.folds == []  # final/ alone
    folds = np.ones(len(examples), int) if alone else outer_folds(examples.labels, examples.folds, recipe.seed)
    names, read = folder_names(np.unique(folds).tolist()), describe_data(examples, folds)
    scores, epochs = {}, {}
    for fold in [] if alone else choose_folds(recipe.folds, folds, examples.test_folds):
        folder = Path(recipe.output_dir) / names[fold]
        kept = KeptFold(folder, fold, recipe, _model_of(recipe, fold), read, examples.fingerprint)
        if (before := kept.scores()) is not None:
            scores[fold], epochs[fold] = before, kept.epoch()
            logger.info("fold %s was done before: %s", fold, before)
            continue
        of_this_fold = load_processor(_model_of(recipe, fold), recipe.config, **recipe.processor)
        if of_this_fold.to_dict() != processor.to_dict():
            processor = of_this_fold
            examples = load_examples(recipe.data, processor, dataset, test_dataset)
        with sole_writer(kept.lock, _is_main_process()):
            scores[fold], epochs[fold] = finetune_fold(recipe, fold, examples, folds == fold, processor, kept)
        logger.info("fold %s: %s", fold, scores[fold])
    if recipe.final:
        taken = list(epochs.values()) or [recipe.training.epochs]
        clips = describe_data(examples, np.ones(len(examples), int))  # the same for any folds
        final_epochs = finetune_final(recipe, examples, processor, clips, taken)
    measures = list(next(iter(scores.values()), ()))
    per_fold = {name: [finite(score[name]) for score in scores.values()] for name in measures}
    results = {
        **{name: finite(mean_over_folds([score[name] for score in scores.values()])) for name in measures},
        "folds": list(scores),
        **{f"per_fold_{name}" if number else "per_fold": per_fold[name] for number, name in enumerate(measures)},
        **({"epochs": list(epochs.values())} if recipe.training.validation_share else {}),
        **({"final_epochs": final_epochs} if recipe.final else {}),
        "from_scratch": recipe.from_scratch,
        "seed": recipe.seed,
    }
    if _is_main_process():
        folder = Path(recipe.output_dir)
        earlier_stay = alone and keep_results(folder, recipe_to_yaml(recipe))
        write_whole(folder / "finetune.yaml", recipe_to_yaml(recipe))
        if not earlier_stay:
            write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
        tested = {fold: (folder / names[fold], np.flatnonzero(folds == fold)) for fold in scores}
        if tested:
            write_tables(folder, tested, examples, results)
    return results


def check_labels(recipe, found):
    """Raise a `LabelError` where labels or folds (`Labels`) are not what the recipe takes."""
    if found.labels.ndim > 1:
        if recipe.training.loss == "cross_entropy":
            raise LabelError("`training.loss` is 'cross_entropy'; clips with several labels take binary_cross_entropy.")
        if found.folds is None and recipe.folds != []:
            raise LabelError("`data.test_split` is missing; clips with several labels take it, or `data.fold_column`.")
    elif joined := joined_label(found.label_names):
        parts = f"data.label_column: the parts of {joined!r} are labels of other clips"
        if recipe.training.loss == "binary_cross_entropy":
            raise LabelError(
                f"{parts}; several labels are a list (in jsonl or parquet, say), and if this is one class, its name "
                "takes no comma, semicolon or bar."
            )
        logger.warning("%s; it is taken for a class of its own", parts)
    if recipe.folds == []:
        return check_classes(found)
    check_folds(found, recipe.seed, recipe.folds)
    if share := recipe.training.validation_share:
        folds = outer_folds(found.labels, found.folds, recipe.seed)
        for fold in choose_folds(recipe.folds, folds, found.test_folds):
            rows = np.flatnonzero(folds != fold)
            if not hold_out(found.labels, rows, share, recipe.seed)[1]:
                raise LabelError(
                    f"`training.validation_share` is {share}: none of the {len(rows)} training clips of fold {fold!r}; "
                    "it takes a larger share."
                )


def joined_label(names):
    """The first class whose name is that of several joined by a separator: each part of it is also found in others."""
    parts = {name: {part.strip(" []'\"") for part in re.split("[,;|]", name)} for name in names}
    often = Counter(part for each in parts.values() for part in each)
    return next((name for name, each in parts.items() if len(each) > 1 and all(often[part] > 1 for part in each)), None)


def finetune_fold(recipe, fold, examples, test, processor, kept):
    """Trains on the clips outside `test` (n,), tests on those inside, and saves to the folder of `kept` (`KeptFold`).

    Returns:
        dict: what `score` gives for the test clips.
        int: the epoch whose weights were tested.
    """
    train_rows, test_rows = np.flatnonzero(~test).tolist(), np.flatnonzero(test).tolist()
    held_out = []
    if recipe.training.validation_share:
        train_rows, held_out = hold_out(examples.labels, train_rows, recipe.training.validation_share, recipe.seed)
    trainer, epoch = train_classifier(recipe, fold, examples, train_rows, held_out, kept)
    if trainer.args.should_save:
        trainer.model.save_pretrained(kept.folder)
        processor.save_pretrained(kept.folder)
    logits = predict(trainer, examples, test_rows, recipe.data.test_views)
    scores = score_sound(f"fold {fold}", logits, examples, test_rows)
    if missing := [name for name, value in scores.items() if np.isnan(value)]:
        logger.warning("fold %s has no %s: no class has both clips with it and without", fold, ", ".join(missing))
    if trainer.args.should_save:
        write_fold_tables(kept.folder, logits, examples, test_rows)
        kept.finish(scores, epoch)
    return scores, epoch


def finetune_final(recipe, examples, processor, read, epochs):
    """Trains a classifier on all clips and saves it to final/.

    It takes as many epochs as those of the folds on average. The learning rate follows the cosine over the epochs of
    the recipe, as it did in the folds.

    Args:
        read: see `describe_data`.
        epochs: those that the weights of the folds are of.

    Returns:
        int: the epochs.
    """
    number = round(np.mean(epochs))
    kept = KeptFold(
        Path(recipe.output_dir) / "final", None, recipe, recipe.model, read | {"epochs": number}, examples.fingerprint
    )
    if kept.scores() is None:
        with sole_writer(kept.lock, _is_main_process()):
            rows = list(range(len(examples)))
            trainer, _ = train_classifier(recipe, None, examples, rows, [], kept, number)
            if trainer.args.should_save:
                trainer.model.save_pretrained(kept.folder)
                processor.save_pretrained(kept.folder)
                kept.finish({}, number)
        logger.info("%s: trained on all %d clips for %d epochs", kept.folder, len(rows), number)
    return number


def train_classifier(recipe, fold, examples, train_rows, held_out, kept, last_epoch=None):
    """Trains on some clips, from the last checkpoint of `kept` where there is one, and measures those held out.

    It ends after `last_epoch`, if that is given and comes before the last one of the recipe.

    Returns:
        FoldTrainer: with the model, of the last epoch or the best one.
        int: that epoch, counted from 1.
    """
    set_seed(recipe.seed)
    model = build_classifier(recipe, _model_of(recipe, fold), examples.label_names)
    check_finite(model, f"model is {_model_of(recipe, fold)!r}")
    settings = recipe.training
    if settings.layer_decay == 0:
        model.bridle.requires_grad_(False)  # no gradient through it, and none of it in the norm that is clipped
    if settings.lora_rank:
        model = add_adapters(model, settings)
    clips_per_epoch = settings.clips_per_epoch or len(train_rows)
    arguments = FoldArguments(
        output_dir=str(kept.folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(1, 4 * settings.batch_size // prod(recipe.data.test_views)),
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=settings.max_grad_norm or 0.0,  # Trainer's word for none
        use_cpu=not torch.accelerator.is_available(),
        bf16=settings.mixed_precision == "bf16",
        seed=recipe.seed,
        eval_strategy="steps" if held_out else "no",
        save_strategy="steps",
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # `FoldTrainer` looks itself
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],  # Trainer does not find them in a peft model
        dataloader_num_workers=0 if recipe.data.in_memory else recipe.data.workers,
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
    # In the last step of an epoch, in this order: a checkpoint holds the records up to its own step.
    arguments.logging_steps = steps_per_epoch
    arguments.eval_steps = settings.eval_epochs * steps_per_epoch
    arguments.save_steps = ceil(settings.epochs / CHECKPOINTS) * steps_per_epoch
    groups = parameter_groups(model, settings.learning_rate, settings.weight_decay, settings.layer_decay)
    sampler = None
    if settings.balanced:
        weights = balanced_weights(examples.labels[train_rows])
        # seeded, because all processes have to draw the same clips before they share them out
        generator = torch.Generator().manual_seed(recipe.seed)
        sampler = WeightedRandomSampler(weights, clips_per_epoch, generator=generator)

    def measure(trainer):
        logits = predict(trainer, examples, held_out, recipe.data.test_views)
        return score_sound(f"the validation of fold {fold}", logits, examples, held_out, LOSSES[settings.loss])

    trainer = FoldTrainer(
        sampler,
        examples.clip_names,
        measure,
        callbacks=[
            Sealing(kept),
            Curves(kept.folder, settings),
            Stopping(settings, last_epoch and last_epoch * steps_per_epoch),
        ],
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=held_out,
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
    step = trainer.state.global_step
    if settings.keep == "best" and held_out:
        step = best_record(trainer.state.log_history)["step"]
        trainer.load_weights(kept.folder / f"checkpoint-{step}")
    if settings.lora_rank:
        if arguments.should_save:
            model.save_pretrained(kept.folder / ADAPTER)
        trainer.model = model.merge_and_unload()
    if held_out:
        logger.info("fold %s: the weights of epoch %d are kept", fold, step // steps_per_epoch)
    return trainer, step // steps_per_epoch


def score_sound(what, logits, examples, rows, loss=None):
    """`score` of clips without those whose logits (rows, classes) hold NaN or inf, which are named; with their `loss`,
    one of `LOSSES`, if it is given."""
    sound = np.isfinite(logits).all(axis=1)
    if not sound.all():
        bad = [row for row, is_sound in zip(rows, sound, strict=True) if not is_sound]
        named = some(examples.clip_names, bad)
        logger.warning("%s is scored without %d clips that give NaN or inf: %s", what, len(bad), named)
    logits, labels = logits[sound], examples.labels[rows][sound]
    scores = score(logits, labels)
    if loss is not None:
        value = loss({"logits": torch.as_tensor(logits)}, torch.as_tensor(targets(labels, len(examples.label_names))))
        scores["loss"] = value.item()
    return scores


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


def _is_main_process():
    return PartialState(cpu=not torch.accelerator.is_available()).is_main_process


def _model_of(recipe, fold):
    """The pretrained model for a test fold."""
    return recipe.model.replace("{fold}", str(fold))
