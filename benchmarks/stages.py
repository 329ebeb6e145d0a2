"""What the stages of RQ leave of an encoder's features: k-means against smoothed codes that learn (docs/quantizers.md).

    python benchmarks/stages.py --model runs/own_small/encoder-iter1 --dataset DIR --clips 400

The vectors are the patches' features on their 64 principal directions, scaled to length 1. Codebooks are set or trained
on four fifths of them, and measured on the rest.
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from bridle_hf import BridleConfig, BridleModel
from bridle_hf.codebook_metrics import code_counts, residual_energy, usage
from bridle_hf.data import load_examples
from bridle_hf.data.arguments import DataArguments
from bridle_hf.data.modalities import load_processor
from bridle_hf.evaluation.features import token_batches
from bridle_hf.quantization_bridle import Quantizer, build_quantizer

DIM, BATCH = 64, 4096
REFINED = {"codebook_weight": DIM}
ROWS = {
    "EMA, set by k-means": None,
    "knn_ce, weight 0.01": {"regularizer_weight": 0.01},
    "knn_ce, 0.01, commitment_weight 64": {"regularizer_weight": 0.01, "commitment_weight": DIM},
    "knn_ce, 0.01, codebook_weight 64": {"regularizer_weight": 0.01, **REFINED},
    "knn_ce, 0.1, codebook_weight 64": {"regularizer_weight": 0.1, **REFINED},
    "knn_ce, 1, codebook_weight 64": {"regularizer_weight": 1.0, **REFINED},
    "perplexity, 0.01, codebook_weight 64": {"regularizer": "perplexity", "regularizer_weight": 0.01, **REFINED},
    "none, codebook_weight 64": {"regularizer": "none", **REFINED},
}


def features(given: argparse.Namespace) -> torch.Tensor:
    """Features of the last layer of all patches of the clips, in random order: (n, 64), of length 1."""
    model = BridleModel.from_pretrained(given.model).eval()
    examples = load_examples(DataArguments(dataset=given.dataset), load_processor(given.model), for_training=False)
    every = max(1, len(examples) // given.clips)
    examples = examples.choose(range(0, every * given.clips, every)[: len(examples)])
    cls = int(model.config.use_cls_token)
    with torch.no_grad():
        batches = token_batches(model, examples, (None,), 20, None)
        z = torch.cat([tokens[:, 0, cls:].flatten(0, 1) for tokens, *_ in batches])
    z = z - z.mean(0)
    directions = torch.pca_lowrank(z, DIM, center=False)[2]
    return F.normalize(z @ directions, dim=-1)[torch.randperm(len(z))]


def train(quantizer: Quantizer, z: torch.Tensor, steps: int, learning_rate: float) -> None:
    """Minimise the quantizer's own loss on z (n, d); the learning rate falls to 0 over the last third."""
    optimizer = torch.optim.AdamW(quantizer.parameters(), learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 3 * (1 - step / steps)))
    for _ in tqdm(range(steps), leave=False, disable=None):
        out = quantizer(z[torch.randint(len(z), (BATCH,))])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
        quantizer.update_(out.stats)


@torch.no_grad()
def measure(quantizer: Quantizer, z: torch.Tensor) -> dict[str, Iterable[float]]:
    """Energy left, CUR and ECU of each stage on z (n, d)."""
    codes = quantizer.eval().encode(z)
    stages = torch.stack([F.embedding(codes[:, m], book.embed) for m, book in enumerate(quantizer.codebooks)], dim=1)
    used = usage(code_counts(codes, quantizer.codebook_size))
    return {"energy": residual_energy(z, stages), "cur": used["cur"], "ecu": used["ecu"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a row for each quantizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of clips")
    parser.add_argument("--clips", type=int, default=400, help="clips to take, evenly spaced")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    z = features(given)
    test, z = z.tensor_split([len(z) // 5])
    print(f"{len(z)} vectors, {len(test)} to measure\n")
    print("| codebooks | energy left | CUR | ECU |\n|---|---|---|---|")
    for name, options in ROWS.items():
        torch.manual_seed(0)
        inner = {"inner": "vector"} if options is None else {"inner": "smoothed", **options}
        config = BridleConfig(quantizer_config={"codebook_dim": DIM, "normalize": "once", **inner})
        quantizer = build_quantizer(config.quantizer_config)
        if options is None:
            quantizer.initialize_(z)
        else:
            train(quantizer.train(), z, given.steps, given.learning_rate)
        found = measure(quantizer, test).values()
        print(f"| {name} | {' | '.join(' '.join(f'{value:.2f}' for value in each) for each in found)} |", flush=True)


if __name__ == "__main__":
    main()
