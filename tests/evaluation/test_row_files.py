"""Files of features and codes: gone on with where their writer was killed, and shared by processes."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from bridle_hf import BridleFeatureExtractor, BridleModel, BridleTokenizer
from bridle_hf.data import DataArguments
from bridle_hf.data.source import Source
from bridle_hf.evaluation import row_files
from bridle_hf.evaluation.features import write_features
from bridle_hf.evaluation.row_files import Parts
from bridle_hf.evaluation.tokens import write_codes

CLIPS = 24


@pytest.fixture
def write(tones, pretrained, monkeypatch):
    """Writes features of 24 clips, 3 at a time, a row a part."""
    monkeypatch.setattr(row_files, "SECONDS_PER_PART", 0.0)
    model, extractor = BridleModel.from_pretrained(pretrained), BridleFeatureExtractor.from_pretrained(pretrained)
    data = DataArguments(dataset=str(tones))
    return lambda path, **how: write_features(path, model, data, extractor, **{"batch_size": 3} | how)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the clips that were decoded; `stop` ends the process before so many of them."""
    names, decode_all = [], Source.decode_all

    def noted(self, *given):
        for example, clip in decode_all(self, *given):
            if len(names) == noted.stop:
                raise KeyboardInterrupt
            names.append(example["clip_name"])
            yield example, clip

    noted.stop = None
    monkeypatch.setattr(Source, "decode_all", noted)
    noted.names = names
    return noted


def rows(path):
    return pq.read_table(path).to_pylist()


def test_a_killed_writer_goes_on_and_ends_the_same(write, decoded, tmp_path):
    assert write(tmp_path / "whole.parquet") == CLIPS
    everything = list(decoded.names)
    decoded.names.clear()
    decoded.stop = 11
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet").exists()
    decoded.names.clear()
    decoded.stop = None
    assert write(tmp_path / "f.parquet") == CLIPS
    # of three batches of three, the last clip could have had a window in the fourth
    assert len(decoded.names) == CLIPS - 8 and decoded.names == everything[8:]
    assert pq.read_table(tmp_path / "f.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
    assert not list(tmp_path.glob(".f.parquet*"))


@pytest.mark.parametrize("change", ["settings", "damage", "loss"])
def test_parts_that_do_not_fit_are_thrown_away(write, decoded, tmp_path, change):
    decoded.stop = 11
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f.parquet")
    first = tmp_path / ".f.parquet.parts" / "000000.parquet"
    if change == "damage":
        first.write_bytes(first.read_bytes()[:-1])
    elif change == "loss":
        first.unlink()
    decoded.names.clear()
    decoded.stop = None
    how = {"pooling": "bands"} if change == "settings" else {}
    assert write(tmp_path / "f.parquet", **how) == CLIPS
    assert len(decoded.names) == CLIPS
    write(tmp_path / "whole.parquet", **how)
    assert rows(tmp_path / "f.parquet") == rows(tmp_path / "whole.parquet")


@pytest.mark.parametrize("processes", [2, 5, 30])
def test_processes_share_the_clips(write, tmp_path, processes):
    write(tmp_path / "whole.parquet")
    whole = rows(tmp_path / "whole.parquet")
    for rank in range(processes):
        expected = whole[rank::processes]
        assert write(tmp_path / "f.parquet", shard=(rank, processes)) == len(expected)
        path = tmp_path / f"f-{rank:05d}-of-{processes:05d}.parquet"
        assert path.exists() == bool(expected)
        found = rows(path) if expected else []
        assert [row["clip_name"] for row in found] == [row["clip_name"] for row in expected]
        for row, other in zip(found, expected, strict=True):
            assert row["last"] == pytest.approx(other["last"], abs=1e-5)  # of another batch


def test_codes_go_on_as_well(tones, pretrained, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "SECONDS_PER_PART", 0.0)
    tokenizer, extractor = (
        BridleTokenizer.from_pretrained(pretrained),
        BridleFeatureExtractor.from_pretrained(pretrained),
    )
    given = (tokenizer, DataArguments(dataset=str(tones)), extractor, 4)
    write_codes(tmp_path / "whole.parquet", *given)
    decoded.names.clear()
    decoded.stop = 13
    with pytest.raises(KeyboardInterrupt):
        write_codes(tmp_path / "c.parquet", *given)
    decoded.stop = None
    write_codes(tmp_path / "c.parquet", *given)
    one, other = (pq.read_table(tmp_path / name) for name in ("whole.parquet", "c.parquet"))
    assert one.equals(other) and one.schema.metadata == other.schema.metadata


ODD = {  # values of a column from row to row; what is written of them in one part, and row by row
    "numbers, then a text": ([1, 2, "dog", None], ["1", "2", "dog", None], [1, 2, None, None]),
    "a text and a number": (["dog", 2], ["dog", "2"], ["dog", None]),
    "a number, then too large a one": ([1, 2**70], ["1", str(2**70)], [1, None]),
    "too large a number": ([2**70, 1], [str(2**70), "1"], [str(2**70), "1"]),
    "a dict without keys": ([{}, {"a": {}}], ["{}", '{"a": {}}'], ["{}", '{"a": {}}']),
    "lists in lists": ([[[[1.0]], [[2.0]]], None], [[[[1.0]], [[2.0]]], None], [[[[1.0]], [[2.0]]], None]),
    "arrays of three axes": ([np.ones((1, 1, 2)), np.zeros((1, 1, 1))], [[[[1, 1]]], [[[0]]]], [[[[1, 1]]], [[[0]]]]),
    "a list and a dict": ([[1], {"a": 1}], ["[1]", '{"a": 1}'], [[1], None]),
    "an object": ([range], ["<class 'range'>"], ["<class 'range'>"]),
    "nothing, then something": ([None, 3], [None, 3], [None, "3"]),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("together", [True, False])
def test_values_that_fit_no_column_cost_themselves(case, together, tmp_path, monkeypatch, caplog):
    values, in_one, in_several = ODD[case]
    expected = in_one if together else in_several
    monkeypatch.setattr(row_files, "SECONDS_PER_PART", 60.0 if together else -1.0)
    given = [{"clip_name": str(number), "x": value, "y": number} for number, value in enumerate(values)]
    assert Parts(tmp_path / "f.parquet", "key").write(iter(given)) == len(values)
    written = rows(tmp_path / "f.parquet")
    assert [row["x"] for row in written] == expected and [row["y"] for row in written] == list(range(len(values)))
    lost = [str(i) for i, value in enumerate(values) if value is not None and expected[i] is None]
    assert all(f"column 'x' is left empty for {name}: not of the type" in caplog.text for name in lost)


def test_columns_that_come_late_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(row_files, "SECONDS_PER_PART", -1.0)
    Parts(tmp_path / "f.parquet", "key").write(iter([{"a": 1}, {"a": 2, "b": 3}, {"b": 4}]))
    assert pq.read_table(tmp_path / "f.parquet").to_pydict() == {"a": [1, 2, None]}
    assert caplog.text.count("columns that the first rows lack are left out: b") == 1
