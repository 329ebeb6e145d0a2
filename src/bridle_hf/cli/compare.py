"""What probes say of single clips: `bridle probe --output` writes the files.

    bridle compare first.csv                # confusions, and the clips that were got wrong
    bridle compare first.csv second.csv     # the difference of two probes on the same clips, with its interval

Of several seeds a clip counts with the share that got it right. Intervals are of 95 %, by bootstrap over clips. The
last line of standard output is one JSON object.
"""

import argparse
import json
import sys

from ..evaluation.comparison import bootstrap, compare, confusion_rows, mean_by_clip, read_predictions, wrong_rows
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
        columns = [[row[name] for row in first] for name in ("clip", "label", "said")]
        tables = markdown(confusion_rows(*columns[1:])), markdown(wrong_rows(*columns))
        sys.stdout.write("\n".join(tables))
        right = mean_by_clip(first)
        report = {"accuracy": right.mean(), "interval": bootstrap(right), "clips": len(right)}
    sys.stdout.write(json.dumps(report) + "\n")
