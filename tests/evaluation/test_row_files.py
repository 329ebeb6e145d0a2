"""Files of features and codes: gone on with where their writer was killed, and shared by processes."""

import pyarrow.parquet as pq
import pytest

from bridle_hf import BridleFeatureExtractor, BridleModel, BridleTokenizer
from bridle_hf.data import DataArguments
from bridle_hf.data.source import Source
from bridle_hf.evaluation import row_files
from bridle_hf.evaluation.features import write_features
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
