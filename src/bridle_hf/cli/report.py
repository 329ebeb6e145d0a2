"""Write one HTML page about the tokens of a pretrained model: codebook use, norms, losses, codes to see and hear.

    bridle report --model runs/demo --dataset DIR --output report.html
    bridle report --model runs/demo/final --dataset DIR --label-column label --fold-column fold

With a run's folder, its final/ is measured and its metrics.jsonl drawn. Labels add the bag-of-codes accuracy, tested on
the given folds, or on five that are drawn.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..data import load_examples, load_processor
from ..data.source import sound_reader
from ..evaluation.cross_validation import check_probe
from ..evaluation.report import codebook_report
from ..loading import open_model
from ..modeling_bridle import BridleForPreTraining
from ..training.metrics import read_metrics
from .checks import check_data, check_output, reading, setting_up
from .options import add_data_options, add_max_bad_share, given_data, number
from .process import device, log_progress


def read_results(path):
    """The rows of a table.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        rows = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"--results is {path!r}, which is no JSON: {error}.") from error
    if not (
        isinstance(rows, list) and rows and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
    ):
        raise ValueError(f"--results is {path!r}; it takes a list of objects with the same keys.")
    return rows


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a run, or folder or Hub id of a pretrained model")
    add_data_options(parser, "folder or Hub id of clips, best unseen in pretraining")
    add_max_bad_share(parser)
    parser.add_argument("--output", default="report.html", help="the page")
    parser.add_argument("--label-column")
    parser.add_argument("--fold-column")
    parser.add_argument("--results", help="JSON file: a list of objects with the same keys, the rows of a table")
    parser.add_argument("--clips", type=number(int, 0), default=2, help="clips to draw")
    given = parser.parse_args(arguments)
    log_progress()

    run, source = Path(given.model), given.model
    if (run / "final").is_dir():
        source = str(run / "final")
    elif run.name == "final":
        run = run.parent
    with setting_up(parser):
        check_output(given.output, given.dataset, ".html")
        model = open_model(BridleForPreTraining, source)
        # only the first window of longer clips is measured; with this setting a warning says so
        data, processor = given_data(given, test_windows="first"), load_processor(source)
        check_data(data, processor, "--dataset")
        results = read_results(given.results) if given.results else ()
    # The bag of codes is tested fold by fold.
    check = partial(check_probe, several=True) if given.label_column else None
    with reading(parser):
        examples = load_examples(data, processor, check=check, for_training=False)
    model.to(device())
    codebook_report(
        given.output,
        model,
        examples,
        name=run.name,
        records=list(read_metrics(run / "metrics.jsonl")),
        results=results,
        clips=given.clips,
        sounds=sound_reader(replace(data, exclude=examples.exclude), processor),
    )
    sys.stdout.write(json.dumps({"clips": len(examples), "output": given.output}) + "\n")
