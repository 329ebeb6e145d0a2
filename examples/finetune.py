"""Fine-tune a pretrained encoder on a labelled set, one model per fold, and test each.

    python examples/finetune.py --recipe audio/esc50_finetune model=runs/esc50/final

`bridle finetune` is the same; `--help` lists the options.
"""

from bridle_hf.cli.finetune import main

if __name__ == "__main__":
    main()
