"""One folder with all that people keep beside their sounds: what a run reads of it, leaves out and why."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from runs import records, unused_port
from sound_files import RATE, clip, flac, wav

from bridle_hf import BridleFeatureExtractor
from bridle_hf.data import DataArguments, build_loader, load_examples

# Name in the tree -> its content, and what becomes of it.
READ, BAD, LEFT = "read", "named when it is decoded", "left out, counted and named at the start"
TREE = {
    "dog/16k.wav": (wav(clip(0)), READ),
    "dog/44k.flac": (flac(np.repeat(clip(1), 3), 3 * RATE), READ),
    "dog/24 bit.WAV": (wav(clip(2), subtype="PCM_24"), READ),
    "dog/stereo.wav": (wav(np.stack([clip(3), clip(4)], 1)), READ),
    "rain [a]/take 1::2.wav": (wav(clip(5)), READ),
    "rain [a]/50% #1?.wav": (wav(clip(6), rate=RATE), READ),
    "rain [a]/e\u0301\n.ogg": (flac(clip(7)), READ),
    "it's * {x,y}/a.wav": (wav(clip(8)), READ),
    "dog/cut.wav": (wav(clip(9))[:40], BAD),
    "dog/empty.flac": (b"", BAD),
    "rain [a]/a page.mp3": (b"<html>404</html>", BAD),
    "rain [a]/nan.wav": (wav(np.full(RATE, np.nan), subtype="FLOAT"), BAD),
    "rain [a]/header only.wav": (wav(clip(10)[:0]), BAD),
    "train.log": (b"epoch 1", LEFT),
    "tests/test_dataset.py": (b"assert True", LEFT),
    "meta/train.csv": (b"file,label\n0.wav,x\n", LEFT),
    "dog/16k.json": (b"{}", LEFT),
    "dog/44k.json": (b"{}", LEFT),
    "dog/cover.jpg": (b"no picture", LEFT),
    "README.md": (b"# A collection", None),
    "dog/.16k.wav": (wav(clip(11)), LEFT),
    ".trash/old.wav": (wav(clip(11)), LEFT),
    "__pycache__/x.wav": (wav(clip(11)), LEFT),
}
ARCHIVES = {
    "more.zip": {"bird/zipped.wav": READ, "bird/broken.wav": BAD, "__MACOSX/bird/._zipped.wav": LEFT, "note.txt": LEFT},
    "broken.zip": None,
    "more.tar": {"x/1.wav": LEFT},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The folder, with links into another one, out of nowhere and in circles."""
    top = tmp_path_factory.mktemp("tree")
    folder, disk = top / "my [set]", top / "disk"
    for name, (content, _) in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for name in ARCHIVES["more.zip"]:
            archive.writestr(name, b"no sound" if "broken" in name else wav(clip(12)))
    (folder / "broken.zip").write_bytes(b"PK\x03\x04")
    with tarfile.open(folder / "more.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x/1.wav"), io.BytesIO())
    for name in ("cat/linked.wav", "cat/again.wav"):
        (disk / name).parent.mkdir(parents=True, exist_ok=True)
        (disk / name).write_bytes(wav(clip(13)))
    (folder / "cat").symlink_to(disk / "cat")
    (folder / "kitten").symlink_to(disk / "cat")
    (folder / "dog" / "up").symlink_to("..")
    (folder / "dog" / "lost.wav").symlink_to("nowhere.wav")
    os.mkfifo(folder / "dog" / "pipe.wav")
    with open(os.fsencode(folder) + b"/dog/caf\xe9.wav", "wb") as file:
        file.write(wav(clip(14)))
    return folder


def outcome(tree, kind):
    """The names of the clips that are read or bad, as messages call them."""
    names = {str(tree / name) for name, (_, fate) in TREE.items() if fate == kind}
    names |= {f"zip://{name}::{tree}/more.zip" for name, fate in ARCHIVES["more.zip"].items() if fate == kind}
    return names | ({f"{tree}/cat/linked.wav", f"{tree}/cat/again.wav"} if kind == READ else set())


LINE = (
    "17 of 33 files are read (split train); left out: 2 .json (dog/16k.json, dog/44k.json); 1 .jpg (dog/cover.jpg); "
    "1 .csv (meta/train.csv); 1 .tar (more.tar); 1 .py (tests/test_dataset.py); 1 of 1 other types; "
    "3 hidden (.trash/, __pycache__/, dog/.16k.wav); 1 a name that is no UTF-8 (dog/caf\\udce9.wav); "
    "1 no regular file (dog/pipe.wav); 2 links to what is read already (kitten, dog/up); "
    "1 links to nothing (dog/lost.wav); 1 cannot be read (File is not a zip file) (broken.zip); "
    "1 hidden in archives (more.zip/__MACOSX/bird/._zipped.wav); 1 of other types in archives (more.zip/note.txt)"
)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_clip_is_read_or_named_once_an_epoch(tree, world_size, num_workers, monkeypatch):
    extractor = BridleFeatureExtractor(num_mel_bins=32, max_length=32)
    data = DataArguments(str(tree), max_bad_share=1.0, num_workers=num_workers, roll=False, gain=False)
    known = load_examples(data, extractor)
    assert sorted(known.clip_names) == sorted(outcome(tree, READ))
    read, skipped = [], set()
    for rank in range(world_size):
        loader = build_loader(data, extractor, batch_size=1, seed=0, rank=rank, world_size=world_size)
        for _ in range(40):
            read.append(next(loader)["input_values"].numpy())
        skipped |= loader.skipped.keys()
    assert skipped == outcome(tree, BAD)
    expected = np.stack([known.batch([row])["input_values"][0] for row in range(len(known))])
    nearest = {int(np.abs(expected - each).mean(axis=(1, 2)).argmin()) for each in read}
    same = {tuple(np.flatnonzero([np.array_equal(a, b) for b in expected])) for a in expected}  # two copies of a file
    assert {rows for rows in same if nearest.intersection(rows)} == same


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_says_once_what_it_reads_and_leaves_out(tree, ranks, tmp_path, tiny_recipe, repository):
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--master_port", str(unused_port()), "--nproc_per_node", str(ranks)]
    command += [str(repository / "examples" / "pretrain.py"), "--recipe", str(tiny_recipe)]
    command += [f"output_dir={tmp_path / 'run'}", f'data.dataset="{tree}"', "data.max_bad_share=1.0"]
    environment = os.environ | {"PYTHONPATH": str(repository / "src"), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"my [set]: {LINE}\n") == 1, done.stderr
    named = [name for line in records(tmp_path / "run") for name in line.get("skipped", {})]
    assert len(named) == len(set(named)) and set(named) == outcome(tree, BAD)
