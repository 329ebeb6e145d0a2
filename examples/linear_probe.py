"""Linear probe of a frozen encoder: logistic regression on pooled features, five folds, nested search of C.

    python examples/linear_probe.py --model runs/mine/final --dataset DIR --label-column target --fold-column fold
    python examples/linear_probe.py --model runs/mine/final --dataset DIR ... --baseline random --pooling mean_std
    python examples/linear_probe.py --model runs/cifar10_tiny/final --dataset uoft-cs/cifar10 --label-column label \
        --test-split test

Baselines under the same protocol: `random`, the model's architecture with random weights; and features without any
encoder. For audio `logmel`, mean and standard deviation of the log-mel bins, and `logmel-delta`, with mean absolute
differences of neighbouring frames as well; for images `colours` and `pixels`; for videos `one-frame` and
`frame-differences`. The last line of standard output is one JSON object.
"""

import argparse
import json
import sys

import numpy as np
import torch

from bridle_hf import BridleConfig, BridleModel
from bridle_hf.cli.checks import add_data_options, check_data, check_model, given_data, open_model, setting_up
from bridle_hf.data import MODALITIES, build_processor, load_examples, load_processor, modality_of
from bridle_hf.evaluation.baselines import baseline_features
from bridle_hf.evaluation.features import POOLINGS, encoder_features
from bridle_hf.evaluation.probe import linear_probe

MODALITY_OF = {baseline: name for name, modality in MODALITIES.items() for baseline in modality.baselines}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pretrained model; {fold} stands for the test fold")
    add_data_options(parser, "folder or Hub id of a labelled dataset")
    parser.add_argument("--test-split", help="train on --split and test on this one, instead of on folds")
    parser.add_argument("--label-column", required=True)
    parser.add_argument("--fold-column", help="without it, five stratified folds are drawn")
    parser.add_argument("--folds", nargs="+", type=int, help="test folds, all by default; needed with {fold}")
    parser.add_argument("--baseline", choices=("random", *MODALITY_OF))
    parser.add_argument("--layer", type=int, help="1..depth, 0 for the patch embeddings; the final output by default")
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="of the encoder's patches")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of random weights and drawn folds")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    if not arguments.model and arguments.baseline in (None, "random"):
        parser.error(f"--model is missing; it is needed for everything but --baseline {', '.join(MODALITY_OF)}")
    if arguments.model and "{fold}" in arguments.model and not (arguments.folds and arguments.fold_column):
        parser.error("--model has {fold} in it, one model a test fold; give --fold-column and --folds, too")
    return parser, arguments


def open_given(arguments, source, data):
    """The processor of the model at `source`, or of the baseline, and the frozen model itself where it is trained.

    Raises:
        ValueError: there is no such model or dataset, or the baseline is one of another modality.
    """
    if source:
        check_model(source)
        processor = load_processor(source)
    else:
        processor = build_processor(BridleConfig(modality=MODALITY_OF[arguments.baseline]))
    takes = "random", *modality_of(processor).baselines
    if arguments.baseline not in (None, *takes):
        raise ValueError(
            f"--baseline is {arguments.baseline!r}; --model is of another modality, and takes {', '.join(takes)}."
        )
    check_data(data, processor, "--dataset")
    return processor, None if arguments.baseline else open_model(BridleModel, source)


def features_of(arguments, source, model, examples, seed):
    """(n, features) of the frozen model, or of the baseline."""
    if arguments.baseline in MODALITY_OF:
        return baseline_features(examples, examples.modality.baselines[arguments.baseline])
    if arguments.baseline == "random":
        torch.manual_seed(seed)
        model = BridleModel(BridleConfig.from_pretrained(source))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    which = arguments.layer, arguments.pooling
    return encoder_features(model, examples, which[:1], which[1:], arguments.batch_size)[which]


def main():
    parser, arguments = parse_arguments()
    with setting_up(parser):
        data = given_data(arguments)
    # One model for all test folds, or one for each of them.
    sources = {arguments.model: arguments.folds}
    if arguments.model and "{fold}" in arguments.model:
        sources = {arguments.model.replace("{fold}", str(fold)): [fold] for fold in arguments.folds}
    # Features of a trained model under given folds hold nothing random.
    drawn = arguments.baseline == "random" or not (arguments.fold_column or arguments.test_split)
    seeds = arguments.seeds if drawn else arguments.seeds[:1]
    per_fold = {seed: {} for seed in seeds}
    chosen = {seed: {} for seed in seeds}
    for source, test_folds in sources.items():
        with setting_up(parser):
            processor, model = open_given(arguments, source, data)
        examples = load_examples(data, processor)
        for seed in seeds:
            features = features_of(arguments, source, model, examples, seed)
            tested = test_folds or examples.test_folds
            result = linear_probe(features, examples.labels, examples.folds, seed=seed, test_folds=tested)
            per_fold[seed] |= result.per_fold
            chosen[seed] |= result.chosen_c
    accuracy = np.array([list(folds.values()) for folds in per_fold.values()])  # (seeds, folds)
    report = {
        "accuracy": accuracy.mean(),
        "per_fold": accuracy.mean(axis=0).tolist(),
        "folds": list(per_fold[seeds[0]]),
        "per_seed": accuracy.mean(axis=1).tolist(),
        "seeds": seeds,
        "C": [list(folds.values()) for folds in chosen.values()],
        "features": arguments.baseline or arguments.model,
        "layer": arguments.layer,
        "pooling": None if arguments.baseline in MODALITY_OF else arguments.pooling,
        "dimensions": features.shape[1],
        "clips": len(features),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
