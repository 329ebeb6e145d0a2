"""Embed the clips of a dataset with a frozen encoder, one parquet file.

    bridle features --model runs/esc10_tiny/final --dataset DIR --output features.parquet
    bridle features --model ... --dataset DIR --pooling frames --layers 6 12 --overlap 0.5
    bridle features --model ... --dataset DIR --layers all --mix mean
    bridle features --model ... --dataset DIR --rows windows --window-seconds 2

A row holds the dataset's other columns, `clip_name` and a column per layer (`last`, `layer_6`), or one of their `mean`:
one vector, or with `--pooling frames` a vector per patch in time and their `start`s in seconds. Long sounds are read in
windows, and with `--rows windows` each of these has a row of its own, with its `start` and `end` in seconds. Killed,
the same command goes on where it was. Under `accelerate launch -m bridle_hf.cli features ...` the processes share the
clips, and each writes a file, `features-00000-of-00004.parquet`.
"""

import argparse
import json
import sys

from ..clip_features_bridle import FRAME_POOLINGS, check_poolings
from ..data import MODALITIES, load_processor
from ..evaluation.features import STREAMED_POOLINGS, write_features
from ..evaluation.row_files import shard_path
from ..files import final_of
from ..loading import open_model
from ..modeling_bridle import BridleModel
from .checks import check_data, check_output, reading, setting_up
from .options import (
    add_data_options,
    add_layers,
    add_max_bad_share,
    add_pad_short,
    check_mix,
    given_data,
    given_layers,
    given_window,
    number,
    padded_short,
)
from .process import device, launched, log_progress

MOST_OVERLAP = 0.99  # beyond it, windows are many times what they are made of


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=final_of, help="run, folder or Hub id of a pretrained model")
    add_data_options(parser)
    add_max_bad_share(parser)
    parser.add_argument("--output", default="features.parquet", help="parquet file of one row a clip, or a window")
    add_layers(parser, ("mean",), "without it a column each")
    parser.add_argument("--pooling", choices=STREAMED_POOLINGS, default="mean")
    parser.add_argument(
        "--window-seconds",
        type=number(float, 0.01, 3600),
        help="of long sounds; by default what the model was trained on",
    )
    parser.add_argument(
        "--overlap",
        type=number(float, 0, MOST_OVERLAP),
        help="share of a window that the next one sees again; 0.5 without, and 0 with --rows windows",
    )
    parser.add_argument("--rows", choices=("clips", "windows"), default="clips", help="what has a row of its own")
    add_pad_short(parser)
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    parser.add_argument("--num-workers", type=number(int, 0), default=2, help="threads that decode")
    given = parser.parse_args(arguments)
    log_progress()

    with setting_up(parser):
        check_mix(given)
        check_output(given.output, given.dataset, ".parquet")
        model = open_model(BridleModel, given.model)
        layers = given_layers(given, model.config)
        processor = load_processor(given.model, **padded_short(given, model.config))
        data = given_data(given, max_frames=given_window(given, processor, model.config))
        check_poolings(model.config, [given.pooling], STREAMED_POOLINGS)
        per_window = given.rows == "windows"
        if per_window and (given.pooling in FRAME_POOLINGS or MODALITIES[model.config.modality].hop_seconds is None):
            raise ValueError("--rows is 'windows', which takes sounds, and another --pooling than frames.")
        check_data(data, processor, "--dataset")
    model.to(device())
    overlap = given.overlap if given.overlap is not None else 0.0 if per_window else 0.5
    which = {"layers": layers, "even": given.mix == "mean", "pooling": given.pooling, "overlap": overlap}
    if per_window:  # a key of its own, so that what was begun before goes on
        which["per_window"] = True
    with reading(parser):
        count = write_features(
            given.output, model, data, processor, **which, batch_size=given.batch_size, shard=launched()
        )
    sys.stdout.write(json.dumps({given.rows: count, "output": str(shard_path(given.output, launched()))}) + "\n")
