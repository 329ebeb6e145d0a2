"""Fixtures of these tests; most are shared with those of evaluation."""

import pytest
from tones import one_thread, padded_examples, pretrained, to_wav, tone, tones  # noqa: F401

from bridle_hf.finetuning.trainer import TrainingBatches


@pytest.fixture
def drawn(monkeypatch):
    """The rows of every training batch; `drawn.stop_at` is the number of the one at which the run is killed."""

    class Drawn(list):
        stop_at = None

    rows, draw = Drawn(), TrainingBatches.__call__

    def call(self, some):
        rows.append(some)
        if len(rows) == rows.stop_at:
            raise KeyboardInterrupt
        return draw(self, some)

    monkeypatch.setattr(TrainingBatches, "__call__", call)
    return rows
