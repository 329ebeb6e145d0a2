"""A run over clips of every kind, good and bad: what it leaves out is named, and too much of it ends the run."""

import os
import subprocess
import sys

import numpy as np
import pytest
from runs import records, unused_port
from sound_files import RATE, clip, wav, write_parquet

GOOD = [
    wav(clip(0)),
    wav(np.stack([clip(1), clip(2)], 1)),
    wav(clip(3), subtype="PCM_24"),
    wav(np.repeat(clip(4), 3), rate=3 * RATE),
    wav(np.tile(clip(5), 100)),  # long
]
BAD = [wav(clip(6))[:40], b"no sound", b"", wav(clip(7)[:0]), wav(np.full(RATE, np.nan), subtype="FLOAT")]
NAMES = {f"clip-{number}.flac (shard 1, example {number - 5})" for number in range(len(GOOD), len(GOOD + BAD))}


@pytest.fixture
def train(tmp_path, tiny_recipe, repository):
    """Runs the script with overrides of a recipe on so many processes; its exit code and what it said."""
    dataset = write_parquet(tmp_path / "set", GOOD + BAD, shards=2)
    script = [str(repository / "examples" / "pretrain.py"), "--recipe", str(tiny_recipe)]
    script += [f"output_dir={tmp_path / 'run'}", f"data.dataset={dataset}", "training.deadline=60"]
    environment = os.environ | {"PYTHONPATH": str(repository / "src"), "ACCELERATE_USE_CPU": "true"}

    def run(*overrides, ranks=1):
        launcher = ["-m", "torch.distributed.run", "--master_port", str(unused_port()), "--nproc_per_node", str(ranks)]
        command = [sys.executable, *(launcher if ranks > 1 else []), *script, *overrides]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("ranks", [1, 2])
def test_bad_clips_are_named_in_the_metrics_and_at_the_end(tmp_path, train, ranks):
    code, said = train("data.max_bad_share=0.9", ranks=ranks)
    assert code == 0, said
    lines = records(tmp_path / "run")
    named = [name for line in lines for name in line.get("skipped", {})]
    assert len(named) == len(set(named)) and set(named) == NAMES  # each once
    assert lines[-1]["total_step"] == 12 and lines[-1]["clips_skipped"] == len(NAMES)
    assert f"skipped: 5 clips ({', '.join(sorted(NAMES))}) and 0 steps" in said


def test_too_many_bad_clips_end_the_run(train):
    code, said = train("data.max_bad_share=0.02")
    assert code == 2 and "more than data.max_bad_share=0.02 allows" in said
