"""Write one HTML page about the tokens of a pretrained model: codebook use, norms, losses, codes to see and hear.

    python examples/codebook_report.py --model runs/demo --dataset DIR --output report.html
    python examples/codebook_report.py --model runs/demo/final --dataset DIR --label-column label --fold-column fold

With a run's folder, its final/ is measured and its metrics.jsonl drawn. Labels and folds add the bag-of-codes accuracy.
"""

import argparse
import json
from pathlib import Path

import torch

from bridle_hf import BridleForPreTraining
from bridle_hf.cli.checks import add_data_options, check_data, given_data, open_model, setting_up
from bridle_hf.data import load_examples, load_processor
from bridle_hf.data.source import sound_reader
from bridle_hf.evaluation.report import codebook_report
from bridle_hf.training.metrics import read_metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a run, or folder or Hub id of a pretrained model")
    add_data_options(parser, "folder or Hub id of clips, best unseen in pretraining")
    parser.add_argument("--output", default="report.html")
    parser.add_argument("--label-column")
    parser.add_argument("--fold-column")
    parser.add_argument("--results", help="JSON file: a list of objects with the same keys, the rows of a table")
    parser.add_argument("--clips", type=int, default=2, help="clips to draw")
    arguments = parser.parse_args()

    run, source = Path(arguments.model), arguments.model
    if (run / "final").is_dir():
        source = str(run / "final")
    elif run.name == "final":
        run = run.parent
    with setting_up(parser):
        model = open_model(BridleForPreTraining, source)
        data, processor = given_data(arguments), load_processor(source)
        check_data(data, processor, "--dataset")
        results = json.loads(Path(arguments.results).read_text()) if arguments.results else ()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    codebook_report(
        arguments.output,
        model,
        load_examples(data, processor),
        name=run.name,
        records=list(read_metrics(run / "metrics.jsonl")),
        results=results,
        clips=arguments.clips,
        sounds=sound_reader(data, processor),
    )


if __name__ == "__main__":
    main()
