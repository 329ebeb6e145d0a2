"""Discrete autoencoding with every quantizer of a recipe, and one table.

    python examples/discrete_autoencoding.py --recipe autoencoding/cifar10_small

`bridle autoencoding` is the same; `--help` lists the options.
"""

from bridle_hf.cli.autoencoding import main

if __name__ == "__main__":
    main()
