"""The share of unusable samples at which a run ends: short clips do not count, and the share is of the whole set."""

import pytest
from sound_files import clip, flac, write_audiofolder

from bridle_hf.data import DataArguments, UnusableDataError, build_loader
from bridle_hf.data.bad_share import BadShareError, check_bad_share, is_short
from bridle_hf.data.source import open_source

PLAIN = {"roll": False, "gain": False}


def clips_of(kinds: str) -> list[bytes]:
    """A clip for each letter: good, short, broken or without samples."""
    made = {"g": lambda i: flac(clip(i)), "s": lambda i: flac(clip(i)[:100]), "b": lambda i: b"not audio"}
    return [(made | {"e": lambda i: flac(clip(i)[:0])})[kind](number) for number, kind in enumerate(kinds)]


def test_a_reason_that_is_the_length_alone():
    assert is_short("too short: 0.100 s, at least 0.2 s are needed")
    assert not is_short("too short: 0.000 s, it holds no samples") and not is_short("cannot be decoded: too short: x")


@pytest.mark.parametrize(
    ("bad", "seen", "total", "ends"),
    [
        (5, 5, 0, False), (6, 6, 0, True),  # over 100 at least
        (10, 10, 200, False), (11, 11, 200, True),  # over the whole of a set of known size
        (500, 500, 10**6, False), (501, 501, 10**6, True),  # but over 10,000 at most
        (600, 12_000, 10**6, False), (601, 12_000, 10**6, True),
    ],
)  # fmt: skip
def test_what_the_share_is_of(bad, seen, total, ends):
    if not ends:
        return check_bad_share(bad, seen, 0.05, "a.wav", "is empty", total=total)
    with pytest.raises(BadShareError, match=rf"^{bad} of {seen} clips .*=0.05 allows; .* a.wav: is empty. Remove"):
        check_bad_share(bad, seen, 0.05, "a.wav", "is empty", total=total)


@pytest.mark.parametrize("cache", [False, True])
def test_short_clips_are_left_out_and_do_not_count(tmp_path, extractor, cache):
    dataset = write_audiofolder(tmp_path / "set", clips_of("sgggssgsss"))
    data = DataArguments(dataset, max_bad_share=0.0, cache=cache, cache_dir=str(tmp_path / "cache"), **PLAIN)
    loader = build_loader(data, extractor, batch_size=8, seed=0)
    for _ in range(3):
        next(loader)
    assert len(loader.skipped) == 6 and all(map(is_short, loader.skipped.values()))
    source = open_source(data, extractor)
    assert len(list(source.decode_all(0, 0.0))) == 4 and (source.bad, source.short) == (6, 6)


@pytest.mark.parametrize("kind", ["b", "e"])
def test_broken_ones_do(tmp_path, extractor, kind):
    dataset = write_audiofolder(tmp_path / "set", clips_of("ssggg" + kind))
    data = DataArguments(dataset, max_bad_share=0.0, **PLAIN)
    with pytest.raises(BadShareError, match="^1 of 6 clips .* could not be used"):
        list(open_source(data, extractor).decode_all(0, 0.0))
    with pytest.raises(UnusableDataError, match=r"^1 of \d clips .* could not be used"):
        next(build_loader(data, extractor, batch_size=8, seed=0))


def test_bad_clips_that_come_first_are_no_larger_share(tmp_path, extractor):
    kinds = 7 * "b" + 143 * "g"  # 4.7 %, and 7 of the first 100
    for number, content in enumerate(clips_of(kinds)):
        (tmp_path / f"{number:03d}.flac").write_bytes(content)
    data = DataArguments(str(tmp_path), **PLAIN)
    assert len(list(open_source(data, extractor).decode_all(0, 0.05))) == 143
    loader = build_loader(data, extractor, batch_size=143, seed=0)
    next(loader)
    next(loader)
    assert len(loader.skipped) == 7
    with pytest.raises(BadShareError, match="^7 of 7 clips .* could not be used"):
        list(open_source(data, extractor).decode_all(0, 0.04))
