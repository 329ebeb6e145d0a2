"""The page about table 6: each decoded number is worked out again, and counts of that use give the printed figure."""

import re

import numpy as np
import pytest

from bridle_hf.codebook_metrics import ecu_table6, usage

ROW = re.compile(r"^\| [VR]Q.*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) of (\d+) \| (\d+) \| ([\d.]+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def rows(repository):
    """(CUR, printed figure, UE, bits, perplexity, ECU) of each row that can be decoded."""
    page = (repository / "docs" / "codebook_usage.md").read_text()
    return [tuple(map(float, row)) for row in ROW.findall(page)]


def counts_with(used, bits):
    """Counts of `used` codes, shares falling geometrically, whose entropy is `bits`."""
    low, high = 0.0, 1.0  # of the ratio between one code and the next
    for _ in range(60):
        ratio = (low + high) / 2
        shares = ratio ** np.arange(used)
        shares = shares / shares.sum()
        kept = shares[shares > 0]
        low, high = (ratio, high) if -(kept * np.log2(kept)).sum() < bits else (low, ratio)
    return np.maximum(1, np.round(shares * 1e8)).astype(np.int64)


def test_the_page_has_all_rows(rows):
    assert len(rows) == 1 + 4 * 4
    assert [row[1] for row in rows[:5]] == [0.0146, 0.0235, 0.0284, 0.0489, 0.0367]


def test_decoded_columns_follow_from_the_printed_ones(rows):
    for cur, figure, entropy, bits, perplexity, ecu in rows:
        exact = cur / (figure * bits * np.log(2))
        assert entropy == pytest.approx(exact, abs=0.005)
        assert perplexity == pytest.approx(2**exact, abs=0.5)
        assert ecu == pytest.approx(cur * exact / bits, abs=5e-4)


def test_counts_of_that_use_give_the_printed_figure(rows):
    for cur, figure, entropy, bits, _, ecu in rows:
        size = round(2**bits)
        counts = np.zeros(size, np.int64)
        used = counts_with(round(cur * size), entropy)
        counts[: len(used)] = used
        assert ecu_table6(counts) == pytest.approx(figure, abs=1e-4)
        assert usage(counts[None])["ecu"][0] == pytest.approx(ecu, abs=3e-3)
