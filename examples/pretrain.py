"""Pretrain BRIDLE: all phases of a recipe.

    accelerate launch examples/pretrain.py --recipe audio/demo
    accelerate launch examples/pretrain.py --recipe audio/esc10_tiny output_dir=runs/a seed=1

`bridle pretrain` is the same; `--help` lists the options.
"""

from bridle_hf.cli.pretrain import main

if __name__ == "__main__":
    main()
