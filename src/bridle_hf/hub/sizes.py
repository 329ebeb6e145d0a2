"""The configuration behind a reference checkpoint, read off the shapes of its weights.

`found` maps our names to (tensor, reference keys): what `convert` makes of a file by its key map.
"""

from dataclasses import fields
from math import prod

import torch
from huggingface_hub.errors import StrictDataclassError

from ..configuration_bridle import CHOICES, MODALITY_DEFAULTS, BridleConfig, BridleQuantizerConfig
from ..layers_bridle import POSITION_TABLES
from .key_maps import REFERENCE_FORMATS, reference_name

PATCH_WEIGHT = "patch_embeddings.projection.weight"
TABLE = "positions.table"
# Axes of the weights that sizes are read from, by the ends of their names.
AXES = {
    PATCH_WEIGHT: (4, 5),
    TABLE: (3,),
    "embeddings.cls_token": (3,),
    "fc1.weight": (2,),
    "embed.weight": (2,),
    "head.weight": (2,),
    "classifier.weight": (2,),
    ".embed": (2,),
}


class _Shapes(dict):
    """Our name -> shape in the file; asking for one it lacks is the error the user should read."""

    def __init__(self, found, names):
        super().__init__((name, tuple(tensor.shape)) for name, (tensor, _) in found.items())
        self.names = names

    def __missing__(self, name):
        raise ValueError(f"The checkpoint has no key {reference_name(name, self.names)}.")

    def count(self, prefix) -> int:
        """How many layers or codebooks are numbered after `prefix`."""
        return len({name[len(prefix) :].split(".")[0] for name in self if name.startswith(prefix)})


def infer_config(found: dict, names: dict, modality: str, overrides: dict) -> BridleConfig:
    """The configuration that fits all of `found`; what no shape tells is `BridleConfig`'s default, or the override.

    Raises:
        ValueError: a weight the sizes are read from is missing, or an override is unknown, contradicts the weights or
            makes no configuration.
    """
    shapes, reference = _Shapes(found, names), REFERENCE_FORMATS[modality]
    root = "bridle." if shapes.count("bridle.") or not shapes.count("tokenizer.") else "tokenizer.encoder."
    hidden_size, num_channels, *patch_size = shapes[root + "embeddings." + PATCH_WEIGHT]
    if len(patch_size) != len(MODALITY_DEFAULTS[modality]["patch_size"]):
        raise ValueError(f"`modality` is {modality!r}; the checkpoint's patches have {len(patch_size)} axes.")
    sizes = {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": tuple(patch_size),
        "num_hidden_layers": shapes.count(root + "layers."),
        "intermediate_size": shapes[root + "layers.0.mlp.fc1.weight"][0],
        "use_cls_token": root + "embeddings.cls_token" in shapes,
    }
    defaults = {"preset": "official"}
    if shapes.count("decoder."):
        sizes["decoder_hidden_size"] = shapes["decoder.embed.weight"][0]
        sizes["decoder_num_hidden_layers"] = shapes.count("decoder.layers.")
        tau = shapes.get("decoder.layers.0.attention.tau")
        sizes["decoder_type"] = "swin" if tau else "plain"
        if tau:
            sizes["decoder_num_attention_heads"] = tau[0]
    if shapes.count("tokenizer.estimator."):
        sizes["estimator_hidden_size"] = shapes["tokenizer.estimator.embed.weight"][0]
        sizes["estimator_num_hidden_layers"] = shapes.count("tokenizer.estimator.layers.")
        if reference.shares_decoder_class:
            heads = MODALITY_DEFAULTS[modality]["decoder_num_attention_heads"]
            defaults["estimator_num_attention_heads"] = heads
    if "classifier.weight" in shapes and "id2label" not in overrides:
        defaults["num_labels"] = shapes["classifier.weight"][0]
    _check_overrides("", overrides, BridleConfig, sizes)
    _check_kinds(overrides, len(patch_size))
    if (tables := position_tables(found, sizes["use_cls_token"])) or reference.stores_positions:
        defaults |= _infer_positions(tables, shapes[root + "embeddings." + TABLE], sizes, modality, overrides)
    quantizer = overrides.get("quantizer_config") or {}
    quantizer_sizes = _infer_quantizer(found, shapes, quantizer)
    _check_overrides("quantizer_config.", quantizer, BridleQuantizerConfig, quantizer_sizes)
    overrides = {**overrides, "quantizer_config": {**quantizer_sizes, **quantizer}}
    try:
        return BridleConfig(**{"modality": modality, **defaults, **sizes, **overrides})
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def check_axes(found: dict):
    """Raise a `ValueError` for a weight that sizes are read from and that has other axes."""
    for name, (tensor, keys) in found.items():
        axes = next((axes for end, axes in AXES.items() if name.endswith(end)), None)
        if axes and tensor.dim() not in axes:
            takes = " or ".join(map(str, axes))
            raise ValueError(f"The checkpoint's {keys[0]} has {tensor.dim()} axes; it takes {takes}.")


def _check_kinds(overrides: dict, axes: int):
    """Check what is worked with before `BridleConfig` checks it."""
    size, layout = overrides.get("input_size"), overrides.get("position_layout")
    if "input_size" in overrides and not (
        isinstance(size, list | tuple) and len(size) == axes and all(isinstance(each, int) for each in size)
    ):
        raise ValueError(f"`input_size` is {size!r}; it takes {axes} whole numbers.")
    if layout not in (None, *(layouts := CHOICES["position_layout"])):
        raise ValueError(f"`position_layout` is {layout!r}; it takes one of {', '.join(map(repr, layouts))}.")
    if not isinstance(quantizer := overrides.get("quantizer_config") or {}, dict):
        raise ValueError(f"`quantizer_config` is {quantizer!r}; it takes a mapping, such as {{num_codebooks: 4}}.")


def _check_overrides(where: str, overrides: dict, config_class, sizes: dict):
    known = {entry.name for entry in fields(config_class)} | {"num_labels"}
    if extra := set(overrides) - known:
        raise ValueError(f"`{where}{min(extra)}` is no field of {config_class.__name__}.")
    for name, size in sizes.items():
        given = overrides.get(name, size)
        if (tuple(given) if isinstance(given, list) else given) != size:
            raise ValueError(f"`{where}{name}` is {given!r}; the checkpoint's weights say {size!r}.")


def position_tables(found: dict, use_cls_token: bool) -> dict[str, torch.Tensor]:
    """Our name -> (N, D): the stored position tables without the row of the CLS token, which the estimator has not."""
    return {
        name: tensor[0, int(use_cls_token and not name.startswith("tokenizer.estimator.")) :]
        for name, (tensor, _) in found.items()
        if name.endswith(TABLE)
    }


def _infer_positions(tables, shape, sizes, modality, overrides) -> dict:
    """`input_size` and `position_layout` from the stored tables and the shape (1, 1 + N, D) of the encoder's."""
    patches, patch = shape[1] - int(sizes["use_cls_token"]), sizes["patch_size"]
    if "input_size" in overrides:
        grid = tuple(s // p for s, p in zip(overrides["input_size"], patch, strict=True))
    else:
        grid = REFERENCE_FORMATS[modality].grid(patches, patch)
    if prod(grid) != patches:
        raise ValueError(
            f"`input_size` is {overrides.get('input_size')}; it must make {patches} patches of {patch}, "
            "as many as the checkpoint has positions for."
        )
    wanted = overrides.get("position_layout")
    layout = wanted or "grid"
    if layout != "table" and not all(_is_computed(table, layout, grid) for table in tables.values()):
        if wanted is not None:
            raise ValueError(f"`position_layout` is {wanted!r}; the stored position tables are others: use 'table'.")
        layout = "table"
    return {"input_size": tuple(g * p for g, p in zip(grid, patch, strict=True)), "position_layout": layout}


def _is_computed(table, layout, grid) -> bool:
    # equal but for the rounding of the sines and cosines of large angles
    return torch.allclose(table.float(), POSITION_TABLES[layout](grid, table.shape[1]), rtol=0, atol=1e-5)


def _infer_quantizer(found, shapes, chosen) -> dict:
    if shapes.count("tokenizer."):
        rows, dim = shapes["tokenizer.quantizer.codebooks.0.embed"]
        is_vector = found["tokenizer.quantizer.codebooks.0.embed"][1][0].endswith("quantizer.embedding.weight")
        return {
            "type": "vector" if is_vector else "residual",
            "num_codebooks": shapes.count("tokenizer.quantizer.codebooks."),
            "codebook_size": rows if is_vector else rows - 1,  # a residual codebook ends with a row for padding
            "codebook_dim": dim,
        }
    if shapes.count("decoder."):
        logits = shapes["decoder.head.weight"][0]
        books = chosen.get("num_codebooks") or BridleQuantizerConfig(type=chosen.get("type", "residual")).num_codebooks
        if logits % books:
            raise ValueError(
                f"`quantizer_config.num_codebooks` is {books}; it must divide the decoder's {logits} logits."
            )
        return {"num_codebooks": books, "codebook_size": logits // books}
    return {}
