"""Repeat a step that held NaN or inf, on the CPU in float32.

    python examples/replay_step.py runs/mine/failure/phase-00-step-00000123

`bridle replay` is the same; `--help` lists the options.
"""

from bridle_hf.cli.replay import main

if __name__ == "__main__":
    main()
