"""Warnings that a run logs while it trains: signs of a collapse, each with a remedy."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from ..codebook_metrics import few_codes

NO_BETTER_THAN_CHANCE = 0.98  # of log K
EASY = "Codes that say little make an easy task, and low losses with it"
OF_THE_TOKENIZER = (
    f"{EASY}. A longer tokenizer phase helps, tokenizer.steps, and so do larger batches: docs/guide.md, What to expect"
)
OF_THE_CLIPS = (
    "The codes of this phase come from a random projection, so the patches themselves are similar. Check for empty and "
    "padded clips (bridle check), and whether the processor's mean and deviation fit the clips (bridle measure)"
)


def codebook_remarks(
    record: Mapping[str, Any], sizes: Sequence[int], vectors: int, cold_start: bool = True
) -> dict[str, str]:
    """Warn of codebooks that use few of their codes.

    Args:
        record: as the run logs it, with "codebooks".
        sizes: K of each codebook.
        vectors: how many a forward pass gave codes to, at most.
        cold_start: whether the first phase predicts codes of a random projection.

    Returns:
        Subject -> warning, empty where there is nothing to warn of; the same holds for the functions below.
    """
    few = few_codes(record["codebooks"]["perplexity"], sizes, vectors)
    remedy = OF_THE_CLIPS if cold_start and record.get("phase") == "encoder-iter1" else OF_THE_TOKENIZER
    return {"codebooks": f"{'; '.join(few)}. {remedy}"} if few else {}


def prediction_remarks(record: Mapping[str, Any], sizes: Sequence[int]) -> dict[str, str]:
    """Warn of an encoder that predicts masked codes no better than by chance."""
    # means over the codebooks, as the loss is; a tokenizer phase predicts nothing
    found, chance = sum(record.get("cross_entropy", [])) / len(sizes), sum(map(log, sizes)) / len(sizes)
    if found < NO_BETTER_THAN_CHANCE * chance:
        return {}
    return {
        "prediction": f"the encoder has not learned to predict masked codes: their cross-entropy is {found:.2f} nats, "
        f"and {chance:.2f} by chance. It may need more steps, or another learning rate (encoder.learning_rate)"
    }


def feature_remarks(record: Mapping[str, Any]) -> dict[str, str]:
    """Warn of features that have collapsed to one direction."""
    rank = record.get("evaluate", {}).get("rankme")
    if rank is None or rank >= 2:
        return {}
    return {
        "features": f"all features of the clips to evaluate on lie in one direction (RankMe {rank:.1f}): the encoder "
        "has collapsed. Look at processor.mean and std, and at a lower learning rate (encoder.learning_rate)"
    }
