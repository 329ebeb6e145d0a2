"""Building the classifier to fine-tune, from a saved encoder or from random weights."""

import logging

import torch

from .. import modeling_bridle
from ..configuration_bridle import BridleConfig
from ..data.listing import name_some
from ..data.modalities import MODALITIES
from ..saved_models import without_load_reports

logger = logging.getLogger(__name__)


def build_classifier(recipe, source, label_names):
    """A classifier over the encoder of `source`, or over random weights of its architecture.

    A `source` that is a classifier itself keeps its head where the classes are the same; otherwise a new one is drawn.
    """
    config = BridleConfig.from_pretrained(source, attn_implementation=recipe.training.attention, **recipe.config)
    classifier = getattr(modeling_bridle, MODALITIES[config.modality].classifier)
    saved = [name for _, name in sorted(config.id2label.items())]
    before = saved if classifier.__name__ in (config.architectures or ()) else None
    single = recipe.training.loss == "cross_entropy"
    config.problem_type = "single_label_classification" if single else "multi_label_classification"
    names = {"id2label": dict(enumerate(label_names)), "label2id": {n: label for label, n in enumerate(label_names)}}
    if recipe.from_scratch or before in (None, label_names):
        if before and not recipe.from_scratch:
            logger.info("model %s is a classifier of these classes; its head is kept", source)
        config.update(names)
        return classifier(config) if recipe.from_scratch else load_classifier(classifier, source, config)
    logger.warning(
        "model %s is a classifier of other classes (%s); the head for these is drawn anew", source, name_some(before)
    )
    model = load_classifier(classifier, source, config)
    model.config.update(names)
    model.num_labels = len(label_names)
    model.classifier = torch.nn.Linear(config.hidden_size, model.num_labels)
    model._init_weights(model.classifier)
    return model


def load_classifier(cls, source, config):
    """Load a classifier. Its head may be missing from the saved model and is then initialised at random.

    Raises:
        ValueError: other weights are missing.
    """
    with without_load_reports():
        model, report = cls.from_pretrained(source, config=config, output_loading_info=True)
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("classifier.")):
        raise ValueError(f"model is {str(source)!r}, where weights are missing: {name_some(missing, 3)}.")
    return model
