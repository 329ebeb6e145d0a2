"""Classify the clips of a dataset with a fine-tuned model, one csv table.

    bridle classify --model runs/mine_classes/final --dataset DIR --output predictions.csv

A row holds the `name` of a clip, its `prediction` and `score`, a column `score_LABEL` for each label, and `problem`:
why a file cannot be used, if it cannot. All windows of a long sound count; `--windows first` takes the first alone, and
`--windows each` writes a row for each, with its `start` and `end` in seconds: where in a recording something is. Of a
model for several labels per clip, prediction and score are lists in JSON of those above `--threshold`.
"""

import argparse
import json
import sys

from .. import modeling_bridle
from ..configuration_bridle import BridleConfig
from ..data.modalities import MODALITIES, load_processor
from ..evaluation.classifying import takes_several_labels, write_predictions
from ..loading import model_folder, open_model
from ..saved_models import check_model
from .checks import check_data, check_output, setting_up
from .options import add_data_options, add_pad_short, given_data, number, padded_short
from .process import device, log_progress


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a fine-tuned model")
    add_data_options(parser)
    parser.add_argument("--output", default="predictions.csv", help="csv file of one row a clip, or a window")
    parser.add_argument(
        "--threshold",
        type=number(float, 0, 1),
        help="labels likelier than this are given: by default 0.5 of several labels per clip, and the likeliest of one",
    )
    parser.add_argument("--windows", choices=("all", "first", "each"), default="all", help="of long sounds")
    add_pad_short(parser)
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    parser.add_argument("--num-workers", type=number(int, 0), default=2, help="threads that decode")
    given = parser.parse_args(arguments)
    log_progress()

    with setting_up(parser):
        check_output(given.output, given.dataset, ".csv")
        source = str(model_folder(given.model, "--model"))
        check_model(source)
        config = BridleConfig.from_pretrained(source)
        takes_several_labels(config)  # refuses regression before the weights are read
        model = open_model(getattr(modeling_bridle, MODALITIES[config.modality].classifier), source)
        # a file that cannot be used is a row of its own, however many there are
        per_window = given.windows == "each"
        if per_window and MODALITIES[config.modality].hop_seconds is None:
            raise ValueError(f"--windows is 'each'; the model takes {config.modality} data, which has no such windows.")
        data = given_data(given, test_windows="all" if per_window else given.windows, max_bad_share=1.0)
        processor = load_processor(source, **padded_short(given, config))
        check_data(data, processor, "--dataset")
    model.to(device())
    with setting_up(parser):
        how = {"threshold": given.threshold, "batch_size": given.batch_size, "per_window": per_window}
        count, unusable = write_predictions(given.output, model, data, processor, **how)
    sys.stdout.write(
        json.dumps({"windows" if per_window else "clips": count, "unusable": unusable, "output": given.output}) + "\n"
    )
