"""Probe of a frozen encoder: logistic regression on pooled features, five folds, nested search of C.

    bridle probe --model runs/mine/final --dataset DIR --label-column target --fold-column fold
    bridle probe --model runs/mine/final --dataset DIR ... --baseline random --pooling mean_std
    bridle probe --model runs/cifar10_tiny/final --dataset uoft-cs/cifar10 --label-column label --test-split test

Baselines under the same protocol: `random`, the model's architecture with random weights; and features without any
encoder. For audio `logmel`, mean and standard deviation of the log-mel bins, and `logmel-delta`, with mean absolute
differences of neighbouring frames as well; for images `colours` and `pixels`; for videos `one-frame` and
`frame-differences`. `--kind knn` votes among nearest neighbours, and `--kind gradient`
fits the linear classifier by AdamW, for large sets. The last line of standard output is one JSON object; its `interval`
is of 95 % of the accuracy, by bootstrap over clips.
"""

import argparse
import json
import sys
from functools import partial

import numpy as np
import torch

from ..clip_features_bridle import POOLINGS, check_layers, check_poolings
from ..configuration_bridle import BridleConfig
from ..data import MODALITIES, build_processor, load_examples, load_processor, modality_of
from ..evaluation.baselines import baseline_features
from ..evaluation.comparison import bootstrap, mean_by_clip, write_predictions
from ..evaluation.cross_validation import check_probe, choose_folds, outer_folds
from ..evaluation.features import encoder_features
from ..evaluation.probe import KINDS, linear_probe
from ..modeling_bridle import BridleModel
from .checks import check_data, check_model, check_output, open_model, reading, setting_up
from .options import add_data_options, add_pad_short, given_data, number, padded_short
from .process import log_progress

MODALITY_OF = {baseline: name for name, modality in MODALITIES.items() for baseline in modality.baselines}


def parse_arguments(arguments, prog):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pretrained model; {fold} stands for the test fold")
    add_data_options(parser, "folder or Hub id of a labelled dataset")
    parser.add_argument("--test-split", help="train on --split and test on this one, instead of on folds")
    parser.add_argument("--label-column", required=True)
    parser.add_argument("--fold-column", help="without it, five stratified folds are drawn")
    parser.add_argument("--folds", nargs="+", help="test folds, all by default; needed with {fold}")
    parser.add_argument("--baseline", choices=("random", *MODALITY_OF))
    parser.add_argument("--layer", type=int, help="1..depth, 0 for the patch embeddings; the final output by default")
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="of the encoder's patches")
    parser.add_argument(
        "--test-windows", choices=("all", "first"), default="all", help="of sounds longer than the model's window"
    )
    add_pad_short(parser)
    parser.add_argument("--kind", choices=KINDS, default="linear", help="linear by Newton steps, knn, linear by AdamW")
    parser.add_argument("--output", help="CSV file of what is said of every tested clip, for `bridle compare`")
    parser.add_argument(
        "--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2], help="of random weights and drawn folds"
    )
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    given = parser.parse_args(arguments)
    if not given.model and given.baseline in (None, "random"):
        parser.error(f"--model is missing; it is needed for everything but --baseline {', '.join(MODALITY_OF)}")
    if given.model and "{fold}" in given.model and not (given.folds and given.fold_column):
        parser.error("--model has {fold} in it, one model per test fold; give --fold-column and --folds, too")
    return parser, given


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
        check_poolings(config, [given.pooling])
        check_layers(config, [given.layer])
    return processor, None if given.baseline else open_model(BridleModel, source)


def features_of(given, source, model, examples, seed):
    """(n, features) of the frozen model, or of the baseline."""
    if given.baseline in MODALITY_OF:
        return baseline_features(examples, examples.modality.baselines[given.baseline])
    if given.baseline == "random":
        torch.manual_seed(seed)
        model = BridleModel(BridleConfig.from_pretrained(source))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    which = given.layer, given.pooling
    return encoder_features(model, examples, which[:1], which[1:], given.batch_size)[which]


def clip_rows(examples, folds, tested, seed, result):
    """A row for each clip that was tested."""
    names = examples.label_names
    return [
        {
            "clip": f"{row} {examples.clip_names[row]}",  # names may be the same
            "fold": folds[row],
            "seed": seed,
            "label": names[examples.labels[row]],
            "said": names[result.predicted[row]],
        }
        for row in np.flatnonzero(np.isin(folds, tested))
    ]


def main(arguments=None, prog=None):
    parser, given = parse_arguments(arguments, prog)
    log_progress()
    with setting_up(parser):
        if given.output:
            check_output(given.output, given.dataset)
        data = given_data(given)
    # One model for all test folds, or one for each of them.
    sources = {given.model: given.folds}
    if given.model and "{fold}" in given.model:
        sources = {given.model.replace("{fold}", str(fold)): [fold] for fold in given.folds}
    # Features of a trained model under given folds hold nothing random.
    drawn = given.baseline == "random" or not (given.fold_column or given.test_split)
    seeds = given.seeds if drawn else given.seeds[:1]
    said = []
    per_fold = {seed: {} for seed in seeds}
    chosen = {seed: {} for seed in seeds}
    for source, test_folds in sources.items():
        with setting_up(parser):
            processor, model = open_given(given, source, data)
        with reading(parser):
            check = partial(check_probe, wanted=test_folds, seed=seeds[0])
            examples = load_examples(data, processor, check=check, for_training=False)
        for seed in seeds:
            features = features_of(given, source, model, examples, seed)
            folds = outer_folds(examples.labels, examples.folds, seed)
            tested = choose_folds(test_folds, folds, examples.test_folds)
            settings = {"seed": seed, "test_folds": tested, "kind": given.kind}
            result = linear_probe(features, examples.labels, examples.folds, **settings)
            said += clip_rows(examples, folds, tested, seed, result)
            per_fold[seed] |= result.per_fold
            chosen[seed] |= result.chosen_c
    if given.output:
        write_predictions(given.output, said)
    accuracy = np.array([list(folds.values()) for folds in per_fold.values()])  # (seeds, folds)
    report = {
        "accuracy": accuracy.mean(),
        "per_fold": accuracy.mean(axis=0).tolist(),
        "folds": list(per_fold[seeds[0]]),
        "per_seed": accuracy.mean(axis=1).tolist(),
        "seeds": seeds,
        "kind": given.kind,
        "interval": bootstrap(mean_by_clip(said)),
        "C": [list(folds.values()) for folds in chosen.values()],
        "features": given.baseline or given.model,
        "layer": given.layer,
        "pooling": None if given.baseline in MODALITY_OF else given.pooling,
        "dimensions": features.shape[1],
        "clips": len(features),
    }
    sys.stdout.write(json.dumps(report) + "\n")
