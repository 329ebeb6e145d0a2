"""Parameter groups: what decays, and how fast each layer learns."""

import re

import torch
from torch import nn


def layer_id(name: str, num_layers: int) -> int:
    """Depth of a parameter of a classifier: 0 for the embeddings, i + 1 for layer i, `num_layers` + 1 for the head."""
    name = name.removeprefix("base_model.model.")  # of a peft model
    if match := re.match(r"bridle\.layers\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if name.startswith("bridle.embeddings.") else num_layers + 1


def check_finite(model: nn.Module, source: str) -> None:
    """Raise a `ValueError` where weights of a model hold NaN or inf. `source` is where they come from."""
    bad = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(f"{source}, whose weights hold NaN or inf: {bad[0]}{more}.")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict]:
    """Groups for an optimizer: biases, norms and every other vector or scalar (such as `log_t`) do not decay.

    Args:
        model: its parameters that require a gradient are grouped.
        learning_rate: of the last layer.
        weight_decay: of matrices and of tokens (CLS, mask).
        layer_decay: each layer further from the head of a `BridleFor...Classification` learns by this factor more
            slowly (reference code: 0.75); None is the same rate everywhere.

    Returns:
        Groups with `params`, `names`, `lr` and `weight_decay`.
    """
    groups = {}
    num_layers = model.config.num_hidden_layers if layer_decay is not None else 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.endswith("bias") else weight_decay
        rate = learning_rate
        if layer_decay is not None:
            rate *= layer_decay ** (num_layers + 1 - layer_id(name, num_layers))
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
