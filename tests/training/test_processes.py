"""Several processes take the steps that one process takes with the joined batch, and none waits for ever."""

import os
import time
from math import inf, isfinite
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from runs import differing, fork, join, records
from safetensors.torch import load_file, save_file
from sound_files import clip, flac, write_parquet

from bridle_hf import BridleTokenizer, ResidualQuantizer
from bridle_hf.codebook_training_bridle import start_codebooks_
from bridle_hf.training import engine, load_recipe, phases, pretrain, replay
from bridle_hf.training.run import Run

LENGTHS = (64, 48, 10, 64, 32, 64, 0, 0)  # frames of the 8 clips of a step; the last two are padding altogether
SCHEDULE = (
    "phases=[{kind: encoder, steps: 4}, {kind: tokenizer, steps: 10}, "
    "{kind: joint, steps: 6, tokenizer_update_every: 2}]",
    "model.drop_path_rate=0.0",
    "model.quantizer_config.reset=periodic",
    "model.quantizer_config.reset_interval=2",
    "model.quantizer_config.reset_threshold=0.9",
    "training.deadline=60",
)
# clips of each micro-batch of each process; in all of them a step takes the same eight
JOINED = [[8]]
LAYOUTS = {
    "two processes": [[4], [4]],
    "two micro-batches": [[4, 4]],
    "two of both, activations computed twice": [[2, 2], [2, 2]],
    "uneven": [[5], [3]],
    "one without a frame": [[6], [2]],
}


class SameClips:
    """Stands for the loader of a process: its part of eight clips a step, which differ from step to step."""

    skipped = {}

    def __init__(self, layout: list[list[int]], rank: int):
        before = sum(map(sum, layout[:rank]))
        ends = [before + sum(layout[rank][: n + 1]) for n in range(len(layout[rank]))]
        self.slices = [slice(end - size, end) for end, size in zip(ends, layout[rank], strict=True)]
        self.calls = 0

    def __next__(self) -> dict[str, torch.Tensor]:
        step, micro = divmod(self.calls, len(self.slices))
        self.calls += 1
        values = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(step))
        mask = (torch.arange(64) < torch.tensor(LENGTHS)[:, None]).long()
        return {"input_values": values[self.slices[micro]], "attention_mask": mask[self.slices[micro]]}

    def state_dict(self) -> dict:
        return {"calls": self.calls}

    def differs(self, state: dict) -> str:
        return ""

    def load_state_dict(self, state: dict) -> None:
        self.calls = state["calls"]


def noise_of_clips(values, masks, patches, seed) -> torch.Tensor:
    """The same mask for the same clip, wherever it is in a batch."""
    seeds = [int(abs(clip.sum().item()) * 1e6) for clip in values]
    return torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def train_layout(recipe, folder, layout, overrides=()):
    """The schedule with stood-in data; the model at the end of each phase goes to RANK-PHASE.safetensors."""
    save = Run.save

    def save_and_show(run, phase, step, model, *others):
        if step == phase.steps:
            bare = run.accelerator.unwrap_model(model)
            state = {name: value.contiguous() for name, value in bare.state_dict().items()}
            save_file(state, folder / f"{run.accelerator.process_index}-{phase.name}.safetensors")
        return save(run, phase, step, model, *others)

    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", save_and_show)
        patch.setattr(Run, "open_data", lambda run: SameClips(layout, run.accelerator.process_index))
        patch.setattr(phases, "draw_noise", noise_of_clips)
        micros = f"training.gradient_accumulation_steps={len(layout[0])}"
        pretrain(load_recipe(recipe, [f"output_dir={folder / 'run'}", *SCHEDULE, micros, *overrides]))


@pytest.fixture(scope="module")
def joined(tmp_path_factory, tiny_recipe):
    folder = tmp_path_factory.mktemp("joined")
    join(fork(train_layout, tiny_recipe, folder, JOINED, errors=folder / "errors"), folder / "errors")
    return folder


def query_and_value(bias: torch.Tensor) -> torch.Tensor:
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


def codes(recipe, folder, phase):
    task = load_recipe(recipe, ["output_dir=x", *SCHEDULE]).build_tasks()[0]
    model = task.build(load_file(folder / f"0-{phase}.safetensors"), begins=False).eval()
    assert (model.tokenizer.cold_start is not None) == (phase == "encoder-iter1")
    values = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(99))
    return model.tokenizer.encode(values)


@pytest.mark.parametrize("name", LAYOUTS)
def test_many_batches_make_the_steps_of_one(joined, tmp_path, tiny_recipe, name):
    layout, errors = LAYOUTS[name], tmp_path / "errors"
    overrides = (f"training.gradient_checkpointing={'twice' in name}",)
    join(fork(train_layout, tiny_recipe, tmp_path, layout, overrides, errors=errors, ranks=len(layout)), errors)
    assert sum(record["codes_reset"] for record in records(joined / "run")) > 0
    for phase in ("encoder-iter1", "tokenizer-iter2", "joint-iter2"):
        mine, theirs = (load_file(folder / f"0-{phase}.safetensors") for folder in (tmp_path, joined))
        if len(layout) > 1:
            assert not differing(mine, load_file(tmp_path / f"1-{phase}.safetensors"))
        for key, value in theirs.items():
            if key.endswith("qkv.bias"):
                # Softmax does not see the keys' bias: its gradient is rounding, of which AdamW makes whole steps.
                mine[key], value = (query_and_value(each) for each in (mine[key], value))
            torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-5, msg=f"{phase} {key}")
        assert torch.equal(codes(tiny_recipe, tmp_path, phase), codes(tiny_recipe, joined, phase))
    for mine, theirs in zip(records(tmp_path / "run"), records(joined / "run"), strict=True):
        for key in ("loss", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-5, rel=1e-4)


def start_codebooks(folder, name, parts):
    """Codebooks from six batches of 24 vectors, of which each process has its part."""
    rank = Accelerator(cpu=True).process_index
    batches = torch.randn(6, 24, 8, generator=torch.Generator().manual_seed(0)).split(parts, dim=1)[rank]
    quantizer = ResidualQuantizer(dim=8, codebook_size=4, num_codebooks=2, kmeans_samples_per_code=24)
    start_codebooks_(quantizer, iter(batches), torch.Generator().manual_seed(1))
    save_file(quantizer.state_dict(), folder / f"{name}-{rank}.safetensors")


def test_codebooks_start_alike_however_many_processes_fetch_their_sample(tmp_path):
    """It takes several batches, and its order counts: k-means starts from vectors drawn by their places."""
    layouts = {"one": [24], "two": [12, 12], "uneven": [0, 7, 17]}
    for name, parts in layouts.items():
        arguments = (tmp_path, name, parts)
        join(fork(start_codebooks, *arguments, errors=tmp_path / "errors", ranks=len(parts)), tmp_path / "errors")
    one = load_file(tmp_path / "one-0.safetensors")
    for name, parts in layouts.items():
        for rank in range(len(parts)):
            assert not differing(one, load_file(tmp_path / f"{name}-{rank}.safetensors"))


def test_checkpointed_activations_change_nothing(joined, tmp_path, tiny_recipe):
    arguments = (tiny_recipe, tmp_path, JOINED, ("training.gradient_checkpointing=true",))
    join(fork(train_layout, *arguments, errors=tmp_path / "errors"), tmp_path / "errors")
    name = "0-joint-iter2.safetensors"
    assert not differing(load_file(tmp_path / name), load_file(joined / name))


def train_on_shards(recipe, folder, dataset):
    pretrain(load_recipe(recipe, [f"output_dir={folder}", f"data.dataset={dataset}", "training.deadline=60"]))


@pytest.mark.parametrize("shards", [5, 1])
def test_shards_without_clips_hold_up_no_process(tmp_path, tiny_recipe, shards):
    """Three clips: of five shards two are empty; of one shard the processes take turns."""
    dataset = write_parquet(tmp_path / "set", [flac(clip(i)) for i in range(3)], shards=shards)
    errors, folder = tmp_path / "errors", tmp_path / "run"
    join(fork(train_on_shards, tiny_recipe, folder, dataset, errors=errors, ranks=2), errors)
    assert [record["total_step"] for record in records(folder)] == list(range(1, 13))


def train_and_go(recipe, folder, way):
    """Two processes; the second one is gone after three steps: it raises, dies or hangs."""
    take = SameClips.__next__

    def take_three(clips):
        if os.environ["RANK"] == "1" and clips.calls == 3:
            if way == "raises":
                raise ValueError("reader 1 of 2 finds no example")
            time.sleep(10 if way == "hangs" else 0)
            os._exit(9)
        return take(clips)

    SameClips.__next__ = take_three  # in this forked process alone
    train_layout(recipe, folder, [[4], [4]], ("training.deadline=4",))


@pytest.mark.parametrize("way", ["raises", "dies", "hangs"])
def test_no_process_waits_for_ever(tmp_path, tiny_recipe, way):
    start = time.monotonic()
    errors = tmp_path / "errors"
    processes = fork(train_and_go, tiny_recipe, tmp_path, way, errors=errors, ranks=2)
    join(processes, errors, exitcode=None, timeout=60)
    assert processes[0].exitcode == 1 and time.monotonic() - start < 60
    text = errors.read_text()
    assert "LostProcessError: another process ended, or did not get here in deadline=4 seconds" in text
    assert ("reader 1 of 2 finds no example" in text) is (way == "raises")


def train_and_overflow(recipe, folder, train, *arguments):
    """Two processes; what one of them gives to the quantizer in the third step is not finite."""
    project, take, taken = BridleTokenizer.project, engine.forward_backward, []

    def overflow(*arguments):
        taken.append(arguments)
        if (os.environ["RANK"], len(taken)) != ("1", 3):
            return take(*arguments)
        with mock.patch.object(BridleTokenizer, "project", lambda *inputs, **named: project(*inputs, **named) * inf):
            return take(*arguments)

    engine.forward_backward = overflow  # in this forked process alone
    train(recipe, folder, *arguments)


@pytest.mark.parametrize("way", ["stops", "skips"])
def test_what_overflows_in_one_process_stops_all(tmp_path, tiny_recipe, way):
    errors = tmp_path / "errors"
    overrides = ("phases=[{kind: encoder, steps: 4}]", f"training.skip_bad_steps={int(way == 'skips')}")
    arguments = (tiny_recipe, tmp_path, train_layout, [[2, 2], [2, 2]], overrides)
    processes = fork(train_and_overflow, *arguments, errors=errors, ranks=2)
    join(processes, errors, exitcode=int(way == "stops"), timeout=60)
    folder = tmp_path / "run" / "failure" / "phase-00-step-00000002"
    files = {f"rank-{rank}.{kind}" for rank in (0, 1) for kind in ("json", "safetensors")}
    assert files < {path.name for path in folder.iterdir()}
    said = errors.read_text()
    if way == "stops":
        assert said.count("FloatingPointError: step 3 of encoder-iter1: the loss is nan") == 2
        assert f"`bridle replay {folder}`" in said
    else:
        assert records(tmp_path / "run")[-1]["steps_skipped"] == 1
        assert not differing(*(load_file(tmp_path / f"{rank}-encoder-iter1.safetensors") for rank in (0, 1)))
    for rank in (0, 1):
        losses, _ = replay(folder, rank)
        assert isfinite(losses["loss"])  # the overflow is of this test, not of the batch
