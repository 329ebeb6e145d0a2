"""Embed the samples of a dataset with a frozen encoder, one parquet file.

    python examples/extract_features.py --model runs/esc10_tiny/final --dataset DIR --output features.parquet

`bridle features` is the same; `--help` lists the options.
"""

from bridle_hf.cli.features import main

if __name__ == "__main__":
    main()
