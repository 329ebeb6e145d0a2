"""A trial of the benchmark suite: all rows at tiny sizes. What they measure at full size is in docs/performance.md."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from bridle_hf.demo_data import write_sound_set

pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("vector_quantize_pytorch")
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_small_run_fills_table_json_and_plot(tmp_path):
    options = ["--small", "--rounds", "2", "--threads", "1", "--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    said = run.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["machine"]["threads"] == 1 and report["machine"]["torch"]
    peers = {name for row in report["rows"] for name in row["others"]}
    assert {"kaldi-native-fbank", "transformers AST", "vector-quantize-pytorch"} < peers
    assert ("torchaudio" in peers) == (report["machine"]["torchaudio"] != "not installed")
    for row in report["rows"]:
        assert row["ours_ms"] > 0 and f"| {row['name']} |" in said
        for other in row["others"].values():
            assert other["ratio_range"][0] <= other["ratio"] <= other["ratio_range"][1]
    assert [len(axis["ms"]) for axis in report["growth"]] == [2] * 7
    assert all(f"ms grow as size^{axis['exponent']:.2f}" in said for axis in report["growth"])
    for shares in report["operators"].values():
        assert shares["matrix products"] > 0 and sum(shares.values()) == pytest.approx(1)
    assert len(report["peak_memory_gb"]) == 2 and min(report["peak_memory_gb"].values()) > 0.1
    assert len(re.findall("<svg", (tmp_path / "growth.svg").read_text())) == 1


def test_the_exponent_is_that_of_the_largest_sizes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from growth import exponent

    assert exponent((1, 2, 4, 8), [9.0, 4.0, 16.0, 64.0]) == pytest.approx(2)
    assert exponent((1, 2), [3.0, 6.0]) == pytest.approx(1)


def test_ratios_are_ours_over_theirs_on_the_chosen_clock(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import measuring

    seconds = [0.0]
    monkeypatch.setitem(measuring.CLOCKS, "cpu", lambda: seconds[0])

    def working(cost):
        return lambda: seconds.__setitem__(0, seconds[0] + cost)

    row = measuring.Row("work", working(2.0), {"slower": working(8.0), "floor": working(1.0)}, count=10, unit="clip")
    result = measuring.measure(row, rounds=3, clock="cpu")
    assert (result["ours_ms"], result["per_second"]) == (2000, 5)
    assert {name: other["ratio"] for name, other in result["others"].items()} == {"slower": 0.25, "floor": 2.0}
    assert "| work | 2000.0 | 5.00 clips | slower | 8000.0 | 0.25 | 0.25 to 0.25 |" in measuring.table([result])


def test_peak_memory_is_that_of_the_steps_alone(monkeypatch):
    """Not what the process that asks for it has had."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from bench import SMALL_PHASES
    from models import peak_memory

    ballast = np.ones(50_000_000)  # 400 MB
    here = int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e6
    assert 0.1 < peak_memory(SMALL_PHASES, 2, recompute=False) < here - ballast.nbytes / 2e9


def test_a_plan_adds_up(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import plan

    recipe = ["--recipe", "audio/esc10_tiny"]
    small = ["model.hidden_size=24", "model.num_hidden_layers=1", "model.input_size=[64, 128]"]
    plan.main([*recipe, *small, "training.masks_per_sample=2", "--tflops=0.5", "--gpus=2,4", "--price=3"])
    phases, times = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        for table in capsys.readouterr().out.split("\n\n")
    )
    assert [row[:3] for row in phases[:3]] == [
        ["encoder-iter1", "0.1", "2"], ["tokenizer-iter2", "0.0", "1"], ["encoder-iter2", "0.1", "2"],
    ]  # fmt: skip
    counted = plan.count(plan.load_recipe(recipe[1], [*small, "training.masks_per_sample=2"]))
    assert [row["clips"] for row in counted] == [80_000, 12_000, 80_000]  # 40 a step
    cold, _, warm = (row["gflop"] for row in counted)
    assert cold < warm  # which runs the tokenizer, too
    seconds = sum(row["gflop"] * row["clips"] for row in counted) * 1e9 / (2 * 0.5e12)
    assert float(times[0][1]) == pytest.approx(seconds / 3600, abs=0.06)
    assert float(times[0][1]) == pytest.approx(2 * float(times[1][1]), abs=0.11) and times[0][3] == times[1][3]
    plan.main([*recipe, *small, "training.masks_per_sample=2", "--tflops=encoder=0.5,tokenizer=0.25", "--gpus=1"])
    slower = float(capsys.readouterr().out.split("\n\n")[1].splitlines()[2].split("|")[2])
    more = counted[1]["gflop"] * counted[1]["clips"] * 1e9 / 0.5e12  # the tokenizer's phase takes twice its time
    assert slower == pytest.approx((2 * seconds + more) / 3600, abs=0.06)
    with pytest.raises(SystemExit):
        plan.main([*recipe, *small, "--tflops=encoder=0.5"])
    assert "--tflops has encoder; the recipe has tokenizer-iter2, too" in capsys.readouterr().err
    (one_mask, *_) = plan.count(plan.load_recipe(recipe[1], small))
    assert 1.9 * one_mask["gflop"] < cold < 2.1 * one_mask["gflop"]


def test_a_trial_of_the_gpu_benchmark(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    report = gpu.main(
        ["--small", "--rounds", "1", "--batch-sizes", "1,2", "--output", str(tmp_path), "--parts=steps,peers"]
    )
    assert json.loads((tmp_path / "gpu.json").read_text()) == report | {"fbank_clips_per_second": mock.ANY}
    assert [(row["phase"], row["batch"]) for row in report["rows"]] == [
        (phase, size) for phase in ("encoder", "tokenizer", "encoder, iteration 2") for size in (1, 2)
    ]
    for row in report["rows"]:
        assert row["clips_per_second"] * row["ms"] == pytest.approx(1e3 * row["batch"])
    one = gpu.Training(gpu.SMALL_PHASES, 1, "encoder").operations()
    assert report["rows"][1]["tflops"] == pytest.approx(one * report["rows"][1]["clips_per_second"] / 1e12)
    peers = {name for row in report["peers"] for name in row["others"]}
    assert peers == {"AST", "ViTMAE", "VideoMAE", "vector-quantize-pytorch", "floor: one product"}
    assert capsys.readouterr().out.count("| nowhere |") == 6
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])


def test_a_step_is_counted_the_same_whatever_kernel_it_takes(monkeypatch):
    """Kernels of attention compute products again in their backward pass; those are not work that a step needs."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from models import SMALL_PHASES, Training

    eager, sdpa = (Training(SMALL_PHASES | {"attn_implementation": name}, 2, "encoder") for name in ("eager", "sdpa"))
    assert sdpa.operations() == eager.operations() > 0


def test_a_trial_of_the_check_of_a_gpu(tmp_path):
    script = str(ROOT / "benchmarks" / "gpu_check.sh")
    wrong = subprocess.run([script, "--smal"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--smal is no option and no part" in wrong.stderr
    sounds = write_sound_set(tmp_path / "sounds", clips_per_class=5)
    options = ["--small", "--output", str(tmp_path / "out"), "--data", str(sounds), "--labels", "label"]
    run = subprocess.run([script, *options, "train"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    ends = re.findall(r"^== (\S+): exit code (\d+) after", run.stdout, re.MULTILINE)
    assert ends == [("train", "0"), ("probe-2", "0")]
    for name, _ in ends:
        assert (tmp_path / "out" / f"{name}.log").read_text()
    assert json.loads((tmp_path / "out" / "probe-2.log").read_text().splitlines()[-1])["clips"] == 60


def test_the_use_of_a_start(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cold_start

    z = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 256)
    found = cold_start.measure(z, "residual", "uniform", seed=0)
    assert found["cur"].shape == (4,) and (found["cur"] > 0.95).all()
    again = cold_start.measure(z, "residual", "uniform", seed=0)
    assert {name: values.tolist() for name, values in again.items()} == {n: v.tolist() for n, v in found.items()}


def test_the_stages_of_every_row_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import stages

    from bridle_hf import BridleConfig, BridleFeatureExtractor, BridleModel

    config = BridleConfig(
        input_size=(64, 128), hidden_size=80, num_hidden_layers=1, num_attention_heads=2, intermediate_size=80
    )
    BridleModel(config).save_pretrained(tmp_path / "model")
    BridleFeatureExtractor(max_length=64).save_pretrained(tmp_path / "model")
    write_sound_set(tmp_path / "sounds", clips_per_class=2)
    stages.main(
        ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "sounds"), "--clips", "20", "--steps", "2"]
    )
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == list(stages.ROWS)
    assert all(len(row) == 4 and len(row[1].split()) == 4 for row in rows)
    left = [float(value) for value in rows[0][1].split()]
    assert left == sorted(left, reverse=True) and left[0] < 1
