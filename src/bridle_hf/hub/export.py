"""Export of our models as checkpoints of the reference code: the inverse of `load_official`."""

import torch

from ..layers_bridle import POSITION_TABLES, BridlePositions
from ..modeling_bridle import BridleForClassification, BridleForPreTraining
from . import key_maps
from .official import fill, prefix_of
from .sizes import PATCH_WEIGHT, TABLE


def to_official(model, source="bridle") -> dict[str, torch.Tensor]:
    """The weights of a model under the reference's names and in its shapes.

    `load_official` makes the same model of them, given what no shape tells. Only weights are written: a choice such as
    `normalize="once"`, which the reference does not have, stays behind in the configuration. A tokenizer that never saw
    data is left out: reading a file without one makes it again.

    Args:
        model: a `BridleForPreTraining`, `BridleModel`, `BridleTokenizer` or classification model.
        source (`str`): `"bridle"`, or `"audiomae"`, `"vit-mae"` or `"videomae"` for the encoder alone.

    Returns:
        `{name: tensor}`.

    Raises:
        ValueError: the reference has no place for a part or a weight (they are named).
    """
    if source != "bridle" and isinstance(model, BridleForPreTraining):
        model = model.bridle
    names = key_maps.backwards(_choose_map(model, source))
    state, homeless = {}, []
    for name, tensor in _weights(model).items():
        thirds = {part: key_maps.rename(f"{name}[{part}]", names) for part in "qkv"}
        if any(thirds.values()):
            for theirs, third in zip(thirds.values(), tensor.chunk(3), strict=True):
                if theirs is not None:  # the softmax does not see a bias of the keys
                    state[theirs] = third.clone()
        elif theirs := key_maps.rename(name, names):
            state[theirs] = _convert(name, tensor, model.config)
        elif not _is_implied(name, tensor, model.config):
            homeless.append(name)
    if homeless:
        raise ValueError(f"The format of {source} has no place for {', '.join(sorted(homeless))}.")
    for name in key_maps.DROPPED:
        if (codes := state.get(name.replace("cluster_size", "weight"))) is not None:
            state[name] = codes.new_zeros(len(codes))
    return state


def _choose_map(model, source: str) -> dict[str, str]:
    config = model.config
    reference, quantizer = key_maps.REFERENCE_FORMATS[config.modality], config.quantizer_config.type
    if source not in key_maps.SOURCES:
        raise ValueError(f"`source` is {source!r}; it takes one of {', '.join(map(repr, key_maps.SOURCES))}.")
    if source != "bridle" and (modality := key_maps.MASKED_AUTOENCODERS[source].modality) != config.modality:
        raise ValueError(f"`source` is {source!r}; it takes a model of modality {modality!r}, not {config.modality!r}.")
    if isinstance(model, BridleForClassification):
        return reference.classification
    if source != "bridle":
        return key_maps.MASKED_AUTOENCODERS[source].names
    if quantizer not in key_maps.QUANTIZERS:
        raise ValueError(f"`quantizer_config.type` is {quantizer!r}; the reference has 'residual' and 'vector'.")
    if len(set(sizes := config.quantizer_config.codebook_sizes)) > 1:
        raise ValueError(f"`quantizer_config.codebook_size` is {list(sizes)}; the reference has codebooks of one size.")
    return reference.pretraining(config.decoder_type, quantizer)


def _weights(model) -> dict[str, torch.Tensor]:
    """State and position tables under our full names. The reference computes the flat tables of videos, as we do."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, BridlePositions) and module.layout not in ("table", "flat"):
            weights[f"{name}.table"] = POSITION_TABLES[module.layout](module.table_grid, module.width)
    for cold_start, encoder in key_maps.COLD_START.items():
        weights = {name.replace(cold_start, encoder): tensor for name, tensor in weights.items()}
    if isinstance(model, BridleForPreTraining) and not model.tokenizer.quantizer.initialized:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("tokenizer.")}
    return {prefix_of(model) + name: tensor for name, tensor in weights.items()}


def _is_implied(name: str, tensor: torch.Tensor, config) -> bool:
    """Whether `load_official` fills in exactly this value when a file lacks the key."""
    filled = fill(name, tensor, True, config)
    return filled is not None and torch.equal(filled[0], tensor)


def _convert(name: str, tensor: torch.Tensor, config) -> torch.Tensor:
    """Our tensor as the reference's: the same numbers in its shape."""
    if name.endswith(PATCH_WEIGHT):
        return tensor.reshape(len(tensor), config.num_channels, *config.patch_size).clone()
    if name.endswith(TABLE):
        cls_rows = int(config.use_cls_token and not name.startswith("tokenizer.estimator."))
        return torch.cat([tensor.new_zeros(cls_rows, tensor.shape[1]), tensor])[None]
    if name.endswith(".embed") and config.quantizer_config.type == "residual":
        return torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])  # its row for padding
    if name.endswith(".initialized"):
        return tensor.reshape(1).clone()
    return tensor.clone()
