"""A run over clips of every kind, good and bad: what it leaves out is named, and too much of it ends the run."""

import numpy as np
import pytest
from runs import fork, join, records
from sound_files import RATE, clip, wav, write_parquet

from bridle_hf.training import load_recipe, pretrain

GOOD = [
    wav(clip(0)),
    wav(np.stack([clip(1), clip(2)], 1)),
    wav(clip(3), subtype="PCM_24"),
    wav(np.repeat(clip(4), 3), rate=3 * RATE),
    wav(np.tile(clip(5), 100)),  # long
]
BAD = [wav(clip(6))[:40], b"no sound", b"", wav(clip(7)[:0]), wav(np.full(RATE, np.nan), subtype="FLOAT")]
NAMES = {f"clip-{number}.flac" for number in range(len(GOOD), len(GOOD + BAD))}


def train(recipe, *overrides):
    pretrain(load_recipe(recipe, overrides))


@pytest.fixture
def overrides(tmp_path):
    dataset = write_parquet(tmp_path / "set", GOOD + BAD, shards=2)
    return (f"output_dir={tmp_path / 'run'}", f"data.dataset={dataset}", "training.deadline=60")


@pytest.mark.parametrize("ranks", [1, 2])
def test_bad_clips_are_named_in_the_metrics_and_at_the_end(tmp_path, tiny_recipe, overrides, ranks):
    errors = tmp_path / "errors"
    join(fork(train, tiny_recipe, *overrides, "data.max_bad_share=0.9", errors=errors, ranks=ranks), errors)
    lines = records(tmp_path / "run")
    named = [name for line in lines for name in line.get("skipped", {})]
    assert len(named) == len(set(named)) and set(named) == NAMES  # each once
    assert lines[-1]["total_step"] == 12 and lines[-1]["clips_skipped"] == len(NAMES)
    assert f"left out: 5 clips ({', '.join(sorted(NAMES))}) and 0 steps" in errors.read_text()


def test_too_many_bad_clips_end_the_run(tmp_path, tiny_recipe, overrides):
    errors = tmp_path / "errors"
    join(fork(train, tiny_recipe, *overrides, "data.max_bad_share=0.02", errors=errors), errors, exitcode=1)
    assert "more than data.max_bad_share=0.02 allows" in errors.read_text()
