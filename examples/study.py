"""Pretrain over seeds, probe the frozen encoders, fine-tune: one table.

    python examples/study.py --recipe audio/demo

`bridle study` is the same; `--help` lists the options.
"""

from bridle_hf.cli.study import main

if __name__ == "__main__":
    main()
