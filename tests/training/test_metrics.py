"""Logged measures against numpy."""

import json
from math import inf, isnan, nan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bridle_hf.losses_bridle import LossSum
from bridle_hf.training import load_recipe
from bridle_hf.training.engine import add_up, mean_losses
from bridle_hf.training.metrics import MetricsFile, read_metrics, stage_predictions


def test_predictions_by_stage():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 2, 4)), rng.integers(0, 4, size=(2, 3, 2))
    labels[1, 2] = -100  # an empty slot
    output = SimpleNamespace(logits=torch.tensor(logits), labels=torch.tensor(labels))
    found = stage_predictions(output, Accelerator(cpu=True))
    for stage in range(2):
        rows = [(logits[b, s, stage], labels[b, s, stage]) for b in range(2) for s in range(3) if (b, s) != (1, 2)]
        entropy = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in rows])
        assert found["cross_entropy"][stage] == pytest.approx(entropy, rel=1e-5)
        assert found["accuracy"][stage] == pytest.approx(np.mean([row.argmax() == label for row, label in rows]))
    assert stage_predictions(SimpleNamespace(logits=None), Accelerator(cpu=True)) == {}


def test_codebook_measures(tiny_recipe):
    torch.manual_seed(0)
    phase = load_recipe(tiny_recipe, ["output_dir=x"]).build_tasks()[0]
    model = phase.build(None, begins=True).eval()
    mask = torch.ones(3, 64, dtype=torch.long)
    mask[0, 32:] = 0  # half of the first clip's 4 x 2 patches
    batch = {"input_values": torch.randn(3, 64, 16), "attention_mask": mask}
    with torch.no_grad():
        drawn = phase.draw(model, iter([batch]), (0, 0, 0, 0, 0))
        output = model(**drawn)
        tokens = model.tokenizer.project(batch["input_values"], mask).double().numpy().reshape(24, -1)
    real = np.array([True] * 4 + [False] * 4 + [True] * 16)
    codes, tokens = output.codes.reshape(24, 2).numpy()[real], tokens[real]
    found = phase.measure(model, output, drawn, Accelerator(cpu=True))["codebooks"]

    left = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    for stage, book in enumerate(model.tokenizer.quantizer.codebooks):
        share = np.unique(codes[:, stage], return_counts=True)[1] / len(codes)
        entropy = -(share * np.log(share)).sum()
        left = left - book.embed.double().numpy()[codes[:, stage]]
        assert found["cur"][stage] == len(share) / 4
        assert found["perplexity"][stage] == pytest.approx(np.exp(entropy))
        assert found["ecu"][stage] == pytest.approx(len(share) / 4 * entropy / np.log(4))
        assert found["residual"][stage] == pytest.approx((left**2).sum() / len(codes), rel=1e-4)


def test_losses_of_micro_batches_are_divided_once_they_are_all_there():
    def losses(**pairs):
        return {name: LossSum(torch.tensor(total), torch.tensor(count)) for name, (total, count) in pairs.items()}

    both = add_up(add_up({}, losses(b=(1.0, 1.0), a=(2.0, 4.0))), losses(b=(4.0, 3.0), a=(0.0, 0.0)))
    assert mean_losses(both, Accelerator(cpu=True)) == {"a": 0.5, "b": 1.25}


def test_a_file_goes_back_to_a_step(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    records = [{"phase_index": phase, "step": step} for phase in (0, 1) for step in (1, 2, 3)]
    for record in records:
        file.append(record)
    with file.path.open("a") as stream:
        stream.write('{"phase_index": 1, "st')  # the run was killed here
    assert list(read_metrics(file.path)) == records
    assert file.rewind(1, 2) == set()
    assert [json.loads(line) for line in file.path.read_text().splitlines()] == records[:5]
    file.append({"phase_index": 1, "step": 3, "skipped": {"a.wav": "too short", "b.wav": "empty"}})
    file.append({"phase_index": 1, "step": 4, "skipped": {"c.wav": "empty"}})
    assert file.rewind(1, 3) == {"a.wav", "b.wav"}
    file.rewind(-1, 0)
    assert file.path.read_text() == ""


def test_lines_that_no_run_wrote(tmp_path, caplog):
    """Notes stay; what a power cut left in the middle is named and goes; neither stops a run or hides a record."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    first, last = ({"phase_index": 0, "step": step, "skipped": {f"{step}.wav": "empty"}} for step in (1, 2))
    notes = ['{"note": "by hand"}', "123", "null", "[1]", '{"phase_index": "a", "step": 1}', '{"step": 1}']
    lines = [json.dumps(first), *notes, "\0" * 50 + json.dumps(first), "", json.dumps(last), '{"phase_index": 0, "s']
    file.path.write_bytes("\n".join(lines).encode() + b"\xff")
    assert list(read_metrics(file.path)) == [first, last]
    assert file.rewind(0, 2) == {"1.wav", "2.wav"}
    assert file.path.read_text().splitlines() == [json.dumps(first), *notes, json.dumps(last)]
    assert len(caplog.messages) == 2
    assert all(m.startswith(f"a line of {file.path} cannot be read and was left out") for m in caplog.messages)
    file.rewind(0, 1)
    assert list(read_metrics(file.path)) == [first]


def test_what_is_not_finite_is_null(tmp_path):
    """JSON has no NaN: most readers refuse a line that holds one."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"phase_index": 0, "step": 1, "loss": nan, "codebooks": {"ecu": [0.5, inf]}})
    assert json.loads(file.path.read_text())["codebooks"]["ecu"] == [0.5, None]
    assert "NaN" not in file.path.read_text() and "Infinity" not in file.path.read_text()
    (record,) = read_metrics(file.path)
    assert isnan(record["loss"]) and record["codebooks"]["ecu"][0] == 0.5 and isnan(record["codebooks"]["ecu"][1])
