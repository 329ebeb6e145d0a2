"""Endless training batches of a dataset, with a position that can be saved and restored exactly."""

import gc
import hashlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from .arguments import DataArguments
from .bad_share import JUDGED_OVER, check_bad_shards, check_bad_share, is_short
from .cache import open_shuffled
from .media import BadClipError, UnusableDataError
from .modalities import modality_of
from .source import MARK, BadShardError, Source, say_skipped

WATCH_SECONDS = 5  # between two looks of a worker at whether its run is still there
SHARDS, SPLIT, BLOCK, BATCH, CLIP, ROWS = range(6)  # what a random generator is for


class ClipStream(IterableDataset):
    """Endless batches of one consumer: a worker of a rank.

    If the source is indexable (`source.rows`), an epoch is one global permutation; consumer c of C takes items c,
    c + C, c + 2C, ...

    Otherwise the shards of an epoch are split between the consumers; if there are too few shards, consumers share one
    and split its examples. A consumer reads a block of `shuffle_buffer` raw examples, permutes it and goes through it.

    Every random number is drawn from (seed, position), so the position is a few integers: where the block starts in the
    dataset, and how many examples of it, or of the permutation, are done. A restored stream reads its block again and
    goes on inside it.
    """

    def __init__(
        self,
        source: Source,
        collate: Callable,
        data: DataArguments,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
    ):
        self.source, self.collate, self.data = source, collate, data
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.position = {"epoch": 0, "start": (0, 0, 0), "block": 0, "index": 0, "batch": 0, "seen": 0, "bad": 0}
        self.bad_shards: dict[int, str] = {}
        self.empty_shards: set[int] = set()

    def state_dict(self) -> dict:
        return dict(self.position)

    def load_state_dict(self, state: dict) -> None:
        self.position = dict(state)

    def __iter__(self) -> Iterator[dict]:
        consumer, consumers = self._share()
        at, features, skipped, named = self.position, [], [], set()
        turns = self._shuffled_blocks if self.source.rows is None else self._permuted_rows
        rows = self.source.rows
        epoch = (self.source.count or 0 if rows is None else len(rows)) // consumers  # its samples, 0 if not known
        for example, rng in turns(consumer, consumers):
            at["seen"] += 1
            try:
                features.append(self.source.featurize(example, rng))
            except BadClipError as error:
                at["bad"] += 1
                skipped.append((example[MARK], str(error)))
                at["short"] = at.get("short", 0) + is_short(error)  # positions of older runs lack it
                bad, share = at["bad"] - at["short"], self.data.max_bad_share
                whole = epoch and -(-at["seen"] // epoch) * epoch
                check_bad_share(bad, at["seen"], share, example[MARK], error, self.source.hint, whole)
                # or a share of 1 would look for a usable one for ever
                if at["bad"] == at["seen"] >= JUDGED_OVER[0] and at["epoch"] > 1:
                    raise UnusableDataError(
                        f"no usable example in {self.source.description}; the last one, {example[MARK]}, "
                        f"{error}.{self.source.hint}"
                    ) from error
            if len(features) == self.batch_size:
                skipped += [(f"shard {n}", why) for n, why in self.bad_shards.items() if n not in named]
                named |= self.bad_shards.keys()
                batch = self.collate(features, self._rng(BATCH, at["batch"], consumer))
                at["batch"] += 1
                yield {key: torch.from_numpy(value) for key, value in batch.items()} | {"skipped": skipped}
                features, skipped = [], []

    def _permuted_rows(self, consumer: int, consumers: int) -> Iterator[tuple[dict, np.random.Generator]]:
        """Yield `(example, rng)` endlessly from the current position, which is advanced before each yield."""
        at, rows = self.position, self.source.rows
        while len(rows):
            # Of fewer rows than consumers each epoch gives one to some of them, in turn.
            mine = self._rng(ROWS, at["epoch"]).permutation(max(len(rows), consumers))[consumer::consumers]
            mine = mine[mine < len(rows)]
            for number in mine[at["index"] :].tolist():
                at["index"] += 1
                yield self.source.named(rows[number], f"row {number}"), self._rng(CLIP, at["epoch"], number)
            at.update(epoch=at["epoch"] + 1, index=0)
        raise self._nothing_for(consumer, consumers)

    def _shuffled_blocks(self, consumer: int, consumers: int) -> Iterator[tuple[dict, np.random.Generator]]:
        """`_permuted_rows` for examples that can only be read in order."""
        at = self.position
        for block in self._blocks(consumer, consumers):
            order = self._rng(BLOCK, at["epoch"], at["block"], consumer).permutation(len(block))
            for index in order[at["index"] :]:
                at["index"] += 1
                yield block[index], self._rng(CLIP, at["epoch"], at["block"], consumer, at["index"])

    def _blocks(self, consumer: int, consumers: int) -> Iterator[list[dict]]:
        """Yield blocks of raw examples endlessly from the current position, which is advanced after each block."""
        at = self.position
        while len(self.empty_shards) < self.source.num_shards:
            examples = self._examples(at["epoch"], at["start"], consumer, consumers)
            while block := list(islice(examples, self.data.shuffle_buffer)):
                yield [example for _, example in block]
                at.update(start=block[-1][0], block=at["block"] + 1, index=0)
            at.update(epoch=at["epoch"] + 1, start=(0, 0, 0), block=0, index=0)
        raise self._nothing_for(consumer, consumers)

    def _nothing_for(self, consumer: int, consumers: int) -> UnusableDataError:
        return UnusableDataError(
            f"reader {consumer} of {consumers} finds no example in {self.source.description} "
            f"with exclude={self.source.exclude}, in any of its shards."
        )

    def _examples(self, epoch: int, start: tuple, consumer: int, consumers: int) -> Iterator[tuple[tuple, dict]]:
        """Yield `(position behind it, example)` for the raw examples that this consumer has of an epoch.

        A position is (shards done, examples read of the next one, examples so far that `exclude` keeps).
        """
        shards = self._rng(SHARDS, epoch).permutation(self.source.num_shards).tolist()
        # Consumer c has every C-th shard, or the c-th of S < C shards together with consumers c + S, c + 2 S, ...
        sharing, turn = len(range(consumer % len(shards), consumers, len(shards))), consumer // len(shards)
        shards = shards[consumer % len(shards) :: consumers]
        first, offset, kept = start
        for done, shard in enumerate(shards[first:], first):
            before = offset, kept
            for example in self._read(shard, offset):
                offset += 1
                if not self.source.keeps(example):
                    continue
                # Of each `sharing` examples in a row everyone takes one, drawn anew each epoch.
                if sharing == 1 or self._turn(epoch, kept // sharing, sharing)[kept % sharing] == turn:
                    yield (done, offset, kept + 1), example
                kept += 1
            # Where readers share a shard, it may hold examples and none for this one in this epoch.
            (self.empty_shards.add if before == (0, kept) else self.empty_shards.discard)(shard)
            offset = 0

    def _read(self, shard: int, start: int) -> Iterator[dict]:
        """The examples of a shard; a shard that cannot be read any further ends early and counts as bad."""
        try:
            yield from self.source.read(shard, start)
        except BadShardError as error:
            self.bad_shards[shard] = str(error)
            check_bad_shards(len(self.bad_shards), self.source.num_shards, self.data.max_bad_share, error)

    def _turn(self, epoch: int, group: int, sharing: int) -> np.ndarray:
        return self._rng(SPLIT, epoch, group).permutation(sharing)

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *place])

    def _share(self) -> tuple[int, int]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        return self.rank * workers + index, self.world * workers


class ClipLoader:
    """An endless iterator of batches that knows its position.

    Yields what the modality's collator makes, such as `{"pixel_values": (B, 3, H, W) float32}`. After `k` calls of
    `next`, the state lets a new loader of the same arguments go on with batch `k + 1`, whatever the workers had read
    ahead.

    Args:
        deadline: seconds that the workers may take for a batch; 0 is without end.

    Attributes:
        skipped: mark (see `Source.named`) -> reason of every sample that could not be used so far, or when the cache
            was written.
    """

    def __init__(self, stream: ClipStream, num_workers: int, deadline: float = 0):
        with warnings.catch_warnings():  # torchdata 0.11 calls a function that torch 2.14 deprecates
            warnings.filterwarnings("ignore", message=".*set_vital")
            self._loader = StatefulDataLoader(
                stream,
                batch_size=None,
                num_workers=num_workers,
                worker_init_fn=_obey_the_run_alone,
                timeout=deadline if num_workers else 0,
            )
        self._batches, self._not_workers = None, []
        self._layout = {
            "batch_size": stream.batch_size,
            "seed": stream.seed,
            "world_size": stream.world,
            "rank": stream.rank,
            "num_workers": num_workers,
            "shuffle_buffer": stream.data.shuffle_buffer,
            "num_shards": stream.source.num_shards,
            "rows": None if stream.source.rows is None else _identity(stream.source),
            "dataset": stream.source.fingerprint if stream.source.given else None,
        }
        self.skipped: dict[str, str] = dict(stream.source.skipped)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self._batches is None:
            self._not_workers = multiprocessing.active_children()
            self._batches = iter(self._loader)
        with self._workers_in_time():
            batch = next(self._batches)
        for name, reason in batch.pop("skipped"):
            if name not in self.skipped:
                say_skipped(name, reason)
            self.skipped[name] = reason
        return batch

    @contextmanager
    def _workers_in_time(self) -> Iterator[None]:
        """Raise a `RuntimeError` where the workers take longer than the deadline, and what they say of the data as they
        said it: torch puts their traceback into the message.

        torch looks at the time while it waits for a batch, but not while it fetches one that a worker has announced:
        a worker that was stopped just then is ended, which ends the fetching.
        """
        late, seconds = threading.Event(), self._loader.timeout
        watch = threading.Timer(seconds + WATCH_SECONDS, lambda: (late.set(), self._end_workers()))
        watch.daemon = True
        if seconds:
            watch.start()
        try:
            yield
        except UnusableDataError as error:
            raise UnusableDataError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except (RuntimeError, OSError, EOFError) as error:
            if not late.is_set() and not str(error).startswith("DataLoader timed out"):
                raise
            self._end_workers()
            raise RuntimeError(
                f"the loader workers gave no batch in deadline={seconds:g} seconds: one of them was stopped or hangs "
                "in a read. Started again, the run goes on from its last checkpoint."
            ) from error
        finally:
            watch.cancel()

    def _end_workers(self) -> None:
        """End the workers whatever they do, or this process would wait for them when it ends."""
        for worker in set(multiprocessing.active_children()) - set(self._not_workers):
            with suppress(RuntimeError):  # by which torch tells of a killed worker, wherever the run is then
                worker.kill()
                worker.join(WATCH_SECONDS)

    def state_dict(self) -> dict:
        """Position of this process in the stream, to be saved per rank."""
        return {"layout": self._layout, "skipped": dict(self.skipped), "loader": self._loader.state_dict()}

    def differs(self, state: dict) -> str:
        """The arguments in which the loader of `state` differs, so that its position does not fit; empty if none."""
        before = {key: state["layout"].get(key) for key in self._layout}
        return ", ".join(f"{key}={before[key]}, now {now}" for key, now in self._layout.items() if before[key] != now)

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`.

        Raises:
            ValueError: the state of a loader that `differs`.
        """
        if differences := self.differs(state):
            raise ValueError(f"the saved position in the data is of another loader: {differences}.")
        self.skipped = dict(state["skipped"])
        self._batches = None
        self._loader.load_state_dict(state["loader"])


def _identity(source: Source) -> str:
    """Tells sets of samples apart by their names and their order; of a dataset in hand by its fingerprint."""
    rows, digest = source.rows, hashlib.sha256()
    if "clip_name" not in rows.column_names:
        return f"{len(rows)} rows {rows._fingerprint}"
    for part in rows.select_columns("clip_name").iter(batch_size=10_000):
        digest.update("\0".join(map(str, part["clip_name"])).encode(errors="surrogateescape"))
    return f"{len(rows)} clips {digest.hexdigest()[:16]}"


def _obey_the_run_alone(worker: int) -> None:
    """Shield a worker from signals that mean the run, which stops its workers once it has saved; end it with the run.

    They are sent to the process group (Ctrl-C, `timeout`) or to every process (service managers, batch systems). What
    the run left for the garbage collector is not finalised here: a video decoder would wait for threads of the run.
    """
    gc.freeze()
    os.setpgid(0, 0)
    signals = {signal.SIGTERM, signal.SIGINT} if hasattr(signal, "sigtimedwait") else set()  # not on macOS
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_end_with_the_run, args=(signals,), daemon=True).start()


def _end_with_the_run(signals: set[int]) -> None:
    """End this worker once the run says so or is gone. torch's own watch does not see a run that was killed just when
    it had forked: it remembers the parent that the worker has by then."""
    run = multiprocessing.parent_process()
    forkserver = multiprocessing.get_start_method() == "forkserver"  # which is the parent of workers then
    while run.is_alive() if forkserver else os.getppid() == run.pid:
        if not signals:
            time.sleep(WATCH_SECONDS)
        elif (got := signal.sigtimedwait(signals, WATCH_SECONDS)) and got.si_pid == run.pid:
            break
    os._exit(0)


def build_loader(
    data: DataArguments,
    processor,
    dataset=None,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    deadline: float = 0,
) -> ClipLoader:
    """Build the endless training loader of one process.

    Args:
        data: what to read and how.
        processor: a `BridleFeatureExtractor`, `BridleImageProcessor` or `BridleVideoProcessor`.
        dataset: a dataset in hand instead of `data.dataset`, see `open_source`.
        batch_size: samples in each batch of this process.
        seed: with the same seed and layout, the batches are the same bit for bit.
        rank, world_size: this process and how many there are; their examples are disjoint and together complete.
        deadline: seconds after which a batch that does not come from the workers is a `RuntimeError`; 0 for none.

    Raises:
        ValueError: for a missing column.
        UnusableDataError: the dataset is empty, or more of it cannot be used than `data.max_bad_share` allows.
    """
    collate = modality_of(processor).collator(data, processor)
    stream = ClipStream(open_shuffled(data, processor, dataset), collate, data, batch_size, seed, rank, world_size)
    return ClipLoader(stream, data.workers, deadline)
