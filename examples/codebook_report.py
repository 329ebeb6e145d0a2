"""Write one HTML page about the codebooks of a pretrained model.

    python examples/codebook_report.py --model runs/demo/seed-0 --dataset DIR --output report.html

`bridle report` is the same; `--help` lists the options.
"""

from bridle_hf.cli.report import main

if __name__ == "__main__":
    main()
