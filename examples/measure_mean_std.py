"""Measure the mean and standard deviation of a dataset's log-mel features.

    python examples/measure_mean_std.py --dataset DIR --max-length 512

`bridle measure` is the same; `--help` lists the options.
"""

from bridle_hf.cli.measure import main

if __name__ == "__main__":
    main()
