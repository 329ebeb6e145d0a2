"""Probe of a frozen encoder: logistic regression on pooled features, or another kind; folds, nested search of a knob.

    bridle probe --model runs/mine --dataset my_labelled
    bridle probe --model runs/mine/final --dataset DIR --label-column target --fold-column fold
    bridle probe --model runs/mine/final --dataset DIR ... --baseline random --pooling mean_std
    bridle probe --model runs/cifar10_tiny/final --dataset uoft-cs/cifar10 --label-column label --test-split test
    bridle probe --model runs/mine/final --dataset DIR ... --kind gradient --layers all --mix weighted

Baselines under the same protocol: `random`, the model's architecture with random weights; and features without any
encoder. For audio `logmel`, mean and standard deviation of the log-mel bins, and `logmel-delta`, with mean absolute
differences of neighbouring frames as well; for images `colours` and `pixels`; for videos `one-frame` and
`frame-differences`. `--kind knn` votes among nearest neighbours, `--kind gradient` fits the linear classifier by AdamW,
for large sets, and `--kind attentive` learns by AdamW which patches to look at, instead of pooling them. Labels may be
lists; a clip has all classes of its list then, and mean average precision is measured instead of accuracy. The last
line of standard output is one JSON object, of several poolings one line each; its `interval` is of 95 %, by bootstrap
over clips.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from ..clip_features_bridle import POOLINGS, check_poolings
from ..configuration_bridle import BridleConfig
from ..data import MODALITIES, build_processor, load_examples, load_processor, modality_of
from ..evaluation.baselines import baseline_features
from ..evaluation.clip_patches import ClipPatches
from ..evaluation.comparison import SCORE, summary, write_predictions
from ..evaluation.cross_validation import check_probe, choose_folds, outer_folds
from ..evaluation.features import encoder_features, encoder_patches
from ..evaluation.measures import mean_of_known
from ..evaluation.probe import KINDS, LAYERED, linear_probe
from ..files import final_of
from ..loading import open_model
from ..modeling_bridle import BridleModel
from ..saved_models import check_model
from .checks import check_data, check_output, reading, setting_up
from .options import (
    add_data_options,
    add_layers,
    add_max_bad_share,
    add_pad_short,
    check_mix,
    given_data,
    given_layers,
    number,
    padded_short,
)
from .process import device, log_progress

KNOBS = {"linear": "C", "knn": "k", "gradient": "learning_rate", "attentive": "learning_rate"}  # as it is printed
MODALITY_OF = {baseline: name for name, modality in MODALITIES.items() for baseline in modality.baselines}


def parse_arguments(arguments, prog):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_model = "run, folder or Hub id of a pretrained model; {fold} stands for the test fold"
    parser.add_argument("--model", type=final_of, help=of_model)
    add_data_options(parser, "folder or Hub id of a labelled dataset")
    add_max_bad_share(parser)
    parser.add_argument("--test-split", help="train on --split and test on this one, instead of on folds")
    parser.add_argument(
        "--label-column", default="label", help="of one class per clip, or of lists of them; label by default"
    )
    parser.add_argument("--fold-column", help="without it, five stratified folds are drawn")
    parser.add_argument("--folds", nargs="+", help="test folds, all by default; needed with {fold}")
    parser.add_argument("--baseline", choices=("random", *MODALITY_OF))
    add_layers(parser, ("mean", "weighted"), "their mean by default, or one with learned weights")
    parser.add_argument(
        "--pooling", choices=POOLINGS, nargs="+", help="of the encoder's patches, a probe of each; mean by default"
    )
    parser.add_argument(
        "--test-windows", choices=("all", "first"), default="all", help="of sounds longer than the model's window"
    )
    add_pad_short(parser)
    parser.add_argument(
        "--kind", choices=KINDS, default="linear", help="linear by Newton steps, knn, linear or attentive by AdamW"
    )
    parser.add_argument("--output", help="CSV file of what is said of every tested clip, for `bridle compare`")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=number(int, 0),
        default=[0, 1, 2],
        help="of random weights and drawn folds; 0 1 2 by default",
    )
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    given = parser.parse_args(arguments)
    if not given.model and given.baseline in (None, "random"):
        parser.error(f"--model is missing; it is needed for everything but --baseline {', '.join(MODALITY_OF)}")
    if given.model and "{fold}" in given.model and not (given.folds and given.fold_column):
        parser.error("--model has {fold} in it, one model per test fold; give --fold-column and --folds, too")
    with setting_up(parser):
        check_kind(given)
    return parser, given


def check_kind(given):
    """Raise a `ValueError` for options that do not go together."""
    check_mix(given)
    if given.mix == "weighted" and given.kind not in LAYERED:
        raise ValueError(f"--mix is 'weighted'; it takes --kind {' or '.join(LAYERED)}, which learn weights.")
    if given.kind == "attentive" and given.pooling:
        raise ValueError(
            f"--pooling is {' '.join(given.pooling)}; --kind attentive learns how to pool, and takes none."
        )
    if given.output and len(given.pooling or ()) > 1:
        raise ValueError(f"--pooling is {' '.join(given.pooling)}; --output, a file of one probe's answers, takes one.")
    for name in ("layers", "pooling"):
        if given.baseline in MODALITY_OF and getattr(given, name):
            raise ValueError(f"--{name} is given; --baseline {given.baseline} has no encoder, and none.")
    if given.baseline in MODALITY_OF and given.kind == "attentive":
        raise ValueError(
            f"--baseline is {given.baseline!r}, one vector per clip; "
            "--kind attentive looks at patches, and takes random."
        )


def open_given(given, source, data):
    """The processor of the model at `source`, or of the baseline, and the frozen model itself where it is trained.

    Raises:
        ValueError: there is no such model or dataset, or the baseline is one of another modality.
    """
    if source:
        check_model(source)
        processor = load_processor(source, **padded_short(given, source))
    else:
        config = BridleConfig(modality=MODALITY_OF[given.baseline])
        processor = build_processor(config, **padded_short(given, config))
    takes = "random", *modality_of(processor).baselines
    if given.baseline not in (None, *takes):
        raise ValueError(
            f"--baseline is {given.baseline!r}; --model is of another modality, and takes {', '.join(takes)}."
        )
    check_data(data, processor, "--dataset")
    if given.baseline in (None, "random"):
        config = BridleConfig.from_pretrained(source)
        check_poolings(config, given.pooling or [])
        given_layers(given, config)
    return processor, None if given.baseline else open_model(BridleModel, source)


def features_of(given, source, model, examples, seed):
    """The features of all clips, in a dict by pooling.

    Each value has shape (n, features), or (n, layers, features) where the probe learns weights of layers. A baseline
    without an encoder and an attentive probe pool nothing: their features, for the latter `ClipPatches`, have key None.
    """
    if given.baseline in MODALITY_OF:
        return {None: baseline_features(examples, examples.modality.baselines[given.baseline])}
    if given.baseline == "random":
        torch.manual_seed(seed)
        model = BridleModel(BridleConfig.from_pretrained(source))
    model.to(device())
    layers, poolings = given_layers(given, model.config), list(dict.fromkeys(given.pooling or ["mean"]))
    how = {"batch_size": given.batch_size, "even": len(layers) > 1 and given.mix != "weighted"}
    if given.kind == "attentive":
        return {None: encoder_patches(model, examples, layers, **how)}
    found = encoder_features(model, examples, layers, poolings, **how)
    of_pooling = {name: [rows for (_, pooling), rows in found.items() if pooling == name] for name in poolings}
    return {name: each[0] if len(each) == 1 else np.stack(each, axis=1) for name, each in of_pooling.items()}


@dataclass
class Outcome:
    """Results of the probes of one pooling, over seeds and folds."""

    per_fold: dict = field(default_factory=dict)
    chosen: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    rows: list = field(default_factory=list)
    shape: tuple = ()

    def add(self, seed, result, rows, features):
        for kept, new in (
            (self.per_fold, result.per_fold),
            (self.chosen, result.chosen_c),
            (self.weights, result.layer_weights),
        ):
            kept.setdefault(seed, {}).update(new)
        self.rows += rows
        self.shape = len(features), features.width if isinstance(features, ClipPatches) else features.shape[-1]

    def report(self, given, pooling):
        """The JSON object that is printed."""
        measured, seeds = summary(self.rows), list(self.per_fold)
        per_fold = np.array([list(folds.values()) for folds in self.per_fold.values()])  # (seeds, folds)
        report = {
            next(iter(measured)): mean_of_known(per_fold.ravel()),
            "per_fold": [None if np.isnan(value) else value for value in mean_of_known(per_fold.T)],
            "folds": list(self.chosen[seeds[0]]),
            "per_seed": mean_of_known(per_fold).tolist(),
            "seeds": seeds,
            "kind": given.kind,
            "interval": measured["interval"],
            KNOBS[given.kind]: [list(folds.values()) for folds in self.chosen.values()],
            "features": given.baseline or given.model,
            "layer": given.layers[0] if given.layers and len(given.layers) == 1 else given.layers,
            "pooling": pooling,
            "dimensions": self.shape[1],
            "clips": self.shape[0],
        }
        if given.mix == "weighted":
            report["layer_weights"] = [list(folds.values()) for folds in self.weights.values()]
        return report


def clip_rows(examples, folds, tested, seed, result):
    """A row for each clip that was tested; of several labels with a score for each class."""
    names, several = examples.label_names, result.scores is not None

    def name(said):
        if not several:
            return names[said]
        return json.dumps([names[label] for label in np.flatnonzero(said)], ensure_ascii=False)

    return [
        {
            "clip": f"{row} {examples.clip_names[row]}",  # names may be the same
            "fold": folds[row],
            "seed": seed,
            "label": name(examples.labels[row]),
            "said": name(result.predicted[row]),
        }
        | ({f"{SCORE}{each}": score for each, score in zip(names, result.scores[row], strict=True)} if several else {})
        for row in np.flatnonzero(np.isin(folds, tested))
    ]


def main(arguments=None, prog=None):
    parser, given = parse_arguments(arguments, prog)
    log_progress()
    with setting_up(parser):
        if given.output:
            check_output(given.output, given.dataset, ".csv")
        data = given_data(given)
    # One model for all test folds, or one for each of them.
    sources = {given.model: given.folds}
    if given.model and "{fold}" in given.model:
        sources = {given.model.replace("{fold}", str(fold)): [fold] for fold in given.folds}
    # Features of a trained model under given folds hold nothing random.
    drawn = given.baseline == "random" or not (given.fold_column or given.test_split)
    seeds = given.seeds if drawn else given.seeds[:1]
    outcomes = defaultdict(Outcome)
    for source, test_folds in sources.items():
        with setting_up(parser):
            processor, model = open_given(given, source, data)
        with reading(parser):
            check = partial(check_probe, wanted=test_folds, seed=seeds[0], several=True)
            examples = load_examples(data, processor, check=check, for_training=False)
        for seed in seeds:
            folds = outer_folds(examples.labels, examples.folds, seed)
            tested = choose_folds(test_folds, folds, examples.test_folds)
            for pooling, features in features_of(given, source, model, examples, seed).items():
                settings = {"seed": seed, "test_folds": tested, "kind": given.kind}
                result = linear_probe(features, examples.labels, examples.folds, **settings)
                outcomes[pooling].add(seed, result, clip_rows(examples, folds, tested, seed, result), features)
    if given.output:
        (outcome,) = outcomes.values()
        write_predictions(given.output, outcome.rows)
    for pooling, outcome in outcomes.items():
        sys.stdout.write(json.dumps(outcome.report(given, pooling)) + "\n")
