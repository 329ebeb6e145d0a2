"""The recipe of fine-tuning: what a YAML file of `bridle finetune` holds."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.fields import warn_once
from ..data.modalities import MODALITIES, check_window, processor_keys
from ..files import final_of
from ..recipe_reader import RecipeError, config_keys
from ..training.arguments import check_optimizer
from ..training.tracking import check_tracker
from .lora import TARGETS


@dataclass
class FinetuneTraining:
    """How a fold is trained.

    Attributes:
        epochs: passes over the training folds; the model of the last one is reported and saved, unless `keep` says
            otherwise.
        batch_size: clips per process in one forward pass.
        learning_rate: peak of the cosine schedule, of the head; warmed up linearly over `warmup_epochs`.
        max_grad_norm: gradients are scaled down to this norm; null never clips.
        layer_decay: each layer further from the head learns by this factor more slowly; null is one rate for all, and 0
            a linear probe: the encoder is frozen, and the head and the norm in front of it learn.
        loss: "cross_entropy", or "binary_cross_entropy" over all classes (the paper's, also for ESC-50), which clips
            with several labels need.
        balanced: draw clips with replacement, each with a weight of the sum over its labels of 1 / clips with that
            label, so that rare sounds are heard as often as frequent ones (the recipe of AudioSet's 2 M).
        clips_per_epoch: with `balanced`, clips drawn per epoch; null is as many as there are.
        mixup: share of the clips of a batch that are mixed with another one.
        mixup_alpha: weights are drawn from Beta(alpha, alpha).
        cutmix: share of the batches in which a box of each clip comes from another one instead (images, videos).
        label_smoothing: share of each target that is spread over all classes.
        mixed_precision: "no" or "bf16"; "auto" is bf16 where the processor has matrix units for it.
        attention: an attention implementation of transformers; null leaves the choice to it, "auto" is the faster of
            eager and sdpa.
        validation_share: share of the training clips, of each class, that is held out of training and measured. The
            test fold is never looked at for a choice.
        eval_epochs: epochs between two measurements; there is one after the last epoch, too.
        patience: measurements without a better one after which training stops; null never stops early.
        keep: the weights that are tested and saved: those of the "last" epoch, or of the "best" one on the validation
            share (highest accuracy, or mean average precision; of equals the lowest loss).
        lora_rank: rank of the LoRA matrices that learn in place of those of the encoder, with peft; null trains the
            encoder itself. The head is trained as a whole in any case.
        lora_alpha: their product is scaled by alpha / rank; null is twice the rank.
        lora_dropout: dropout before them.
        lora_target_modules: which matrices of each layer get them; null is all: attention.qkv, attention.proj, mlp.fc1
            and mlp.fc2.
        tracker, tracker_project: as in pretraining; each fold is a run of its own.
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
    validation_share: float = 0.0
    eval_epochs: int = 1
    patience: int | None = None
    keep: Literal["last", "best"] = "last"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = None
    tracker: str | None = None
    tracker_project: str = "bridle"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "eval_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a whole number of at least 1.")
        if self.clips_per_epoch is not None and not (self.balanced and self.clips_per_epoch > 0):
            raise ValueError(
                f"`clips_per_epoch` is {self.clips_per_epoch}; it takes a number of at least 1, with balanced=true."
            )
        for name in ("mixup", "cutmix", "label_smoothing", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a share between 0 and 1.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"`validation_share` is {self.validation_share}; it takes a share of at least 0, below 1.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"`patience` is {self.patience}; it takes a whole number of at least 1, or null.")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"`lora_rank` is {self.lora_rank}; it takes a whole number of at least 1, or null.")
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if getattr(self, name) and self.lora_rank is None:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a `lora_rank`, such as 8.")
        if unknown := set(self.lora_target_modules or ()) - set(TARGETS):
            raise ValueError(f"`lora_target_modules` has {sorted(unknown)}; it takes some of {', '.join(TARGETS)}.")
        check_optimizer(self, "learning_rate", "weight_decay", "warmup_epochs", "max_grad_norm")
        if self.warmup_epochs >= self.epochs:
            warn_once(  # a recipe is made more than once
                f"training.warmup_epochs is {self.warmup_epochs:g} and training.epochs {self.epochs}: no epoch has the "
                "full learning rate; lower training.warmup_epochs"
            )
        for name in ("mixup_alpha", "lora_alpha"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` is {value}; it takes a number above 0.")
        if self.layer_decay is not None and not 0 <= self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` is {self.layer_decay}; it takes a factor between 0 and 1, or null.")
        check_tracker(self.tracker)
        for name, unused in (("patience", None), ("keep", "last")):
            if getattr(self, name) != unused and not self.validation_share:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}; it takes a `validation_share` above 0, such as 0.1."
                )


@dataclass
class FinetuneRecipe:
    """A fine-tuning run over the folds of a labelled set.

    Attributes:
        model: folder of a run, or folder or Hub id of a pretrained model; `{fold}` in it stands for the test fold (one
            model per fold).
        output_dir: receives fold-K/ (a model that transformers' pipelines load, and fold.json with its scores; see
            `folder_names`), results.json, the tables of docs/finetuning.md, and finetune.yaml, this
            recipe with nothing left to look up.
        data: the labelled clips, and how the training ones are augmented. With `test_split` it is the only fold, named
            as the split is; without that and without `fold_column`, five folds are drawn.
        from_scratch: draw random weights of the same architecture, the control without pretraining. It is a fair one
            with `training.layer_decay` null: random weights have no layers that should change slowly.
        folds: test folds to run; null is all of them, and [] none, for `final` alone.
        final: train another classifier on all labelled clips after the folds, in final/, the one to use. It takes the
            epochs whose weights the folds kept, on average; without folds all epochs.
        seed: of weights, order, augmentation and drawn folds.
        config: what to change in the model's config, such as `drop_path_rate` or `classifier_mask_ratio`.
        processor: what to change in the settings of its processor, such as `mean` or `frame_stride`.
    """

    model: str
    output_dir: str
    data: DataArguments
    from_scratch: bool = False
    folds: list[int | str] | None = None
    final: bool = False
    seed: int = 0
    config: dict = field(default_factory=dict, metadata={"keys": lambda _: config_keys(BridleConfig)})
    processor: dict = field(default_factory=dict, metadata={"keys": processor_keys})
    training: FinetuneTraining = field(default_factory=FinetuneTraining)

    def __post_init__(self):
        if self.folds == [] and not self.final:
            raise ValueError("`folds` is []; it takes at least one fold, null for all of them, or `final` true.")
        self.model = final_of(self.model)
        if "{fold}" in self.model and not self.folds:
            raise ValueError("`folds` is missing; with {fold} in `model` it takes the list of test folds.")
        if self.from_scratch and self.training.lora_rank:
            raise ValueError("`from_scratch` is true; with `training.lora_rank` it takes false.")
        if self.final and "{fold}" in self.model:
            raise ValueError(
                "`final` is true; with {fold} in `model` it takes false, since no model has seen all folds."
            )
        if self.folds == [] and self.training.validation_share:
            raise ValueError(
                f"`training.validation_share` is {self.training.validation_share}; with folds=[] it takes 0, since "
                "final/ is trained on all clips for `training.epochs` epochs."
            )
        if self.final and self.data.test_split:
            raise ValueError(
                "`final` is true; with `data.test_split` it takes false, since its fold has all training clips."
            )
        if not self.data.label_column:
            raise ValueError("`data.label_column` is missing; it takes the name of the column with the classes.")

    def check_against(self, config: BridleConfig) -> None:
        """Raise a `ValueError` if the model does not support an option of the recipe: one of another modality, or a
        window that is too short or too long."""
        modality = MODALITIES[config.modality]
        if self.training.cutmix and not modality.has_boxes:
            raise RecipeError(f"`training.cutmix` is {self.training.cutmix}; {modality.name} takes 0, it has no boxes.")
        if tuple(self.data.test_views) != (1, 1) and not modality.has_views:
            raise RecipeError(f"`data.test_views` is {self.data.test_views}; {modality.name} takes [1, 1] alone.")
        check_window(self.data, config)
