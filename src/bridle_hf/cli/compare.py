"""What probes say of single clips: `bridle probe --output` writes the files.

    bridle compare first.csv                # confusions, and the clips that were got wrong
    bridle compare first.csv second.csv     # the second probe less the first on the same clips, with its interval

Of several seeds a clip counts with the share that got it right, and all folds count alike, as in `bridle probe`. Of
clips with several labels it is the mean average precision of each fold that counts, and instead of confusions there are
the classes with their precisions, lowest first.
Intervals are of 95 %, by bootstrap over clips. The last line of standard output is one JSON object.
"""

import argparse
import json
import sys

from ..evaluation.comparison import compare, read_predictions, summary, tables
from ..evaluation.tables import markdown
from .checks import setting_up


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="file of `bridle probe --output`")
    parser.add_argument("second", nargs="?", help="another one, on the same clips")
    given = parser.parse_args(arguments)
    with setting_up(parser):
        first = read_predictions(given.first)
        if given.second:
            report = compare(first, read_predictions(given.second))
    if not given.second:
        sys.stdout.write("\n".join(map(markdown, tables(first))))
        report = summary(first)
    sys.stdout.write(json.dumps(report) + "\n")
