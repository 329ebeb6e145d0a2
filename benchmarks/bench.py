"""How the hot pieces stand beside their peers and beside the machine's own limit, as ratios taken in one run.

    python benchmarks/bench.py [--rounds 7] [--threads 1] [--json FILE]

Every row times our code and its yardstick in turn, round by round, so that a busy machine slows both; the figure is
the median over the rounds of the ratio ours / yardstick (below 1: ours is faster). A yardstick that is not installed is
left out.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torchaudio

from bridle_hf import ResidualQuantizer
from bridle_hf.feature_extraction_bridle import kaldi_fbank

SAMPLING_RATE = 16_000


class Row(NamedTuple):
    """One comparison: two callables that do the same work."""

    name: str
    yardstick: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


def fbank_rows(clips: int = 16, seconds: float = 5.0) -> Iterator[Row]:
    """Log-mel features of a batch of clips: ours in one call, torchaudio's clip by clip (it takes no batch)."""
    waveforms = torch.randn(clips, int(seconds * SAMPLING_RATE), generator=torch.Generator().manual_seed(0)) / 10
    options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "num_mel_bins": 128, "dither": 0.0}

    def torchaudio_fbank() -> torch.Tensor:
        fbank = torchaudio.compliance.kaldi.fbank
        return torch.stack([fbank(wave[None], sample_frequency=SAMPLING_RATE, **options) for wave in waveforms])

    name = f"fbank, {clips} clips of {seconds:g} s"
    yield Row(name, "torchaudio.compliance.kaldi", lambda: kaldi_fbank(waveforms), torchaudio_fbank)


def search_rows(vectors: int = 8192, dim: int = 256, stages: int = 4, codes: int = 256) -> Iterator[Row]:
    """Residual codes of a batch of vectors, beside the products no search can do without and beside a peer."""
    z = torch.randn(vectors, dim, generator=torch.Generator().manual_seed(0))
    quantizer = ResidualQuantizer(dim, num_codebooks=stages, codebook_size=codes)
    quantizer.initialize_(z, generator=torch.Generator().manual_seed(0))
    quantizer.eval()
    flat = torch.randn(dim, stages * codes)  # all stages' scores at once: the floor
    name = f"RQ {stages} x {codes}, {vectors} x {dim}"
    yield Row(name, "one matmul", lambda: quantizer.encode(z), lambda: z @ flat)
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError:
        return
    peer = ResidualVQ(dim=dim, num_quantizers=stages, codebook_size=codes).eval()
    yield Row(name, "vector-quantize-pytorch", lambda: quantizer.encode(z), lambda: peer(z[None]))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(row: Row, rounds: int) -> dict:
    """Times of one row: medians in milliseconds, and the median and range of the ratios within a round."""
    row.ours(), row.theirs()  # caches, threads and tables are made here
    pairs = [(seconds_of(row.ours), seconds_of(row.theirs)) for _ in range(rounds)]
    ratios = [ours / theirs for ours, theirs in pairs]
    return {
        "name": row.name,
        "yardstick": row.yardstick,
        "ours_ms": 1e3 * statistics.median(ours for ours, _ in pairs),
        "yardstick_ms": 1e3 * statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def table(results: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | beside | ours, ms | theirs, ms | ratio | range |", "|---|---|---|---|---|---|"]
    for r in results:
        low, high = r["ratio_range"]
        lines.append(
            f"| {r['name']} | {r['yardstick']} | {r['ours_ms']:.1f} | {r['yardstick_ms']:.1f} "
            f"| {r['ratio']:.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", help="a file that also gets the results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = [measure(row, args.rounds) for row in [*fbank_rows(), *search_rows()]]
    report = {"machine": platform.machine(), "threads": args.threads, "torch": torch.__version__, "results": results}
    print(table(results))
    print(json.dumps(report))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)
    return report


if __name__ == "__main__":
    main()
