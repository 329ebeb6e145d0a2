"""Turn the samples of a dataset into discrete codes, one parquet file.

    python examples/tokenize_audio.py --model runs/esc10_tiny/final --dataset DIR --output codes.parquet

`bridle tokens` is the same; `--help` lists the options.
"""

from bridle_hf.cli.tokens import main

if __name__ == "__main__":
    main()
