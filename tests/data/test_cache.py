"""Caches that were damaged, copied or may only be read; what they lack; the user's own columns in them."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sound_files import clip, flac, write_parquet

from bridle_hf import BridleImageProcessor
from bridle_hf.data import DataArguments, audio, build_loader, cache, load_examples
from bridle_hf.data.packing import pack_clip, unpack_clip


@pytest.fixture
def data(parquet_folder, tmp_path, monkeypatch):
    """24 clips, to be kept in 6 files."""
    monkeypatch.setattr(cache, "CLIPS_PER_FILE", 4)
    return DataArguments(parquet_folder, cache=True, cache_dir=str(tmp_path / "cache"), label_column="index")


def folder_of(data) -> Path:
    (folder,) = (path for path in Path(data.cache_dir).iterdir() if path.is_dir())
    return folder


def same(examples, others) -> bool:
    assert examples.labels.tolist() == others.labels.tolist() and examples.clip_names == others.clip_names
    return all(np.array_equal(a, b) for a, b in zip(examples.clips, others.clips, strict=True))


@pytest.fixture
def decoded(monkeypatch):
    """The clips that were decoded."""
    decode, found = audio.decode_audio, []
    monkeypatch.setattr(audio, "decode_audio", lambda raw, *more: found.append(raw) or decode(raw, *more))
    return found


def rewritten(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip_in_the_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 8]) + content[middle + 8 :]


DAMAGES = {
    "00001.arrow cannot be read: No such file": lambda folder: (folder / "00001.arrow").unlink(),
    "00005.arrow has 0 bytes of": lambda folder: rewritten(folder / "00005.arrow", lambda _: b""),
    "00002.arrow has": lambda folder: rewritten(folder / "00002.arrow", lambda content: content[:-1]),
    "00000.arrow was changed": lambda folder: rewritten(folder / "00000.arrow", flip_in_the_middle),
    "manifest.json cannot be read": lambda folder: [path.unlink() for path in folder.iterdir()],
    "manifest.json cannot be read: JSON": lambda folder: rewritten(folder / "manifest.json", lambda c: c[:-9]),
    "manifest.json cannot be read: Key": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest.json cannot be read: Type": lambda folder: (folder / "manifest.json").write_text("null"),
    "manifest.json lists too few files": lambda folder: rewritten(
        folder / "manifest.json", lambda c: json.dumps(json.loads(c) | {"files": {}}).encode()
    ),
    "skipped.json cannot be read": lambda folder: (folder / "skipped.json").unlink(),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_cache_is_named_and_written_anew(problem, data, extractor, caplog):
    whole = load_examples(data, extractor)
    DAMAGES[problem](folder_of(data))
    assert same(load_examples(data, extractor), whole)
    (said,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert str(folder_of(data)) in said and problem in said
    caplog.clear()
    assert same(load_examples(data, extractor), whole) and "is damaged" not in caplog.text


UNFINISHED_DAMAGES = {
    "00000.arrow has": lambda folder: rewritten(folder / "00000.arrow", lambda content: content[: len(content) // 2]),
    "00000.arrow was changed": lambda folder: rewritten(folder / "00000.arrow", flip_in_the_middle),
    "00001.arrow cannot be read": lambda folder: (folder / "00001.arrow").unlink(),
    "progress.json cannot be read: JSON": lambda folder: rewritten(folder / "progress.json", lambda c: c[:-9]),
    "progress.json cannot be read: Type": lambda folder: (folder / "progress.json").write_text("[]"),
    "progress.json cannot be read: Key": lambda folder: (folder / "progress.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("problem", UNFINISHED_DAMAGES)
def test_a_damaged_unfinished_cache_is_named_and_written_anew(problem, data, extractor, caplog, monkeypatch, tmp_path):
    whole = load_examples(replace(data, cache_dir=str(tmp_path / "whole")), extractor)
    decode, decoded = audio.decode_audio, []

    def killed(raw, *more):
        decoded.append(raw)
        if len(decoded) == 15:
            raise KeyboardInterrupt
        return decode(raw, *more)

    monkeypatch.setattr(audio, "decode_audio", killed)
    with pytest.raises(KeyboardInterrupt):
        load_examples(data, extractor)
    monkeypatch.setattr(audio, "decode_audio", decode)
    UNFINISHED_DAMAGES[problem](folder_of(data))
    assert same(load_examples(data, extractor), whole)
    (said,) = [record.message for record in caplog.records if "unfinished cache" in record.message]
    assert problem in said and not folder_of(data).name.startswith(".")


def test_a_file_in_the_place_of_a_cache_gives_way(data, extractor):
    whole, folder = load_examples(data, extractor), folder_of(data)
    shutil.rmtree(folder)
    folder.write_text("mine")
    assert same(load_examples(data, extractor), whole) and folder.is_dir()


@pytest.mark.parametrize("in_memory", [True, False])
def test_features_beyond_half_precision_are_kept_as_they_are(in_memory, data, extractor):
    """65504 is the largest number of half precision: a deviation of 1e-5 makes log-mel values of 1e5 and more."""
    large = type(extractor).from_dict(extractor.to_dict() | {"std": 1e-5})
    kept, plain = (load_examples(replace(data, in_memory=in_memory, cache=cache), large) for cache in (True, False))
    assert max(abs(clip).max() for clip in plain.clips) > 65504
    assert same(kept, plain)
    loader = build_loader(replace(data, label_column=None), large, batch_size=4, seed=0)
    assert np.isfinite(next(loader)["input_values"].numpy()).all()


@pytest.mark.parametrize("in_memory", [True, False])
def test_features_in_8_bits_are_within_half_a_step(in_memory, data, extractor):
    plain = load_examples(replace(data, cache=False), extractor)
    data = replace(data, in_memory=in_memory)
    load_examples(data, extractor)  # in half precision, in a folder of its own
    kept = load_examples(replace(data, cache_dtype="int8"), extractor)
    tables = map(str, Path(data.cache_dir).glob("*/00000.arrow"))
    sizes = [len(datasets.Dataset.from_file(path)[0]["audio"]["features"]) for path in tables]
    assert sorted(sizes) == [plain.clips[0].size, 2 * plain.clips[0].size]
    for rounded, original in zip(kept.clips, plain.clips, strict=True):
        error = abs(rounded - original).max()
        assert rounded.dtype == np.float32 and rounded.shape == original.shape
        assert error <= 0.51 * (original.max() - original.min()) / 255 and error > 1e-4
    batch = next(build_loader(replace(data, cache_dtype="int8", label_column=None), extractor, batch_size=4, seed=0))
    assert np.isfinite(batch["input_values"].numpy()).all()


def test_a_clip_of_one_value_has_that_value_in_8_bits():
    clip = pack_clip(np.full((4, 8), -1.5, dtype=np.float32), eight_bits=True)
    np.testing.assert_array_equal(unpack_clip({"audio": clip}, column="audio"), np.full((4, 8), -1.5))


def test_what_is_damaged_between_two_starts_changes_no_batch(data, extractor):
    """Clips lie in memory-mapped files, and the order of the clips follows from their names alone."""

    def loader():
        return build_loader(replace(data, shuffle_buffer=8, label_column=None), extractor, batch_size=4, seed=0)

    def drawn(of, count):
        return [next(of)["input_values"].numpy() for _ in range(count)]

    expected = drawn(loader(), 9)
    for damage in (shutil.rmtree, DAMAGES["00001.arrow cannot be read: No such file"]):
        first = loader()
        found, state = drawn(first, 5), first.state_dict()
        damage(folder_of(data))
        second = loader()
        second.load_state_dict(state)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found + drawn(second, 4), strict=True))


def test_a_copy_of_a_cache_is_a_cache(data, extractor, tmp_path, decoded):
    whole = load_examples(data, extractor)
    shutil.copytree(data.cache_dir, tmp_path / "copy", copy_function=shutil.copyfile)  # times are those of the copy
    copied = replace(data, cache_dir=str(tmp_path / "copy"))
    decoded.clear()
    assert same(load_examples(copied, extractor), whole) and not decoded
    for name, (_, time, _) in json.loads((folder_of(copied) / "manifest.json").read_text())["files"].items():
        assert (folder_of(copied) / name).stat().st_mtime_ns == time  # the next start need not read it


def test_users_with_folders_of_their_own_share_a_cache(data, extractor, tmp_path, decoded, monkeypatch):
    whole = load_examples(data, extractor)
    decoded.clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "of another user")
    assert same(load_examples(data, extractor), whole) and not decoded


def test_a_folder_of_caches_may_have_any_name(data, extractor, tmp_path):
    names = ["plain", "c[1] x", "c*x", "cax", "a?b", "{a,b}", "#1 %20"]
    for name in names:
        data = replace(data, cache_dir=str(tmp_path / name))
        assert load_examples(data, extractor).labels.tolist() == list(range(24))


@pytest.fixture
def read_only(monkeypatch):
    """Nobody may write to a cache from now on."""

    def begin():
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cache, "FileLock", refuse)
        monkeypatch.setattr(cache.os, "utime", refuse)

    return begin


def test_a_whole_cache_that_one_may_only_read_is_read(data, extractor, read_only):
    whole = load_examples(data, extractor)
    os.utime(folder_of(data) / "00000.arrow", (0, 0))
    read_only()
    assert same(load_examples(data, extractor), whole)
    assert build_loader(data, extractor, batch_size=2, seed=0)


def test_a_place_that_one_may_not_write_to_is_named(data, extractor, read_only, tmp_path):
    load_examples(data, extractor)
    read_only()
    with pytest.raises(ValueError, match=r"^data.cache_dir is '.*new', where nothing can be written \(Permission den"):
        load_examples(replace(data, cache_dir=str(tmp_path / "new")), extractor)
    (folder_of(data) / "00003.arrow").unlink()
    with pytest.raises(ValueError, match="; the cache .* cannot be used: 00003.arrow cannot be read"):
        load_examples(data, extractor)


def with_bad_clips(folder: Path, bad: list[int], count: int = 20) -> str:
    return write_parquet(folder, [b"broken" if i in bad else flac(clip(i)) for i in range(count)], shards=2)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_a_cache_lacks_is_judged_and_named_each_time(in_memory, extractor, tmp_path, caplog):
    dataset = with_bad_clips(tmp_path / "set", [3, 4, 5, 11, 12, 13, 14])
    lax = DataArguments(
        dataset, cache=True, cache_dir=str(tmp_path), max_bad_share=0.5, in_memory=in_memory, label_column="index"
    )
    assert len(load_examples(lax, extractor)) == 13
    caplog.clear()
    assert len(load_examples(lax, extractor)) == 13
    (said,) = [record.message for record in caplog.records if "lacks" in record.message]
    assert "lacks 7 samples" in said and "clip-11.flac (shard 1, example 1)" in said
    strict = replace(lax, max_bad_share=0.05)
    with pytest.raises(RuntimeError, match="^7 of 20 clips read .*data.max_bad_share=0.05 .*clip-14.flac .shard 1"):
        load_examples(strict, extractor)
    with pytest.raises(RuntimeError, match="^7 of 20 clips"):
        build_loader(strict, extractor, batch_size=2, seed=0)


def csv_of(paths, folder) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "sounds.csv").write_text("\n".join(["audio,half", *(f"{path},{i % 2}" for i, path in enumerate(paths))]))
    return str(folder)


def parquet_of(paths, folder) -> str:
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"audio": datasets.Audio(), "half": datasets.Value("int64")})
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    rows = [{"audio": {"bytes": None, "path": str(path)}, "half": i % 2} for i, path in enumerate(paths)]
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), folder / "train.parquet")
    return str(folder)


@pytest.mark.parametrize("kind", ["csv", "parquet", "in hand"])
def test_recordings_behind_a_table_of_paths_may_be_replaced(kind, extractor, tmp_path, decoded):
    paths = [tmp_path / f"{i}.flac" for i in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(flac(clip(number)))

    def load():
        given, name = None, ""
        if kind == "in hand":
            rows = datasets.Dataset.from_dict({"audio": list(map(str, paths)), "half": [0, 1] * 3})
            given = rows.cast_column("audio", datasets.Audio())
        else:
            name = {"csv": csv_of, "parquet": parquet_of}[kind](paths, tmp_path / "set")
            os.utime(next((tmp_path / "set").iterdir()), (0, 0))
        decoded.clear()
        data = DataArguments(name, cache=True, cache_dir=str(tmp_path / "cache"), label_column="half")
        return load_examples(data, extractor, given)

    first = load()
    assert len(decoded) == 6
    assert same(load(), first) and not decoded
    paths[2].write_bytes(flac(clip(20)))
    second = load()
    changed = [not np.array_equal(a, b) for a, b in zip(first.clips, second.clips, strict=True)]
    assert changed == [False, False, True, False, False, False]


def test_a_path_behind_which_there_is_nothing_is_a_bad_clip(audio_folder, extractor, tmp_path):
    paths = [*(f"{audio_folder}/train/clip-{i}.flac" for i in range(3)), tmp_path / "gone.flac"]
    dataset = parquet_of(paths, tmp_path / "set")
    data = DataArguments(dataset, cache=True, cache_dir=str(tmp_path / "cache"))
    assert len(load_examples(data, extractor)) == 3
    skipped = build_loader(data, extractor, batch_size=2, seed=0).skipped
    assert list(skipped) == [str(tmp_path / "gone.flac")]  # a path alone tells which clip it is


OWN = ("shape", "dtype", "features", "file", "bytes", "path", "number", "clip_name")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_columns_of_any_name_keep_their_values(cached, in_memory, tmp_path):
    rng, names = np.random.default_rng(0), ["cube", "ball", "cone"]
    rows = []
    for number in range(6):
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(picture, "png")
        row = {"image": {"bytes": picture.getvalue(), "path": None}, "whole": number % 3}
        rows.append(row | {name: names[number % 3] for name in OWN})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    processor = BridleImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    for name in OWN:
        data = DataArguments(
            str(tmp_path), label_column=name, fold_column=name, exclude={name: ["cone"]}, input_column="image",
            cache=cached, in_memory=in_memory, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        examples = load_examples(data, processor)
        assert examples.label_names == ["ball", "cube"] and examples.labels.tolist() == [1, 0, 1, 0]
        assert examples.folds.tolist() == ["cube", "ball"] * 2


def test_a_label_column_of_numbers_may_be_called_clip_name(extractor, tmp_path):
    rows = [{"audio": {"bytes": flac(clip(i)), "path": f"{i}.flac"}, "clip_name": i % 2} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    data = DataArguments(str(tmp_path), label_column="clip_name", cache_dir=str(tmp_path / "cache"))
    for cached in (False, True):
        examples = load_examples(replace(data, cache=cached), extractor)
        assert examples.labels.tolist() == [0, 1, 0, 1] and examples.clip_names == ["0", "1", "0", "1"]
        loader = build_loader(replace(data, cache=cached, shuffle_buffer=2), extractor, batch_size=2, seed=0)
        assert next(loader)["input_values"].shape[0] == 2
