"""Take a step with NaN or inf again, on the CPU in float32, and say where the numbers go wrong.

python examples/replay_step.py runs/mine/failure/phase-00-step-00000123
"""

import argparse
import json
from math import isfinite
from pathlib import Path

from bridle_hf.training import replay


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that a run has written to failure/")
    parser.add_argument("--rank", type=int, default=0, help="the process whose batches are taken")
    arguments = parser.parse_args()
    about = json.loads((arguments.folder / f"rank-{arguments.rank}.json").read_text())
    print(f"step {about['step'] + 1} of {about['phase']}: {about['reason']}")
    losses, gradients = replay(arguments.folder, arguments.rank)
    for name, loss in losses.items():
        print(f"{name:>16} {loss:.6g}")
    bad = [name for name, norm in gradients.items() if not isfinite(norm)]
    print(f"gradients: {len(gradients) - len(bad)} finite, {len(bad)} not" + "".join(f"\n  {name}" for name in bad))


if __name__ == "__main__":
    main()
