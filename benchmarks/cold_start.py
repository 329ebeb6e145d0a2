"""How evenly the codes of the cold start are used on sounds, for each way to set them (docs/codebook_usage.md).

    python benchmarks/cold_start.py --dataset DIR --clips 60

ViT-B's projection of 16 x 16 patches, drawn at random; the codebooks are set from a part of the patches, as pretraining
does, and measured on all of them.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from bridle_hf import BridleConfig, BridleTokenizer
from bridle_hf.codebook_metrics import code_counts, usage
from bridle_hf.data import load_examples
from bridle_hf.data.arguments import DataArguments
from bridle_hf.data.modalities import build_processor
from bridle_hf.evaluation.quality import projected
from bridle_hf.quantization_bridle import CODEBOOK_INITS, build_quantizer

QUANTIZERS = {"RQ": "residual", "VQ": "vector"}


def projections(given: argparse.Namespace) -> torch.Tensor:
    """What the quantizer of the cold start receives for every patch of the clips: (n, 256)."""
    torch.manual_seed(0)
    tokenizer = BridleTokenizer(BridleConfig(input_size=(given.frames, 128))).eval()
    processor = build_processor(tokenizer.config, mean=given.mean, std=given.std)
    examples = load_examples(DataArguments(dataset=given.dataset), processor, for_training=False)
    every = max(1, len(examples) // given.clips)
    examples.clips = examples.clips[::every][: given.clips]
    with torch.no_grad():
        return torch.cat([vectors for vectors, _ in projected(tokenizer, examples, 32)])


def measure(z: torch.Tensor, kind: str, method: str, seed: int) -> dict[str, np.ndarray]:
    """`usage` of the codes of z (n, 256) after `initialize_` from a part of them; one value per codebook."""
    config = BridleConfig(quantizer_config={"type": kind, "codebook_init": method}).quantizer_config
    quantizer, generator = build_quantizer(config).eval(), torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(z), generator=generator)[: quantizer.init_sample_size]
    quantizer.initialize_(z[sample], generator=generator)
    codes = torch.cat([quantizer.assign(part) for part in z.split(2**16)])
    return usage(code_counts(codes, quantizer.codebook_size))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a row for each codebook: means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of sounds")
    parser.add_argument("--clips", type=int, default=60, help="clips to measure, evenly spaced")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--mean", type=float, default=-6.6268077, help="of the log-mel values; ESC-50's by default")
    parser.add_argument("--std", type=float, default=5.358466)
    given = parser.parse_args(arguments)
    z = projections(given)
    print(f"{len(z)} patches, seeds 0 to {given.seeds - 1}\n")
    print("| start | codebook | CUR | UE in bits | ECU (eq. 31) |\n|---|---|---|---|---|")
    for name, kind in QUANTIZERS.items():
        for method in CODEBOOK_INITS:
            found = [measure(z, kind, method, seed) for seed in range(given.seeds)]
            means = {key: np.mean([one[key] for one in found], axis=0) for key in ("cur", "entropy", "ecu")}
            for stage, (cur, bits, ecu) in enumerate(zip(*means.values(), strict=True), 1):
                print(f"| {name}, {method} | {stage} of {len(means['cur'])} | {cur:.2f} | {bits:.2f} | {ecu:.3f} |")


if __name__ == "__main__":
    main()
