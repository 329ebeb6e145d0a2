import json
import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from sound_files import RATE, flac, write_parquet

from bridle_hf.data import DataArguments, audio, build_loader, cache, load_examples
from bridle_hf.data.source import open_source


def features_of(examples):
    return examples.batch(range(len(examples)))["input_values"]


def mask_of(examples):
    return examples.batch(range(len(examples)))["attention_mask"]


def expected_features(extractor, waveforms):
    return np.stack([extractor(w, sampling_rate=16000)["input_values"][0] for w in waveforms])


@pytest.mark.parametrize("num_workers", [0, 3])
def test_examples_are_the_dataset_in_order(parquet_folder, extractor, waveforms, num_workers):
    data = DataArguments(parquet_folder, label_column="class", fold_column="index", num_workers=num_workers)
    examples = load_examples(data, extractor)
    np.testing.assert_allclose(
        features_of(examples), expected_features(extractor, waveforms), atol=0.02
    )  # 16-bit files
    assert features_of(examples).dtype == np.float32 and len(examples) == 24
    assert examples.labels.tolist() == [0, 1] * 12 and examples.label_names == ["deep", "high"]
    assert examples.folds.tolist() == list(range(24))
    assert examples.clip_names[3] == "clip-3.flac"
    assert (mask_of(examples).sum(1) == 1 + (16000 // 3 - 400) // 160).all()


def test_integer_labels_become_contiguous(parquet_folder, extractor):
    data = DataArguments(parquet_folder, label_column="index", exclude={"fold": ["0", 2]})
    examples = load_examples(data, extractor)
    assert examples.labels.tolist() == list(range(8))
    assert examples.label_names == [str(i) for i in range(1, 24, 3)]
    assert examples.folds is None


def test_long_clips_keep_their_beginning(parquet_folder, extractor):
    whole = load_examples(DataArguments(parquet_folder), extractor)
    short = load_examples(DataArguments(parquet_folder, max_frames=16), extractor)
    np.testing.assert_array_equal(features_of(short), features_of(whole)[:, :16])
    assert mask_of(short).all() and short.labels is None


def test_real_clips(esc10_dir, extractor):
    data = DataArguments(str(esc10_dir), label_column="target", fold_column="fold", exclude={"fold": [2, 3, 4, 5]})
    examples = load_examples(data, extractor)
    assert features_of(examples).shape == (80, 32, 32) and set(examples.folds) == {1}
    assert examples.label_names == ["0", "1", "10", "11", "12", "20", "21", "38", "40", "41"]
    targets = [int(name.rsplit("-", 1)[1].split(".")[0]) for name in examples.clip_names]  # fold-source-take-target.ogg
    assert [int(examples.label_names[label]) for label in examples.labels] == targets
    assert np.bincount(examples.labels).tolist() == [8] * 10


def test_cache_holds_the_same_features_and_is_read_instead(parquet_folder, extractor, tmp_path, monkeypatch):
    data = DataArguments(parquet_folder, label_column="class", fold_column="fold")
    direct = load_examples(data, extractor)
    cached = replace(data, cache=True, cache_dir=str(tmp_path))
    assert len(load_examples(replace(cached, exclude={"fold": [0, 1]}), extractor)) == 8  # writes all 24 all the same

    def refuse(*_):
        raise AssertionError("a clip was decoded although its features are kept")

    monkeypatch.setattr(audio, "decode_audio", refuse)
    again = load_examples(cached, extractor)
    np.testing.assert_allclose(features_of(again), features_of(direct), atol=2e-3)  # half precision
    np.testing.assert_array_equal(mask_of(again), mask_of(direct))
    assert (again.labels == direct.labels).all() and (again.folds == direct.folds).all()
    assert again.clip_names == direct.clip_names and again.label_names == direct.label_names
    assert len(load_examples(replace(cached, exclude={"fold": [0]}, max_frames=16), extractor)) == 16


def test_cache_is_written_anew_when_something_changes(waveforms, extractor, tmp_path):
    dataset = write_parquet(tmp_path / "set", [flac(w) for w in waveforms[:4]], shards=1)
    data = DataArguments(dataset, cache=True, cache_dir=str(tmp_path / "cache"))

    def write_cache(extractor):
        return cache.write_cache(open_source(data, extractor), data, extractor)[0]

    folder = write_cache(extractor)
    assert write_cache(extractor) == folder
    assert write_cache(type(extractor)(num_mel_bins=32, max_length=64)) == folder  # padding is not kept
    assert write_cache(type(extractor)(num_mel_bins=32, max_length=32, mean=-6.0)) != folder
    write_parquet(tmp_path / "set", [flac(w) for w in waveforms[4:8]], shards=1)
    os.utime(tmp_path / "set" / "train-00000-of-00001.parquet", (0, 0))
    assert write_cache(extractor) != folder
    other = load_examples(data, extractor)
    np.testing.assert_allclose(features_of(other), expected_features(extractor, waveforms[4:8]), atol=0.02)


def test_interrupted_cache_is_not_taken_for_whole(waveforms, extractor, tmp_path, monkeypatch):
    dataset = write_parquet(tmp_path / "set", [flac(w) for w in waveforms[:4]], shards=1)
    data = DataArguments(dataset, cache=True, cache_dir=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_examples(data, extractor)
    assert len(load_examples(data, extractor)) == 4


def test_bad_clips_are_left_out_of_the_cache(waveforms, extractor, tmp_path, caplog):
    clips = [flac(w) for w in waveforms[:3]] + [b"not audio"]
    dataset = write_parquet(tmp_path / "set", clips, shards=1)
    data = DataArguments(dataset, cache=True, cache_dir=str(tmp_path / "cache"))
    assert load_examples(data, extractor).clip_names == ["clip-0.flac", "clip-1.flac", "clip-2.flac"]
    assert "clip-3.flac" in caplog.text
    skipped = build_loader(data, extractor, batch_size=2, seed=0).skipped
    assert "cannot be decoded" in skipped["clip-3.flac (shard 0, example 3)"]
    with pytest.raises(RuntimeError, match="1 of 4 clips read so far could not be used"):
        load_examples(replace(data, cache=False, max_bad_share=0.0), extractor)


def test_class_labels_keep_their_names(waveforms, extractor, tmp_path):
    (tmp_path / "train" / "deep").mkdir(parents=True)
    (tmp_path / "train" / "high").mkdir()
    for index, waveform in enumerate(waveforms[:6]):
        (tmp_path / "train" / ("high" if index % 2 else "deep") / f"{index}.flac").write_bytes(flac(waveform))
    examples = load_examples(DataArguments(str(tmp_path), label_column="label"), extractor)
    assert examples.label_names == ["deep", "high"]
    assert sorted(examples.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert all(
        (name.split("/")[-2] == "high") == bool(label)
        for name, label in zip(examples.clip_names, examples.labels, strict=True)
    )


def test_several_labels_a_clip_of_a_folder(waveforms, extractor, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.flac").write_bytes(flac(waveforms[0]))
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "0.flac", "label": ["a", "b"]}))
    examples = load_examples(DataArguments(str(tmp_path), label_column="label"), extractor)
    assert examples.labels.tolist() == [[1, 1]] and examples.label_names == ["a", "b"]


def test_a_column_may_be_empty_in_a_whole_file_of_the_cache(audio_folder, extractor, tmp_path):
    """Of a csv table the types of columns are not known before it is read."""
    lines = [f"{audio_folder}/train/clip-{i % 24}.flac,{i % 2},{'late' if i > 270 else ''}" for i in range(300)]
    (tmp_path / "sounds.csv").write_text("\n".join(["audio,half,note", *lines]))
    data = DataArguments(str(tmp_path), cache=True, cache_dir=str(tmp_path / "cache"), label_column="half")
    assert load_examples(data, extractor).labels.tolist() == [i % 2 for i in range(300)]


def test_a_cache_goes_on_where_its_writer_was_killed(parquet_folder, extractor, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CLIPS_PER_FILE", 4)
    data, decoded, decode = DataArguments(parquet_folder, cache=True), [], audio.decode_audio

    def killed_at(limit):
        def decode_one(raw, *given):
            decoded.append(raw["path"])
            if len(decoded) == limit:
                raise KeyboardInterrupt
            return decode(raw, *given)

        monkeypatch.setattr(audio, "decode_audio", decode_one)

    whole = load_examples(replace(data, cache_dir=str(tmp_path / "whole")), extractor)
    for limit in (11, 9, 0):  # behind 2 files, behind 2 more, the rest
        decoded.clear()
        killed_at(limit)
        again = replace(data, cache_dir=str(tmp_path / "killed"))
        if limit:
            with pytest.raises(KeyboardInterrupt):
                load_examples(again, extractor)
    examples = load_examples(again, extractor)
    assert len(decoded) == 8 and examples.clip_names == whole.clip_names
    assert all(np.array_equal(a, b) for a, b in zip(examples.clips, whole.clips, strict=True))
    (folder,) = (path for path in (tmp_path / "killed").iterdir() if path.is_dir())
    names = [*(f"0000{i}.arrow" for i in range(6)), "manifest.json", "skipped.json"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_files_of_the_cache_of_long_clips_hold_fewer(parquet_folder, extractor, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BYTES_PER_FILE", 10_000)  # a clip has 31 frames of 32 numbers of 2 bytes
    load_examples(DataArguments(parquet_folder, cache=True, cache_dir=str(tmp_path)), extractor)
    assert len(list(tmp_path.glob("*/*.arrow"))) == 4


def test_clips_that_are_cut_to_their_beginning_are_counted(waveforms, extractor, caplog):
    short, long = waveforms[0][: RATE // 2], np.tile(waveforms[1], 4)[: 2 * RATE]
    data = DataArguments("", max_frames=96, test_windows="first")  # 0.96 s
    load_examples(data, extractor, [short, long, short])
    assert "1 of 3 clips are longer than the window of 96 frames" in caplog.text
    caplog.clear()
    load_examples(data, extractor, [short, short])
    assert "longer than the window" not in caplog.text


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_clips_on_disk_that_are_cut_are_counted_without_decoding_them_again(
    waveforms, extractor, tmp_path, caplog, monkeypatch, cached, again
):
    short, long = waveforms[0][: RATE // 2], np.tile(waveforms[1], 4)[: 2 * RATE]
    for name, waveform in (("a", short), ("b", long), ("c", long), ("d", short)):
        soundfile.write(tmp_path / f"{name}.wav", waveform, RATE)
    caches = str(tmp_path / "caches")
    data = DataArguments(str(tmp_path), max_frames=96, test_windows="first", in_memory=False, cache=cached)
    data.cache_dir = caches
    if again:
        load_examples(data, extractor)
        caplog.clear()
        monkeypatch.setattr("bridle_hf.data.audio.decode_audio", None)
    load_examples(data, extractor)
    assert "2 of 4 clips are longer than the window of 96 frames" in caplog.text
    assert f"The first is {tmp_path / 'b.wav'}" in caplog.text


def test_clips_in_hand_that_are_cut_are_counted_where_they_stay_there(waveforms, extractor, caplog):
    long = np.tile(waveforms[1], 4)[: 2 * RATE]
    data = DataArguments("", max_frames=96, test_windows="first", in_memory=False)
    load_examples(data, extractor, [long, waveforms[0][: RATE // 2]])
    assert "1 of 2 clips are longer than the window of 96 frames" in caplog.text


def table_of(path, files, **columns):
    path.write_text(
        "\n".join([",".join(["file", *columns]), *map(",".join, zip(files, *columns.values(), strict=True))])
    )


def test_files_of_both_splits_are_named(tmp_path, extractor, waveforms, caplog):
    (tmp_path / "tables").mkdir()
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", waveforms[number % len(waveforms)], 16000)
    table_of(tmp_path / "tables" / "train.csv", [f"../{number}.wav" for number in range(4)], label="xyxy")
    table_of(tmp_path / "tables" / "test.csv", [f".././{number}.wav" for number in range(2, 6)], label="xyxy")
    data = DataArguments(str(tmp_path / "tables"), label_column="label", test_split="test")
    assert len(load_examples(data, extractor)) == 8
    assert "2 files are in split train and in split test: " in caplog.text and "2.wav" in caplog.text


@pytest.mark.parametrize(("files", "said"), [((0, 1, 2, 3), False), ((0, 1, 0, 1), True)])
def test_files_repeat_by_their_paths_whatever_clips_are_called(files, said, tmp_path, extractor, waveforms, caplog):
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", waveforms[number % len(waveforms)], 16000)
    names = "AABB" if not said else "ABCD"
    table_of(tmp_path / "t.csv", [f"{number}.wav" for number in files], label="xyxy", clip_name=names)
    assert len(load_examples(DataArguments(str(tmp_path / "t.csv"), label_column="label"), extractor)) == 4
    assert ("names 2 files in several rows" in caplog.text) == said
