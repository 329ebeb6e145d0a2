import gc
import json
import logging
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sound_files import clip, flac, write_audiofolder, write_parquet

from bridle_hf.data import DataArguments, UnusableDataError, build_loader, streaming
from bridle_hf.data.source import Source

PLAIN = {"roll": False, "gain": False}


def take(loader, count: int) -> list[dict]:
    return [next(loader) for _ in range(count)]


def same(batches: list[dict], others: list[dict]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(batches, others, strict=True)
    )


@pytest.fixture(params=["parquet", "folder", "cache"])
def source(request, parquet_folder, audio_folder, tmp_path) -> dict:
    """Four shards, one shard, and the feature cache of either."""
    if request.param == "cache":
        return {"dataset": parquet_folder, "cache": True, "cache_dir": str(tmp_path)}
    return {"dataset": parquet_folder if request.param == "parquet" else audio_folder}


def test_batches(parquet_folder, extractor):
    batch = next(build_loader(DataArguments(parquet_folder), extractor, batch_size=5, seed=0))
    assert batch["input_values"].shape == (5, 32, 32) and batch["input_values"].dtype == torch.float32
    assert batch["attention_mask"].shape == (5, 32) and batch["attention_mask"].dtype == torch.int64
    frames = 1 + (16000 // 3 - 400) // 160
    assert (batch["attention_mask"].sum(1) == frames).all()
    assert (batch["input_values"][:, frames:] == 0).all() and (batch["input_values"][:, :frames] != 0).all()
    assert set(batch) == {"input_values", "attention_mask"}


def test_each_epoch_is_a_new_permutation(source, extractor, identify):
    data = DataArguments(**source, shuffle_buffer=10, **PLAIN)
    loader = build_loader(data, extractor, batch_size=4, seed=0)
    epochs = [[index for batch in take(loader, 6) for index in identify(batch)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(24))
    again = build_loader(data, extractor, batch_size=4, seed=0)
    assert [index for batch in take(again, 6) for index in identify(batch)] == epochs[0]
    other = build_loader(data, extractor, batch_size=4, seed=1)
    assert [index for batch in take(other, 6) for index in identify(batch)] != epochs[0]


@pytest.mark.parametrize("cache", [False, True])
def test_a_folder_is_shuffled_as_a_whole_however_small_the_buffer(audio_folder, extractor, identify, cache, tmp_path):
    data = DataArguments(audio_folder, shuffle_buffer=4, cache=cache, cache_dir=str(tmp_path), **PLAIN)
    half = identify(next(build_loader(data, extractor, batch_size=12, seed=0)))
    assert len(set(half)) == 12 and max(half) > 17  # blocks of 4 would be the first 12
    ordered = replace(data, shuffle_buffer=1)
    assert identify(next(build_loader(ordered, extractor, batch_size=24, seed=0))) == list(range(24))


def test_a_table_of_paths_is_shuffled_as_a_whole(audio_folder, extractor, identify, tmp_path):
    lines = [f"{audio_folder}/train/clip-{i}.flac,{i // 12}" for i in range(24)]
    (tmp_path / "sounds.csv").write_text("\n".join(["audio,half", *lines]))
    data = DataArguments(str(tmp_path), shuffle_buffer=4, exclude={"half": [0]}, **PLAIN)
    loader = build_loader(data, extractor, batch_size=12, seed=0)
    first, second = (identify(batch) for batch in take(loader, 2))
    assert sorted(first) == sorted(second) == list(range(12, 24)) and first != second
    assert max(first[:4]) > 15  # the first block would be 12 to 15


def test_other_files_are_another_layout(tmp_path, extractor):
    def loader():
        data = DataArguments(str(tmp_path / "set"), shuffle_buffer=2, **PLAIN)
        return build_loader(data, extractor, batch_size=1, seed=0)

    write_audiofolder(tmp_path / "set", [flac(clip(i)) for i in range(4)])
    state = loader().state_dict()
    assert not loader().differs(state)
    for path in (tmp_path / "set").glob("train/*"):
        path.write_bytes(path.read_bytes().replace(b"clip-3", b"clip-x"))
    (tmp_path / "set" / "train" / "clip-3.flac").rename(tmp_path / "set" / "train" / "clip-x.flac")
    assert re.fullmatch("rows=4 clips [0-9a-f]{16}, now 4 clips [0-9a-f]{16}", loader().differs(state))


def test_whole_sets_honour_exclude_and_are_cropped_anew_each_epoch(parquet_folder, extractor, identify, tmp_path):
    data = {"cache": True, "cache_dir": str(tmp_path), "shuffle_buffer": 4, **PLAIN}
    without = DataArguments(parquet_folder, exclude={"fold": [1], "index": [0, 3]}, **data)
    loader = build_loader(without, extractor, batch_size=14, seed=0)
    assert sorted(identify(next(loader))) == [i for i in range(24) if i % 3 != 1 and i not in (0, 3)]
    sweep = np.sin(2 * np.pi * 3000 * (np.arange(16000) / 16000) ** 2).astype("float32")
    long = DataArguments(write_audiofolder(tmp_path / "long", [flac(sweep)] * 3), shuffle_buffer=2, **PLAIN)
    batches = take(build_loader(long, extractor, batch_size=3, seed=0), 4)
    assert len({values.numpy().tobytes() for batch in batches for values in batch["input_values"]}) > 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact(source, num_workers, extractor):
    # 7 batches of 5 out of 24 clips: stops lie inside a block, in a later epoch, and between two workers' turns.
    data = DataArguments(**source, shuffle_buffer=7, num_workers=num_workers, frequency_mask=0.3, time_mask=0.3)

    def fresh():
        return build_loader(data, extractor, batch_size=5, seed=3)

    reference = fresh()
    states, batches = [json.loads(json.dumps(reference.state_dict()))], []
    for _ in range(12):
        batches.append(next(reference))
        states.append(json.loads(json.dumps(reference.state_dict())))
    assert not same(batches[:5], batches[5:10])
    for stop in (0, 1, 7):
        resumed = fresh()
        resumed.load_state_dict(states[stop])
        assert same(take(resumed, 2), batches[stop : stop + 2])
        twice = fresh()
        twice.load_state_dict(resumed.state_dict())
        assert same(take(twice, 3), batches[stop + 2 : stop + 5])


@pytest.mark.parametrize("shuffle_buffer", [5, 1000])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_are_disjoint_and_complete(source, num_workers, shuffle_buffer, extractor, identify):
    data = DataArguments(**source, num_workers=num_workers, shuffle_buffer=shuffle_buffer, **PLAIN)
    for epoch_starts in (0, 12):
        seen = []
        for rank in range(2):
            loader = build_loader(data, extractor, batch_size=1, seed=0, rank=rank, world_size=2)
            seen += [index for batch in take(loader, epoch_starts + 12)[epoch_starts:] for index in identify(batch)]
        assert sorted(seen) == list(range(24))


@pytest.mark.parametrize("readers", [5, 8, 11])
def test_readers_that_share_a_shard_read_no_other(parquet_folder, extractor, identify, readers, monkeypatch):
    """4 shards of 6 clips: nothing is read by more than those who share it, and every clip is used once an epoch."""
    examples, read, seen = Source.examples, [], []
    monkeypatch.setattr(Source, "examples", lambda source, shard: read.append(shard) or examples(source, shard))
    for rank in range(readers):
        read.clear()
        data = DataArguments(parquet_folder, shuffle_buffer=100, **PLAIN)
        loader = build_loader(data, extractor, batch_size=1, seed=0, rank=rank, world_size=readers)
        for batch in iter(loader.__next__, None):
            if len(set(read)) > 1 or len(read) > 1:  # the next epoch's
                break
            seen += identify(batch)
    assert sorted(seen) == list(range(24))


def test_single_examples_change_hands_between_epochs(audio_folder, extractor, identify):
    loader = build_loader(DataArguments(audio_folder, **PLAIN), extractor, batch_size=12, seed=0, world_size=2)
    first, second = (set(identify(batch)) for batch in take(loader, 2))
    assert first != second


def test_exclude_leaves_out(parquet_folder, extractor, identify):
    data = DataArguments(parquet_folder, exclude={"fold": [1], "index": [0, 3]}, **PLAIN)
    loader = build_loader(data, extractor, batch_size=14, seed=0)
    assert sorted(identify(next(loader))) == [i for i in range(24) if i % 3 != 1 and i not in (0, 3)]


def test_long_clips_are_cropped_at_random(tmp_path, extractor):
    time = np.arange(16000) / 16000
    sweep = 0.3 * np.sin(2 * np.pi * 3000 * time**2) + 0.01 * np.random.default_rng(0).standard_normal(16000)
    dataset = write_parquet(tmp_path / "long", [flac(sweep.astype("float32"))], shards=1)
    batch = next(build_loader(DataArguments(dataset, **PLAIN), extractor, batch_size=8, seed=0))
    whole = extractor(sweep, sampling_rate=16000, max_length=112)["input_values"][0][:98]
    starts = [
        min(range(98 - 32 + 1), key=lambda start: np.abs(whole[start : start + 32] - values).mean())
        for values in batch["input_values"].numpy()
    ]
    assert batch["attention_mask"].all() and len(set(starts)) > 3
    for start, values in zip(starts, batch["input_values"].numpy(), strict=True):
        assert np.abs(whole[start : start + 32] - values).mean() < 0.02


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_clips_are_skipped_counted_and_named(tmp_path, num_workers, extractor, identify, caplog):
    clips = [flac(clip(i)) for i in range(24)]
    clips[5], clips[20] = b"not audio", flac(clip(20)[:100])
    dataset = write_parquet(tmp_path / "bad", clips, shards=2)
    data = DataArguments(dataset, num_workers=num_workers, **PLAIN)
    loader = build_loader(data, extractor, batch_size=11, seed=0)
    with caplog.at_level(logging.WARNING):
        seen = [index for batch in take(loader, 4) for index in identify(batch)]
    assert set(seen) == set(range(24)) - {5, 20}
    assert set(loader.skipped) == {"clip-5.flac (shard 0, example 5)", "clip-20.flac (shard 1, example 8)"}
    assert "too short" in loader.skipped["clip-20.flac (shard 1, example 8)"] and "clip-5.flac" in caplog.text
    resumed = build_loader(data, extractor, batch_size=11, seed=0)
    resumed.load_state_dict(loader.state_dict())
    assert resumed.skipped == loader.skipped


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_clips_stop_the_run(tmp_path, num_workers, extractor):
    clips = [flac(clip(i)) for i in range(4)] + [b"not audio"]
    dataset = write_audiofolder(tmp_path / "bad", clips)
    data = DataArguments(dataset, max_bad_share=0.1, num_workers=num_workers)
    loader = build_loader(data, extractor, batch_size=4, seed=0)
    with pytest.raises(RuntimeError, match=r"11 of \d+ clips.*max_bad_share=0.1.*clip-4.flac: cannot be decoded"):
        take(loader, 100)


@pytest.mark.parametrize("argument", ["input_column", "label_column", "fold_column"])
def test_missing_column_is_named_with_those_there_are(parquet_folder, extractor, argument):
    data = DataArguments(parquet_folder, **{argument: "sound"})
    with pytest.raises(ValueError, match=rf"data.{argument}.*no column 'sound'.*\['audio', 'index', 'fold', 'class'\]"):
        build_loader(data, extractor, batch_size=1, seed=0)


def test_missing_exclude_column(parquet_folder, extractor):
    with pytest.raises(ValueError, match="data.exclude.split.*no column 'split'"):
        build_loader(DataArguments(parquet_folder, exclude={"split": [1]}), extractor, batch_size=1, seed=0)


def test_nothing_left_is_an_error(parquet_folder, extractor):
    data = DataArguments(parquet_folder, exclude={"fold": [0, 1, 2]})
    with pytest.raises(UnusableDataError, match="finds no example in .*exclude={'fold': "):
        next(build_loader(data, extractor, batch_size=1, seed=0))


def test_no_dataset_is_an_error(extractor):
    with pytest.raises(ValueError, match="data.dataset is empty"):
        build_loader(DataArguments(), extractor, batch_size=1, seed=0)


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"seed": 1}, {"world_size": 2}])
def test_a_position_of_another_layout_is_refused(parquet_folder, extractor, change):
    arguments = {"batch_size": 2, "seed": 0, "world_size": 1}
    state = build_loader(DataArguments(parquet_folder), extractor, **arguments).state_dict()
    (key,) = change
    with pytest.raises(ValueError, match=f"of another loader: {key}={arguments[key]}, now {change[key]}"):
        build_loader(DataArguments(parquet_folder), extractor, **arguments | change).load_state_dict(state)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"shuffle_buffer": 0}, "data.shuffle_buffer must be at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers must be auto, or from 0 to 512, got -1"),
        ({"num_workers": 1_000_000}, "data.num_workers must be auto, or from 0 to 512, got 1000000"),
        ({"max_bad_share": 2}, "data.max_bad_share must be between 0 and 1"),
        ({"exclude": {"fold": 1}}, "data.exclude.fold must be a list"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        DataArguments("somewhere", **setting)


def test_a_signal_to_the_group_spares_the_workers(parquet_folder, extractor):
    before = set(multiprocessing.active_children())
    loader = build_loader(DataArguments(parquet_folder, num_workers=1), extractor, batch_size=4, seed=0)
    next(loader)
    (worker,) = set(multiprocessing.active_children()) - before
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    sent = f"import os; os.kill({worker.pid}, {signal.SIGTERM})"  # as a service manager does, to every process
    subprocess.run([sys.executable, "-c", sent], check=True)
    take(loader, 20)  # more than what it had read ahead
    worker.terminate()  # what the run does at its end
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.parametrize("cache", [False, True])
def test_workers_need_not_be_forked(parquet_folder, extractor, tmp_path, cache):
    data = DataArguments(parquet_folder, cache=cache, cache_dir=str(tmp_path))
    loader = build_loader(data, extractor, batch_size=4, seed=0)
    stream = pickle.loads(pickle.dumps(loader._loader.dataset))  # what a worker is given where processes are spawned
    batch, expected = next(iter(stream)), next(loader)
    assert batch.pop("skipped") == [] and same([batch], [expected])


@pytest.mark.parametrize("rows", [False, True])
def test_fewer_clips_than_readers_are_enough(tmp_path, extractor, rows):
    """Each epoch has one clip for one reader of seven: most readers have none for many epochs in a row."""
    dataset = write_parquet(tmp_path, [flac(clip(0))], shards=1)
    data = DataArguments(dataset, cache=rows, cache_dir=str(tmp_path / "cache"), **PLAIN)
    loaders = [build_loader(data, extractor, batch_size=1, seed=0, rank=rank, world_size=7) for rank in range(7)]
    for _ in range(12):
        assert all(len(next(loader)["input_values"]) == 1 for loader in loaders)


def test_one_shard_that_holds_all_is_found_among_empty_ones(tmp_path, extractor):
    """A reader that has one shard of 20 an epoch."""
    dataset = write_parquet(tmp_path, [flac(clip(i)) for i in range(3)], shards=20)
    for rank in (0, 19):
        loader = build_loader(
            DataArguments(dataset, **PLAIN), extractor, batch_size=2, seed=1, rank=rank, world_size=20
        )
        assert len(take(loader, 5)) == 5


@pytest.fixture
def worker_of():
    """The loader's only worker, which has begun to read."""

    def find(loader):
        before = set(multiprocessing.active_children())
        next(loader)
        (worker,) = set(multiprocessing.active_children()) - before
        return worker

    return find


@pytest.mark.parametrize("announced", [False, True])
def test_a_stopped_worker_ends_the_run_at_the_deadline(parquet_folder, extractor, worker_of, announced, monkeypatch):
    monkeypatch.setattr(streaming, "WATCH_SECONDS", 1)
    loader = build_loader(DataArguments(parquet_folder, num_workers=1), extractor, batch_size=4, seed=0, deadline=2)
    worker = worker_of(loader)
    time.sleep(1.5 if announced else 0)  # until it has told of batches, which it hands over when asked
    os.kill(worker.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the loader workers gave no batch in deadline=2 seconds"):
        take(loader, 9)  # more than what it had read ahead
    worker.join(5)  # it was killed; a busy machine takes its time
    assert time.monotonic() - start < 10 and not worker.is_alive()


def fork_and_vanish(folder, extractor, pids):
    """Dies by SIGKILL when its worker was forked and has done nothing yet."""
    streaming.WATCH_SECONDS = 0.2
    waiting = streaming._obey_the_run_alone

    def late(worker):
        pids.send(os.getpid())
        while os.getppid() == multiprocessing.parent_process().pid:
            time.sleep(0.01)
        waiting(worker)

    with mock.patch.object(streaming, "_obey_the_run_alone", late):
        loader = build_loader(DataArguments(folder, num_workers=1), extractor, batch_size=4, seed=0)
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    next(loader)


def test_a_worker_of_a_run_that_died_as_it_forked_ends(parquet_folder, extractor):
    fork, (receive, send) = multiprocessing.get_context("fork"), multiprocessing.Pipe(duplex=False)
    run = fork.Process(target=fork_and_vanish, args=(parquet_folder, extractor, send))
    run.start()
    assert receive.poll(60)
    worker = receive.recv()
    run.join(60)
    assert run.exitcode == -signal.SIGKILL
    until = time.monotonic() + 20
    while running(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(worker)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Decoder:
    """Says where it is finalised."""

    def __init__(self, path):
        self.path, self.itself = path, self  # a cycle, which the garbage collector alone frees

    def __del__(self):
        self.path.write_text(str(os.getpid()))


def collect_as_a_worker(path):
    streaming._obey_the_run_alone(0)
    gc.collect()
    path.with_name("done").touch()


def test_a_worker_finalises_nothing_of_the_run(tmp_path):
    gc.disable()
    try:
        Decoder(tmp_path / "finalised")
        worker = multiprocessing.get_context("fork").Process(target=collect_as_a_worker, args=(tmp_path / "finalised",))
        worker.start()
        worker.join(60)
        assert (tmp_path / "done").exists() and not (tmp_path / "finalised").exists()
        gc.collect()
        assert (tmp_path / "finalised").read_text() == str(os.getpid())
    finally:
        gc.enable()
