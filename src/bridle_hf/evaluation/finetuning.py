"""Fine-tuning of a pretrained encoder for audio classification with transformers' Trainer, fold by fold."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, set_seed

from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.augmentation import mixup
from ..data.collation import TrainingCollator
from ..data.examples import load_examples
from ..feature_extraction_bridle import BridleFeatureExtractor
from ..modeling_bridle import BridleForAudioClassification
from ..training.arguments import config_keys
from ..training.parameters import parameter_groups
from .metrics import load_metric
from .probe import outer_folds

logger = logging.getLogger(__name__)


@dataclass
class FinetuneTraining:
    """How a fold is trained.

    Attributes:
        epochs: passes over the training folds; the model of the last one is reported and saved.
        batch_size: clips a process takes in one forward pass.
        learning_rate: peak of the cosine schedule, of the head; warmed up linearly over `warmup_epochs`.
        layer_decay: each layer further from the head learns by this factor more slowly; null is one rate for all.
        loss: "cross_entropy", or "binary_cross_entropy" over all classes (the paper's, also for ESC-50).
        mixup: share of the clips of a batch that are mixed with another one.
        mixup_alpha: weights are drawn from Beta(alpha, alpha).
        mixed_precision: "no" or "bf16".
        attention: an attention implementation of transformers; null leaves the choice to it. On CPUs in bf16 "eager"
            trains faster.
    """

    epochs: int = 100
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    warmup_epochs: float = 10.0
    weight_decay: float = 1e-4
    layer_decay: float | None = 0.75
    max_grad_norm: float = 1.0
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    mixup: float = 0.5
    mixup_alpha: float = 10.0
    mixed_precision: Literal["no", "bf16"] = "no"
    attention: str | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a whole number of at least 1.")
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"`mixup` is {self.mixup}; it takes a share between 0 and 1.")


@dataclass
class FinetuneRecipe:
    """A fine-tuning run over the folds of a labelled set.

    Attributes:
        model: folder or Hub id of a pretrained model; `{fold}` in it stands for the test fold (one model a fold).
        output_dir: receives fold-K/ (a model that `pipeline("audio-classification")` loads) and results.json.
        data: the labelled clips, and how the training ones are augmented. Without `fold_column`, five folds are drawn.
        from_scratch: draw random weights of the same architecture, the control without pretraining.
        folds: test folds to run; null is all of them.
        seed: of weights, order, augmentation and drawn folds.
        config: what to change in the model's config, such as `drop_path_rate` or `classifier_mask_ratio`.
    """

    model: str
    output_dir: str
    data: DataArguments
    from_scratch: bool = False
    folds: list[int | str] | None = None
    seed: int = 0
    config: dict = field(default_factory=dict, metadata={"keys": lambda: config_keys(BridleConfig)})
    training: FinetuneTraining = field(default_factory=FinetuneTraining)

    def __post_init__(self):
        if "{fold}" in self.model and not self.folds:
            raise ValueError("`folds` is missing; with {fold} in `model` it takes the list of test folds.")
        if not self.data.label_column:
            raise ValueError("`data.label_column` is missing; it takes the name of the column with the classes.")


def finetune(recipe):
    """Fine-tunes one model a fold on the other folds and tests it on that fold, after the last epoch.

    Args:
        recipe (`FinetuneRecipe`)

    Returns:
        dict: `accuracy` and `mean_average_precision` (means over folds, in [0, 1]), `folds`, the lists `per_fold` and
        `per_fold_mean_average_precision` in their order, `from_scratch`, `seed`. Also written to results.json.

    Raises:
        ValueError: for a fold that the data does not have.
    """
    extractor = BridleFeatureExtractor.from_pretrained(_model_of(recipe, (recipe.folds or [None])[0]))
    examples = load_examples(recipe.data, extractor)
    folds = outer_folds(examples.labels, examples.folds, recipe.seed)
    there = np.unique(folds).tolist()
    scores = {}
    for fold in recipe.folds or there:
        if fold not in there:
            raise ValueError(f"`folds` names {fold!r}; the data has {there}.")
        of_this_fold = BridleFeatureExtractor.from_pretrained(_model_of(recipe, fold))
        if of_this_fold.to_dict() != extractor.to_dict():
            extractor = of_this_fold
            examples = load_examples(recipe.data, extractor)
        scores[fold] = finetune_fold(recipe, fold, examples, folds == fold, extractor)
        logger.info("fold %s: %s", fold, scores[fold])
    accuracy = [score["accuracy"] for score in scores.values()]
    precision = [score["mean_average_precision"] for score in scores.values()]
    results = {
        "accuracy": float(np.mean(accuracy)),
        "mean_average_precision": float(np.mean(precision)),
        "folds": list(scores),
        "per_fold": accuracy,
        "per_fold_mean_average_precision": precision,
        "from_scratch": recipe.from_scratch,
        "seed": recipe.seed,
    }
    (Path(recipe.output_dir) / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def finetune_fold(recipe, fold, examples, test, extractor):
    """Trains on the clips outside `test` (n,), tests on those inside, and saves to `output_dir`/fold-K.

    Returns:
        dict: `accuracy`, `mean_average_precision` on the test clips.
    """
    set_seed(recipe.seed)
    model = build_classifier(recipe, _model_of(recipe, fold), examples.label_names)
    settings = recipe.training
    folder = Path(recipe.output_dir) / f"fold-{fold}"
    train_rows, test_rows = np.flatnonzero(~test).tolist(), np.flatnonzero(test).tolist()
    steps_per_epoch = int(np.ceil(len(train_rows) / (settings.batch_size * settings.gradient_accumulation_steps)))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        max_grad_norm=settings.max_grad_norm,
        use_cpu=not torch.accelerator.is_available(),
        bf16=settings.mixed_precision == "bf16",
        seed=recipe.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.accelerator.is_available(),
        average_tokens_across_devices=False,
    )
    groups = parameter_groups(model, settings.learning_rate, settings.weight_decay, settings.layer_decay)
    collate = Collator(examples, recipe, extractor)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        data_collator=collate,
        compute_metrics=Scores(),
        compute_loss_func=LOSSES[settings.loss],
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "lr": settings.learning_rate}),
    )
    # Each micro-batch is a mean of its own, so accumulation has to divide by their number.
    trainer.loss_is_scaled_for_ga = False
    trainer.train()
    collate.training = False
    measured = trainer.evaluate()
    if trainer.is_world_process_zero():
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
    return {name: measured[f"eval_{name}"] for name in ("accuracy", "mean_average_precision")}


def build_classifier(recipe, source, label_names):
    """A classifier over the encoder of `source`, or over random weights of its architecture."""
    config = BridleConfig.from_pretrained(source, attn_implementation=recipe.training.attention, **recipe.config)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: label for label, name in enumerate(label_names)}
    single = recipe.training.loss == "cross_entropy"
    config.problem_type = "single_label_classification" if single else "multi_label_classification"
    if recipe.from_scratch:
        return BridleForAudioClassification(config)
    return BridleForAudioClassification.from_pretrained(source, config=config)


class Collator:
    """Row numbers to a batch; augmented and mixed while training, as they are for testing."""

    def __init__(self, examples, recipe, extractor):
        self.examples, self.settings = examples, recipe.training
        self.augment = TrainingCollator(recipe.data, extractor)
        self.rng = np.random.default_rng(recipe.seed)
        self.training = True

    def __call__(self, rows):
        values, mask = self.examples.features[rows], self.examples.attention_mask[rows]  # (B, T, F), (B, T)
        targets = np.eye(len(self.examples.label_names), dtype=np.float32)[self.examples.labels[rows]]  # (B, classes)
        if self.training:
            clips = [clip[: valid.sum()] for clip, valid in zip(values, mask, strict=True)]
            batch = self.augment(clips, self.rng)
            values, mask, targets = self.mix(batch["input_values"], batch["attention_mask"], targets)
        batch = {"input_values": values, "attention_mask": mask, "labels": targets}
        return {name: torch.as_tensor(value) for name, value in batch.items()}

    def mix(self, values, mask, targets):
        """Mixes a random share of the clips with each other. A mixed clip is as long as the longer of the two."""
        chosen = np.flatnonzero(self.rng.random(len(values)) < self.settings.mixup)
        # The mask goes along as one more mel bin, so that it is mixed with the same partners.
        stacked = np.concatenate([values, mask[..., None].astype(values.dtype)], axis=-1)  # (B, T, F + 1)
        stacked[chosen], targets[chosen] = mixup(
            stacked[chosen], targets[chosen], self.rng, alpha=self.settings.mixup_alpha
        )
        return stacked[..., :-1], (stacked[..., -1] > 0).astype(mask.dtype), targets


def cross_entropy(outputs, labels, num_items_in_batch=None):
    """Cross-entropy with soft targets (B, classes): what mixup makes of labels is no class index any more."""
    return F.cross_entropy(outputs["logits"].float(), labels)


def binary_cross_entropy(outputs, labels, num_items_in_batch=None):
    """Binary cross-entropy with targets (B, classes), mean over clips and classes."""
    return F.binary_cross_entropy_with_logits(outputs["logits"].float(), labels)


LOSSES = {"cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy}


class Scores:
    """`compute_metrics` of the Trainer: accuracy and mean average precision."""

    def __init__(self):
        self.accuracy, self.precision = load_metric("top_k_accuracy"), load_metric("mean_average_precision")

    def __call__(self, prediction):
        scores, labels = prediction.predictions, prediction.label_ids.argmax(axis=-1)
        return {
            "accuracy": self.accuracy.compute(predictions=scores, references=labels, k=1)["accuracy"],
            **self.precision.compute(predictions=scores, references=labels),
        }


def _model_of(recipe, fold):
    """The pretrained model for a test fold."""
    return recipe.model.replace("{fold}", str(fold))
