"""Half an hour of training with loader workers: memory and open files stay as they were after warm-up."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_and_open_files_stay_flat(repository):
    command = [sys.executable, str(repository / "benchmarks" / "soak.py"), "--minutes", "30"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
