"""Probe accuracy of a frozen encoder on clips as decoded and on clips from a float16 and an int8 cache.

    python benchmarks/cache_precision.py --model MODEL --dataset ashraq/esc50 --label-column target --fold-column fold

Prints the accuracy and the bytes of a stored value for each. Caches are written to a temporary folder.
"""

import argparse
import tempfile

from bridle_hf import BridleModel
from bridle_hf.data import DataArguments, load_examples, load_processor
from bridle_hf.evaluation.features import encoder_features
from bridle_hf.evaluation.probe import linear_probe

WAYS = {  # name -> settings of `data`, bytes of a value
    "as decoded": ({}, 4),
    "float16": ({"cache": True}, 2),
    "int8": ({"cache": True, "cache_dtype": "int8"}, 1),
}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pretrained encoder")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of a labelled dataset")
    parser.add_argument("--label-column", required=True)
    parser.add_argument("--fold-column")
    parser.add_argument("--pooling", default="mean_std")
    parser.add_argument("--kind", default="linear", help="of the probe, as `bridle probe` takes it")
    args = parser.parse_args(arguments)
    model, processor = BridleModel.from_pretrained(args.model), load_processor(args.model)
    accuracies, exact = {}, None
    print("| clips | accuracy in % | largest difference of a feature | bytes a value |\n|---|---|---|---|")
    for name, (way, bytes_a_value) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            columns = {"label_column": args.label_column, "fold_column": args.fold_column}
            data = DataArguments(args.dataset, cache_dir=folder, **columns, **way)
            examples = load_examples(data, processor, for_training=False)
        features = encoder_features(model, examples, (None,), (args.pooling,))[None, args.pooling]
        exact = features if exact is None else exact
        accuracies[name] = 100 * linear_probe(features, examples.labels, examples.folds, kind=args.kind).accuracy
        difference = abs(features - exact).max()
        print(f"| {name} | {accuracies[name]:.2f} | {difference:.4f} | {bytes_a_value} |", flush=True)
    return accuracies


if __name__ == "__main__":
    main()
