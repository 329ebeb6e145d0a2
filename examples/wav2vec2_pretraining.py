"""wav2vec 2.0 pretraining with every quantizer of a recipe, and one table.

    python examples/wav2vec2_pretraining.py --recipe wav2vec2/esc10_1x1024

`bridle wav2vec2` is the same; `--help` lists the options.
"""

from bridle_hf.cli.wav2vec2 import main

if __name__ == "__main__":
    main()
