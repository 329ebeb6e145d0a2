"""`python -m bridle_hf.cli` is `bridle`, also for launchers: `accelerate launch -m bridle_hf.cli pretrain ...`."""

from .main import main

if __name__ == "__main__":
    main()
