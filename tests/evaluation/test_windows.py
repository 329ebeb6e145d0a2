"""Features and codes of datasets as parquet files, long sounds in windows."""

import json
import runpy
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from bridle_hf import BridleFeatureExtractor, BridleForPreTraining, BridleModel, BridleTokenizer
from bridle_hf.clip_features_bridle import POOLINGS, window_starts
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.evaluation import row_files
from bridle_hf.evaluation.features import encoder_features, overlap_mean, write_features
from bridle_hf.evaluation.row_files import Parts
from bridle_hf.evaluation.tokens import code_layout, write_codes

RATE, WINDOW, UNIT = 16000, 48, 16


@pytest.fixture(scope="module")
def extractor(pretrained):
    return BridleFeatureExtractor.from_pretrained(pretrained)


@pytest.fixture(scope="module")
def long_sounds(tmp_path_factory, to_wav):
    """Clips of 33, 90 and 160 frames; the window is 48."""
    folder, rng = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    lengths = [400 + 160 * (frames - 1) for frames in (33, 90, 160)]
    rows = [{"audio": to_wav(rng.normal(size=length) / 10), "speaker": f"s{length}"} for length in lengths]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


def read(path):
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize(
    ("length", "overlap", "starts"),
    [
        (40, 0.5, [0]),
        (48, 0.5, [0]),
        (49, 0.5, [0, 16]),
        (96, 0.0, [0, 48]),
        (100, 0.0, [0, 48, 64]),
        (112, 0.5, [0, 16, 32, 48, 64]),
        (112, 0.99, [0, 16, 32, 48, 64]),
    ],
)
def test_windows_cover_a_clip_on_one_grid(length, overlap, starts):
    assert window_starts(length, WINDOW, overlap, UNIT) == starts
    covered = {frame for start in starts for frame in range(start, start + WINDOW)}
    assert covered >= set(range(length)) and all(start % UNIT == 0 for start in starts)


def test_an_overlap_of_a_whole_window_is_refused():
    with pytest.raises(ValueError, match="overlap: got 1"):
        window_starts(100, WINDOW, 1, UNIT)


def test_overlaps_are_averaged_by_hand():
    parts = [(0, 2, np.array([[[1.0], [2.0], [9.0]]])), (1, 3, np.array([[[4.0], [6.0], [8.0]]]))]
    assert overlap_mean(parts).tolist() == [[[1.0], [3.0], [6.0], [8.0]]]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_short_clips_have_the_features_of_the_probe(tones, pretrained, extractor, tmp_path, pooling):
    model, data = BridleModel.from_pretrained(pretrained), DataArguments(dataset=str(tones), label_column="sound")
    assert write_features(tmp_path / "f.parquet", model, data, extractor, (None, 1), pooling, batch_size=5) == 24
    rows, expected = (
        read(tmp_path / "f.parquet"),
        encoder_features(model, load_examples(data, extractor), (None, 1), (pooling,)),
    )
    assert set(rows[0]) == {"sound", "fold", "clip_name", "last", "layer_1"}
    assert [row["sound"] for row in rows] == ["low", "high"] * 12
    for column, layer in (("last", None), ("layer_1", 1)):
        np.testing.assert_allclose([row[column] for row in rows], expected[layer, pooling], atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_long_clips_have_the_features_of_the_probe(long_sounds, pretrained, extractor, tmp_path, pooling):
    model, data = BridleModel.from_pretrained(pretrained), DataArguments(dataset=str(long_sounds), min_seconds=0)
    write_features(tmp_path / "f.parquet", model, data, extractor, (None, 1), pooling, overlap=0, batch_size=2)
    examples = load_examples(data, extractor)
    assert examples.window == WINDOW
    expected = encoder_features(model, examples, (None, 1), (pooling,), batch_size=2)
    for column, layer in (("last", None), ("layer_1", 1)):
        got = [row[column] for row in read(tmp_path / "f.parquet")]
        np.testing.assert_allclose(got, expected[layer, pooling], atol=2e-5)


def test_frames_of_a_long_sound_are_the_mean_over_its_windows(long_sounds, pretrained, extractor, tmp_path):
    model = BridleModel.from_pretrained(pretrained).eval()
    data = DataArguments(dataset=str(long_sounds), min_seconds=0)
    write_features(tmp_path / "f.parquet", model, data, extractor, pooling="frames", overlap=0.5, batch_size=2)
    for row, frames in zip(read(tmp_path / "f.parquet"), (33, 90, 160), strict=True):
        patches = -(-frames // UNIT)
        assert np.allclose(row["start"], 0.16 * np.arange(patches)) and len(row["last"]) == patches
        clip = load_examples(data, extractor).clips[(33, 90, 160).index(frames)]
        total, seen = np.zeros((patches, 24)), np.zeros((patches, 1))
        for start in window_starts(frames, WINDOW, 0.5, UNIT):
            piece = torch.zeros(1, WINDOW, 64)
            length = len(clip[start : start + WINDOW])
            piece[0, :length] = torch.tensor(clip[start : start + WINDOW])
            mask = (torch.arange(WINDOW) < length).long()[None]
            with torch.no_grad():
                tokens = model(input_values=piece, attention_mask=mask).last_hidden_state[0, 1:]
            inside = -(-length // UNIT)
            total[start // UNIT :][:inside] += tokens.view(3, 4, 24).mean(dim=1)[:inside].numpy()
            seen[start // UNIT :][:inside] += 1
        np.testing.assert_allclose(row["last"], total / seen, atol=1e-5)


def test_codes_are_the_tokenizers_and_say_what_they_are(long_sounds, pretrained, extractor, tmp_path):
    tokenizer = BridleTokenizer.from_pretrained(pretrained)
    data = DataArguments(dataset=str(long_sounds), min_seconds=0)
    clips = load_examples(data, extractor).clips
    tokenizer.quantizer.initialize_(tokenizer.project(torch.tensor(clips[2])[None]), torch.Generator().manual_seed(0))
    write_codes(tmp_path / "c.parquet", tokenizer, data, extractor, batch_size=2)
    layout = json.loads(pq.read_schema(tmp_path / "c.parquet").metadata[b"bridle_codes"])
    assert layout == {
        "order": ["time", "frequency", "codebook"], "patch_size": [16, 16], "num_codebooks": 2, "codebook_size": 8,
        "seconds_per_patch": 0.16,
    }  # fmt: skip
    for row, clip in zip(read(tmp_path / "c.parquet"), clips, strict=True):
        padded = torch.zeros(1, -(-len(clip) // UNIT) * UNIT, 64)
        padded[0, : len(clip)] = torch.tensor(clip)
        expected = tokenizer.encode(padded)[0]  # a cold start sees each patch alone, so windows change nothing
        assert row["shape"] == [padded.shape[1] // UNIT, 4, 2] and row["speaker"].startswith("s")
        assert np.array_equal(np.array(row["codes"]).reshape(-1, 2), expected) and len(expected.unique()) > 2


def test_times_at_a_rate_of_no_whole_milliseconds(long_sounds, pretrained, extractor, tmp_path):
    slow = BridleFeatureExtractor(**extractor.to_dict() | {"sampling_rate": 22050})
    data, model = DataArguments(dataset=str(long_sounds), min_seconds=0), BridleModel.from_pretrained(pretrained)
    write_features(tmp_path / "f.parquet", model, data, slow, pooling="frames")
    for row in read(tmp_path / "f.parquet"):
        assert np.allclose(row["start"], np.arange(len(row["last"])) * 16 * 220 / 22050, rtol=1e-6)
    assert code_layout(model.config, slow)["seconds_per_patch"] == pytest.approx(16 * 220 / 22050)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": (9,)}, r"got 9; the model has layers 1\.\.2"),
        ({"pooling": "max"}, "'max'; it takes one of mean, mean_std, cls, bands, bands_std, frames, frame_bands"),
        ({"overlap": 1.0}, "overlap: got 1.0"),
    ],
)
def test_bad_choices_are_named(long_sounds, pretrained, extractor, tmp_path, keys, message):
    model, data = BridleModel.from_pretrained(pretrained), DataArguments(dataset=str(long_sounds), min_seconds=0)
    with pytest.raises(ValueError, match=message):
        write_features(tmp_path / "f.parquet", model, data, extractor, **keys)
    assert not (tmp_path / "f.parquet").exists()


def test_many_rows_make_several_groups(tmp_path):
    rows = ({"a": number, "b": np.full((2, 3), number, dtype=np.float32)} for number in range(600))
    assert Parts(tmp_path / "x.parquet", "").write(rows, {"k": "v"}) == 600
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.num_row_groups == 3 and file.schema_arrow.metadata[b"k"] == b"v"
    assert read(tmp_path / "x.parquet")[599] == {"a": 599, "b": [[599.0] * 3] * 2}


def test_the_scripts_run(long_sounds, pretrained, repository, tmp_path, monkeypatch, capsys):
    for script, more in (("extract_features", ["--pooling", "frames"]), ("tokenize_audio", [])):
        path = tmp_path / f"{script}.parquet"
        words = ["--model", str(pretrained), "--dataset", str(long_sounds), "--output", str(path), *more]
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(repository / "examples" / f"{script}.py"), run_name="__main__")
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["clips"] == len(read(path)) == 3


def test_codes_of_a_trained_tokenizer_come_from_windows_side_by_side(long_sounds, pretrained, extractor, tmp_path):
    tokenizer = BridleForPreTraining.from_pretrained(pretrained).tokenizer
    torch.manual_seed(0)
    tokenizer.reset_()
    for book in tokenizer.quantizer.codebooks:
        book.embed.normal_()
    data = DataArguments(dataset=str(long_sounds), min_seconds=0)
    write_codes(tmp_path / "c.parquet", tokenizer, data, extractor, batch_size=3)
    row, clip = read(tmp_path / "c.parquet")[1], load_examples(data, extractor).clips[1]  # 90 frames: 0..48, 48..90
    first, last = torch.tensor(clip[:48])[None], torch.zeros(1, 48, 64)
    last[0, :42] = torch.tensor(clip[48:90])
    mask = (torch.arange(48) < 42).long()[None]
    expected = torch.cat([tokenizer.encode(first)[0], tokenizer.encode(last, mask)[0]])
    assert np.array_equal(np.array(row["codes"]).reshape(-1, 2), expected)


def test_groups_of_large_rows_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "BYTES_PER_GROUP", 10_000)
    rows = ({"name": str(i), "features": np.full((10, 100), i, dtype=np.float32)} for i in range(7))  # 4,000 bytes each
    assert Parts(tmp_path / "rows.parquet", "").write(rows) == 7
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 1]
    assert file.read().column("name").to_pylist() == list("0123456")
