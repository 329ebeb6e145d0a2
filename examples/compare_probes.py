"""Compare two probes clip by clip, or list what one of them gets wrong.

    python examples/compare_probes.py first.csv second.csv

`bridle compare` is the same; `--help` lists the options.
"""

from bridle_hf.cli.compare import main

if __name__ == "__main__":
    main()
