"""Measure mean and standard deviation of a dataset, for `processor` in a recipe.

    bridle measure --dataset my_sounds --max-length 512
    bridle measure --dataset my_sounds --sampling-rate 32000 --fmax 16000
    bridle measure --dataset my_pictures

The last line of standard output is one JSON object: `mean` and `std` of the log-mel features of sounds, whose frames
count and padding does not; or `image_mean` and `image_std` of the colours of images or videos, each of which counts
alike.
"""

import argparse
import json
import sys
from functools import partial

from ..configuration_bridle import BridleConfig
from ..data.modalities import MODALITIES, build_processor
from ..data.source import open_source
from ..data.survey import featurize_window
from .checks import check_data, modalities_of_files, reading, setting_up
from .options import add_data_options, add_max_bad_share, given_data, number
from .process import log_progress

OF_SOUNDS = "num_mel_bins sampling_rate max_length fmin fmax frame_ms hop_ms num_channels channel".split()


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--modality", choices=MODALITIES, help="without, that of the folder's files, or audio")
    add_max_bad_share(parser)
    parser.add_argument("--num-mel-bins", type=int, default=128, help="of sounds, as those below")
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
        modality = MODALITIES[given.modality or modality_to_measure(given.dataset)]
        if modality.waveform is None:
            for key in OF_SOUNDS:
                if getattr(given, key) != parser.get_default(key):
                    option = "--" + key.replace("_", "-")
                    raise ValueError(
                        f"{option} is {getattr(given, key)}, which is of sounds; these are {modality.name}s."
                    )
            processor = build_processor(BridleConfig(modality=modality.name), **modality.unnormalised)
        else:
            processor = modality.processor(**{key: getattr(given, key) for key in OF_SOUNDS}, **modality.unnormalised)
        data = given_data(given)
        check_data(data, processor, "--dataset")
    source = open_source(data, processor)
    source.featurize = partial(featurize_window, source.featurize)
    clips = (clip for _, clip in source.decode_all(data.workers, data.max_bad_share))
    with reading(parser):
        found = modality.measure(clips, processor)
    sys.stdout.write(json.dumps(found) + "\n")


def modality_to_measure(dataset: str) -> str:
    """The modality of most files of a folder; audio where they do not tell.

    Raises:
        ValueError: files of several are equally many.
    """
    found = modalities_of_files(dataset)
    if len(found) > 1:
        raise ValueError(f"--dataset is {dataset!r}, which may be {' or '.join(found)}; it takes a --modality.")
    return found[0] if found else "audio"
