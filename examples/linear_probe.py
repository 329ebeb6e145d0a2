"""Linear probe of a frozen encoder: logistic regression on pooled features.

    python examples/linear_probe.py --model runs/mine/final --dataset DIR --label-column target --fold-column fold

`bridle probe` is the same; `--help` lists the options.
"""

from bridle_hf.cli.probe import main

if __name__ == "__main__":
    main()
