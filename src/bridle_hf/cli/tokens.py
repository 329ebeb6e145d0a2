"""Turn the clips of a dataset into discrete codes, one parquet file, for models of audio tokens.

    bridle tokens --model runs/esc10_tiny/final --dataset DIR --output codes.parquet

Killed, it goes on where it was; `accelerate launch` shares the clips over processes, as for `bridle features`.
A row holds the dataset's other columns, `clip_name`, `codes` (flat) and `shape` (patches in time, patches in frequency,
codebooks). What the numbers stand for is written into the file's metadata under `bridle_codes`, and printed. Code k of
codebook m is token m * codebook_size + k of one vocabulary:

    codes = np.array(row["codes"]).reshape(row["shape"])
    tokens = codes + codebook_size * np.arange(num_codebooks)

or, of codebooks of several sizes, where codebook_size is a list: codes + np.cumsum([0, *codebook_size[:-1]]).
"""

import argparse
import json
import sys

from ..data import load_processor
from ..evaluation.row_files import shard_path
from ..evaluation.tokens import code_layout, write_codes
from ..files import final_of
from ..loading import open_model
from ..modeling_bridle import BridleTokenizer
from .checks import check_data, check_output, reading, setting_up
from .options import add_data_options, add_max_bad_share, given_data, number
from .process import device, launched, log_progress


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=final_of, help="run, folder or Hub id, with a tokenizer")
    add_data_options(parser)
    add_max_bad_share(parser)
    parser.add_argument("--output", default="codes.parquet", help="parquet file of one row a clip")
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    parser.add_argument("--num-workers", type=number(int, 0), default=2, help="threads that decode")
    given = parser.parse_args(arguments)
    log_progress()

    with setting_up(parser):
        check_output(given.output, given.dataset, ".parquet")
        tokenizer = open_model(BridleTokenizer, given.model)
        data, processor = given_data(given), load_processor(given.model)
        check_data(data, processor, "--dataset")
    tokenizer.to(device())
    with reading(parser):
        clips = write_codes(given.output, tokenizer, data, processor, given.batch_size, shard=launched())
    written = {"clips": clips, "output": str(shard_path(given.output, launched()))}
    summary = written | code_layout(tokenizer.config, processor)
    sys.stdout.write(json.dumps(summary) + "\n")
