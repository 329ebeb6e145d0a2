"""Measure the mean and standard deviation of a dataset's log-mel features, for `processor` in a recipe.

    bridle measure --dataset FOLDER --max-length 512
    bridle measure --dataset FOLDER --sampling-rate 32000 --fmax 16000

The last line of standard output is one JSON object. Frames of the clips count, padding does not.
"""

import argparse
import json
import sys
from functools import partial

from ..data.source import open_source
from ..data.survey import featurize_window
from ..feature_extraction_bridle import BridleFeatureExtractor, measure_mean_std
from .checks import check_data, reading, setting_up
from .options import add_data_options, add_max_bad_share, given_data, number
from .process import log_progress

SETTINGS = "num_mel_bins sampling_rate max_length fmin fmax frame_ms hop_ms num_channels channel".split()


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser, "folder or Hub id of a dataset with audio")
    add_max_bad_share(parser)
    parser.add_argument("--num-mel-bins", type=int, default=128)
    parser.add_argument("--sampling-rate", type=int, default=16000, help="of the recipe's processor, in Hz")
    parser.add_argument("--max-length", type=int, default=1024, help="frames of a clip that count, at a random place")
    parser.add_argument("--fmin", type=float, default=20.0, help="of the recipe's processor, as those below")
    parser.add_argument("--fmax", type=float, help="half of the sampling rate without")
    parser.add_argument("--frame-ms", type=float, default=25.0)
    parser.add_argument("--hop-ms", type=float, default=10.0)
    parser.add_argument("--num-channels", type=int, default=1)
    parser.add_argument("--channel", type=int, help="the channel of files to take, from 0 on; their mean without")
    parser.add_argument("--num-workers", type=number(int, 0), default=1, help="threads that decode")
    given = parser.parse_args(arguments)
    log_progress()
    with setting_up(parser):
        extractor = BridleFeatureExtractor(
            **{key: getattr(given, key) for key in SETTINGS},
            do_normalize=False,
        )
        data = given_data(given)
        check_data(data, extractor, "--dataset")
    source = open_source(data, extractor)
    source.featurize = partial(featurize_window, source.featurize)
    clips = source.decode_all(data.workers, data.max_bad_share)
    with reading(parser):
        mean, std = measure_mean_std((features for _, features in clips), extractor)
    sys.stdout.write(json.dumps({"mean": round(mean, 5), "std": round(std, 5)}) + "\n")
