"""What rounding in a cache costs: a probe of a frozen encoder on clips as decoded, and from both kinds of cache.

    python benchmarks/cache_precision.py --model MODEL --dataset ashraq/esc50 --label-column target --fold-column fold

Prints the accuracy and the size of a clip for each. The encoder is the same; caches go to a temporary folder.
"""

import argparse
import tempfile

from bridle_hf import BridleModel
from bridle_hf.data import DataArguments, load_examples, load_processor
from bridle_hf.evaluation.features import encoder_features
from bridle_hf.evaluation.probe import linear_probe

WAYS = {
    "as decoded": {},
    "float16": {"cache": True},
    "int8": {"cache": True, "cache_dtype": "int8"},
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
    model, processor, found = BridleModel.from_pretrained(args.model), load_processor(args.model), {}
    print("| clips | accuracy in % | largest difference of a feature | bytes a value |\n|---|---|---|---|")
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            columns = {"label_column": args.label_column, "fold_column": args.fold_column}
            data = DataArguments(args.dataset, cache_dir=folder, **columns, **way)
            examples = load_examples(data, processor, for_training=False)
        features = encoder_features(model, examples, (None,), (args.pooling,))[None, args.pooling]
        accuracy = 100 * linear_probe(features, examples.labels, examples.folds, kind=args.kind).accuracy
        first = found.setdefault("features", features)
        bytes_a_value = {"as decoded": 4, "float16": 2, "int8": 1}[name]
        print(f"| {name} | {accuracy:.2f} | {abs(features - first).max():.4f} | {bytes_a_value} |", flush=True)
        found[name] = accuracy
    return found


if __name__ == "__main__":
    main()
