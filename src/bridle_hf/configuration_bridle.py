"""Configuration of BRIDLE: one grid, four parts (encoder, tokenizer, decoder, estimator), one quantizer."""

import sys
from math import inf, prod

import torch
from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .codebook_bridle import MOST_CODES, check_choice, check_range, sizes_of
from .fixed_quantization_bridle import check_levels
from .learned_quantization_bridle import (
    DISTANCES,
    ESTIMATORS,
    GUMBELS,
    MOST_WEIGHT,
    REGULARIZERS,
    TEMPERATURES,
    check_gumbel_schedule,
)
from .quantization_bridle import (
    CODEBOOK_INITS,
    EMA_MODES,
    NORMALIZATIONS,
    QUANTIZERS,
    arguments,
    inner_types,
)

# Of each kind of input. The blocks of decoder and estimator and the masks are the paper's (arXiv 2502.02118, section 4
# and appendix C); sizes of inputs and patches, widths, heads and the Swin window are the reference code's.
SPECTROGRAM_DEFAULTS = {
    "input_size": (1024, 128),
    "patch_size": (16, 16),
    "num_channels": 1,
    "decoder_type": "swin",
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 16,
    "decoder_num_attention_heads": 16,
    "estimator_num_hidden_layers": 3,
    "mask_ratio": 0.8,
    "mask_type": "random",
    "use_cls_token": True,
    "position_layout": "grid",
    "interpolate_positions": False,
}
MODALITY_DEFAULTS = {
    "audio": SPECTROGRAM_DEFAULTS,
    "image": SPECTROGRAM_DEFAULTS | {"input_size": (224, 224), "num_channels": 3, "interpolate_positions": True},
    "video": {
        "input_size": (16, 224, 224),
        "patch_size": (2, 16, 16),
        "num_channels": 3,
        "decoder_type": "plain",
        "decoder_hidden_size": 384,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 6,
        "estimator_num_hidden_layers": 4,
        "mask_ratio": 0.9,
        "mask_type": "tube",
        "use_cls_token": True,
        "position_layout": "grid",
        "interpolate_positions": True,
    },
}

# Where the reference code departs from the paper. `preset="official"` fills in the code's choice.
OFFICIAL_OVERRIDES = {
    "audio": {"position_layout": "wrapped"},
    "image": {"decoder_type": "plain"},
    "video": {"position_layout": "flat", "use_cls_token": False},
}
QUANTIZER_PRESETS = {
    "default": {"normalize": "once", "ema_mode": "counts", "reset": "periodic", "reset_min_count": 0},
    "official": {"normalize": "per_stage", "ema_mode": "official", "reset": "first_batch", "reset_min_count": 1},
}

CHOICES = {
    "preset": ("default", "official"),
    "modality": ("audio", "image", "video"),
    "decoder_type": ("swin", "plain"),
    "mask_type": ("random", "2d", "tube"),
    "position_layout": ("grid", "wrapped", "flat", "table"),
    "pooling": ("mean", "cls"),
}
# The most that a size may be: far above any model, and few enough to be refused before memory or hours are spent on a
# config.json that somebody else wrote.
MOST = {
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "num_channels": 2**12,
    "num_codebooks": 2**10,
    "codebook_size": MOST_CODES,
    "codebook_dim": 2**16,
    "kmeans_iterations": 2**16,
    "reset_interval": 2**31,
    "reset_min_count": 2**31,
    "num_neighbors": 2**24,
    "num_labels": 2**20,
}
MOST_PATCHES, MOST_IN_A_PATCH, MOST_IN_CODEBOOKS = 2**20, 2**20, 2**31
# The stacks of layers, by the prefix of their fields.
PARTS = ("", "decoder_", "estimator_")
# Where transformers' Auto classes find the models in a folder that carries the code (`trust_remote_code=True`).
AUTO_MAP = {
    "AutoConfig": "configuration_bridle.BridleConfig",
    "AutoModel": "modeling_bridle.BridleModel",
    "AutoModelForPreTraining": "modeling_bridle.BridleForPreTraining",
    "AutoModelForAudioTokenization": "modeling_bridle.BridleTokenizer",
    "AutoModelForAudioClassification": "modeling_bridle.BridleForAudioClassification",
    "AutoModelForImageClassification": "modeling_bridle.BridleForImageClassification",
    "AutoModelForVideoClassification": "modeling_bridle.BridleForVideoClassification",
}
QUANTIZER_CHOICES = {
    "preset": ("default", "official"),
    "normalize": NORMALIZATIONS,
    "ema_mode": EMA_MODES,
    "codebook_init": CODEBOOK_INITS,
    "reset": ("first_batch", "periodic", "never"),
    "distance": DISTANCES,
    "estimator": ESTIMATORS,
    "gumbel": GUMBELS,
    "regularizer": REGULARIZERS,
}


def _check_choices(config, choices):
    for name, allowed in choices.items():
        check_choice(name, getattr(config, name), allowed)


def _check_inherited(config, kwargs):
    """Check inherited fields whose types transformers relies on before it validates them, and `num_labels` in `kwargs`,
    because transformers creates a name for each label."""
    if isinstance(kwargs.get("num_labels"), int):
        _check_size("num_labels", kwargs["num_labels"])
    if not isinstance(config.id2label, dict | None):
        raise ValueError(f"`id2label` is {config.id2label!r}; it takes a dict of names, one per class number.")
    if isinstance(config.dtype, str) and not isinstance(getattr(torch, config.dtype, None), torch.dtype):
        raise ValueError(f"`dtype` is {config.dtype!r}; it takes the name of one of torch's, such as 'float32'.")


def _either(values):
    return " or ".join(map(repr, values))


def _check_size(name, value, part=""):
    if not 1 <= value <= MOST[name]:
        raise ValueError(f"`{part}{name}` is {value}; it takes a whole number from 1 to {MOST[name]}.")


def _check_sizes(config, names, part=""):
    for name in names:
        _check_size(name, getattr(config, part + name), part)


def _check_product(names, values, most):
    if prod(values) > most:
        raise ValueError(f"{names} are {' x '.join(map(str, values))}; their product may be at most {most}.")


@strict
class BridleQuantizerConfig(PreTrainedConfig):
    r"""
    The quantizer inside the tokenizer.

    Args:
        type (`str`): one codebook: `"vector"` (EMA, the baseline), `"gradient"` (codes are parameters), `"simvq"`
            (frozen codes times a learned map), `"smoothed"` (softmax over the codes) or `"fsq"` (rounded numbers, no
            codebook). Several of them: `"residual"` (RQ, section 3.1 of the paper) or `"product"` (on slices of the
            vector). Or `"random_projection"` (frozen, as in BEST-RQ).
        inner (`str`): type of the codebooks inside `"residual"` and `"product"`; `"fsq"` in `"product"` only.
        num_codebooks (`int`): M, codes per patch; 1 for the types of one codebook.
        codebook_size (`int` or `list[int]`): K, codes per codebook; `"residual"` and `"product"` also take a list K_m
            of one number per codebook. `"fsq"` has `prod(levels)`.
        codebook_dim (`int`): d, the width of a code.
        normalize (`str`): `"once"` scales z to unit length before the first stage, `"per_stage"` searches with the unit
            length residual but subtracts from the raw one (the reference code), `"none"` leaves eq. 1-3 as they are.
        ema_mode (`str`): `"counts"` is eq. 9-13; `"official"` blends the unit length batch mean into each used code.
        ema_decay (`float`), ema_epsilon (`float`): g and eps of eq. 9-13.
        commitment_weight (`float`): beta of eq. 5; the default is that of the class: 0.25 for `"vector"` (as in the
            reference code), 1 for `"gradient"` and `"simvq"` (T. Morita, 2026), 0 for `"smoothed"`.
        codebook_init (`str`): `"kmeans"`, `"sample"` (random input vectors) or `"uniform"`: in [-s, s]
            with s the root mean square of the stage's input in each dimension (the paper's [-1, 1] where its variance
            is 1), codes that no input chooses being moved to random inputs.
        kmeans_iterations (`int`), kmeans_samples_per_code (`int`): length of the k-means run, and its sample.
        reset (`str`): when dead codes are replaced in a tokenizer phase: `"first_batch"`, `"periodic"` or `"never"`.
        reset_interval (`int`): steps between resets.
        reset_threshold (`float`), reset_min_count (`int`): what a dead code is. With `reset_min_count` 0, one whose
            averaged count is below this share of the mean count. Above 0, one that fewer vectors of the step choose,
            over all processes: 1 is T_u of the paper's table 5, and what the reference code does.
        soft_codes (`int`): of EMA codebooks: 0 for the nearest code, k for a distance-weighted mean of the k nearest.
        quantizer_dropout (`float`): of `"residual"`: share of the samples that, while the tokenizer trains, only the
            first m of the codebooks quantize, m random.
        distance (`str`): of the search of `"gradient"` and `"simvq"`: `"euclidean"` or `"cosine"`.
        estimator (`str`): their gradient: `"ste"` (straight-through) or `"rotation"`.
        temperature (`float`): of the softmax of `"smoothed"` at the start, 0.01 to 1; it is learned.
        gumbel (`str`): noise of `"smoothed"`: `"none"`, `"soft"` or `"hard"` (one-hot with straight-through gradient).
        gumbel_schedule (`tuple[float]`): start, end and decay per step of the Gumbel temperature.
        regularizer (`str`): of `"smoothed"`: `"knn_ce"`, `"knn_l2"`, `"perplexity"` or `"none"`.
        regularizer_weight (`float`), num_neighbors (`int`), num_vertices (`int`): its weight; for the KNN terms the
            neighbours per vertex, and the number of vertices drawn per step (all when left out).
        codebook_weight (`float`): of `"smoothed"`: weight of a loss that pulls each code towards the vectors assigned
            to it; the paper has no such loss.
        levels (`tuple[int]`): of `"fsq"`: the number of values of each dimension.
        preset (`str`): `"default"` or `"official"`: what `normalize`, `ema_mode`, `reset` and `reset_min_count`
            are when left out.
    """

    model_type = "bridle_quantizer"
    base_config_key = "quantizer_config"

    type: str = "residual"
    inner: str = "vector"
    num_codebooks: int | None = None
    codebook_size: int | list[int] | tuple[int, ...] | None = None
    codebook_dim: int = 256
    normalize: str | None = None
    ema_mode: str | None = None
    ema_decay: float | int = 0.99
    ema_epsilon: float | int = 1e-5
    commitment_weight: float | int | None = None
    codebook_init: str = "kmeans"
    kmeans_iterations: int = 10
    kmeans_samples_per_code: int = 64
    reset: str | None = None
    reset_interval: int = 100
    reset_threshold: float | int = 0.1
    reset_min_count: int | None = None
    soft_codes: int = 0
    quantizer_dropout: float | int = 0.0
    distance: str = "euclidean"
    estimator: str = "ste"
    temperature: float | int = 0.1
    gumbel: str = "none"
    gumbel_schedule: list[float | int] | tuple[float | int, ...] = (1.0, 1.0, 1.0)
    regularizer: str = "knn_ce"
    regularizer_weight: float | int = 1.0
    num_neighbors: int = 1
    num_vertices: int | None = None
    codebook_weight: float | int = 0.0
    levels: list[int] | tuple[int, ...] = (8, 5, 5, 5)
    preset: str = "default"

    def __post_init__(self, **kwargs):
        for name, value in QUANTIZER_PRESETS.get(self.preset, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        # an unknown type is named by `validate_quantizer`, which runs after this
        sizes = QUANTIZERS.get(self.type, QUANTIZERS["vector"])
        codebook = QUANTIZERS.get(self.codebook_type, QUANTIZERS["vector"])
        if self.num_codebooks is None:
            several = isinstance(self.codebook_size, list | tuple) and sizes.num_codebooks > 1
            self.num_codebooks = len(self.codebook_size) if several else sizes.num_codebooks
        if self.codebook_size is None:
            self.codebook_size = prod(self.levels) if self.codebook_type == "fsq" else sizes.codebook_size
        if self.commitment_weight is None:
            weight = arguments(codebook.inner_class).get("commitment_weight")
            self.commitment_weight = 0.25 if weight is None else weight.default
        _check_inherited(self, kwargs)
        super().__post_init__(**kwargs)

    @property
    def codebook_type(self) -> str:
        """The type of each codebook: `inner` where there are several, else `type`."""
        return self.inner if self.type in ("residual", "product") else self.type

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_m of each codebook."""
        return sizes_of(self.codebook_size, self.num_codebooks)

    def validate_quantizer(self):
        check_choice("type", self.type, tuple(QUANTIZERS))
        check_choice("inner", self.inner, inner_types("product"))
        _check_choices(self, QUANTIZER_CHOICES)
        sizes = ("num_codebooks", "codebook_dim", "kmeans_iterations", "reset_interval", "num_neighbors")
        _check_sizes(self, sizes)
        if not isinstance(self.codebook_size, int) and self.type not in ("residual", "product"):
            raise ValueError(
                f"`codebook_size` is {list(self.codebook_size)}; a quantizer of type {self.type!r} takes one number. "
                "Types 'residual' and 'product' take one per codebook, too."
            )
        for size in self.codebook_sizes:
            _check_size("codebook_size", size)
        smallest, largest = min(self.codebook_sizes), max(self.codebook_sizes)
        if self.codebook_type != "fsq":  # which has no table of codes
            held = self.num_codebooks, largest, self.codebook_dim
            _check_product("`num_codebooks`, `codebook_size` and `codebook_dim`", held, MOST_IN_CODEBOOKS)
        if self.type == "residual" and self.inner not in inner_types("residual"):
            raise ValueError(
                f"`inner` is {self.inner!r}; type 'residual' takes {_either(inner_types('residual'))}. "
                f"{self.inner!r} may stand inside type 'product'."
            )
        if self.num_codebooks != 1 and QUANTIZERS[self.type].num_codebooks == 1:
            outer = [name for name in ("residual", "product") if self.type in inner_types(name)]
            raise ValueError(
                f"`num_codebooks` is {self.num_codebooks}; a quantizer of type {self.type!r} takes 1. "
                f"For several: type {_either(outer)} with inner {self.type!r}."
            )
        if self.type == "product" and self.codebook_dim % self.num_codebooks:
            raise ValueError(
                f"`codebook_dim` is {self.codebook_dim}; a quantizer of type 'product' takes a multiple of "
                f"`num_codebooks`, {self.num_codebooks}."
            )
        normalizations = QUANTIZERS[self.codebook_type].cls.normalizations
        if self.normalize not in normalizations:
            raise ValueError(
                f"`normalize` is {self.normalize!r}; {self.codebook_type!r} takes {_either(normalizations)}."
            )
        check_gumbel_schedule(self.gumbel_schedule)
        for name in ("commitment_weight", "regularizer_weight", "codebook_weight"):
            check_range(name, getattr(self, name), 0, MOST_WEIGHT)
        check_range("temperature", self.temperature, *TEMPERATURES)
        check_range("ema_decay", self.ema_decay, 0, 1)
        check_range("reset_min_count", self.reset_min_count, 0, MOST["reset_min_count"])
        check_range("soft_codes", self.soft_codes, 0, smallest, "`codebook_size`")
        if self.num_vertices is not None:
            check_range("num_vertices", self.num_vertices, 1, smallest, "`codebook_size`")
        check_range("quantizer_dropout", self.quantizer_dropout, 0, 1)
        if self.quantizer_dropout > 0 and self.type != "residual":
            raise ValueError(
                f"`quantizer_dropout` is {self.quantizer_dropout}; a quantizer of type {self.type!r} takes 0, since it "
                "has no stages to leave out. Type 'residual' has."
            )
        check_levels(self.levels)
        if self.codebook_type == "fsq" and self.codebook_size != prod(self.levels):
            raise ValueError(
                f"`codebook_size` is {self.codebook_size}; 'fsq' has {prod(self.levels)}, the product of `levels` "
                f"{tuple(self.levels)}, and needs no `codebook_size`."
            )


@strict
class BridleConfig(PreTrainedConfig):
    r"""
    Configuration of every BRIDLE model. `modality` picks the defaults (`MODALITY_DEFAULTS`); each can be set by itself.

    Args:
        modality (`str`): `"audio"`, `"image"` or `"video"`.
        preset (`str`): `"default"` (the paper, read sensibly) or `"official"` (the reference code as it runs).
        input_size (`tuple[int]`): (frames, mel bins), (height, width) or (frames, height, width). Inputs of another
            size work wherever `patch_size` divides them.
        patch_size (`tuple[int]`): size of one patch along the same axes.
        num_channels (`int`): input channels. Sounds of several have inputs (B, frames, channels, mel bins).
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`): the encoder, ViT-B by default.
            `intermediate_size` is four times `hidden_size` when left out.
        drop_path_rate (`float`): stochastic depth of the last encoder layer, growing linearly with depth.
        use_cls_token (`bool`): whether a CLS token goes through the encoder with the patches.
        position_layout (`str`): `"grid"` sin-cos of the true grid; `"wrapped"` the reference code's audio table;
            `"flat"` sin-cos of the patch number (reference video); `"table"` a stored table per part.
        position_size (`tuple[int]`): the `input_size` that positions are made for, that of pretraining; `input_size`
            when left out. A saved config keeps it where `input_size` is changed.
        interpolate_positions (`bool`): of images and videos, whether a height or width above that of `position_size` is
            spread over the same positions; layouts `"grid"` and `"table"`. Otherwise, and in sounds and along time
            always, patches further on have positions that pretraining has not seen, which a table does not hold.
        decoder_type (`str`): `"swin"` or `"plain"`.
        decoder_window_size, decoder_shift_size (`tuple[int]`): the Swin window and the shift of every other block.
        estimator_hidden_size (`int`): width of the estimator, `hidden_size` when left out.
        mask_ratio (`float`), mask_type (`str`): share of masked patches; `"random"`, `"2d"` (whole rows and columns of
            the grid) or `"tube"` (the same places in every frame).
        predict_ratio (`float`): share of the masked patches to predict, drawn with each mask. A plain decoder does not
            even see the others and gets cheaper (partial reconstruction, arXiv 2401.14391).
        soft_targets (`int`): of EMA codebooks: 0 to predict the nearest code of each codebook, k to predict the k
            nearest, with shares by inverse squared distance as labels.
        codebook_loss_weight, cosine_loss_weight (`float`): weights of eq. 5 and eq. 6 in the tokenizer loss (eq. 7;
            the paper gives no number).
        joint_tokenizer_weight (`float`): alpha of eq. 8.
        cold_start (`bool`): whether a new tokenizer is the frozen random projection of iteration 1, which
            `BridleTokenizer.reset_` replaces; in a saved config, whether the weights beside it are those of one. Its
            codebooks are EMA ones of the same shape, set by k-means, where those of the quantizer learn by gradient.
        cold_start_positions (`bool`): whether positions are added before that projection (the reference code does).
        pooling (`str`): `"mean"` over patches or `"cls"`.
        classifier_mask_ratio (`tuple[float]`): what is hidden while a classifier trains. One number: that share of the
            patches, at random (the paper's 1D masking). One per axis of the grid: that share of its rows and of its
            columns (2D).
        quantizer_config (`dict` or `BridleQuantizerConfig`): the quantizer.
    """

    model_type = "bridle"
    keys_to_ignore_at_inference = ["losses", "quantizer_stats"]  # which `Trainer` cannot gather
    sub_configs_defaults = {"quantizer_config": BridleQuantizerConfig}

    modality: str = "audio"
    preset: str = "default"
    input_size: list[int] | tuple[int, ...] | None = None
    patch_size: list[int] | tuple[int, ...] | None = None
    num_channels: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    use_cls_token: bool | None = None
    position_layout: str | None = None
    position_size: list[int] | tuple[int, ...] | None = None
    interpolate_positions: bool | None = None
    decoder_type: str | None = None
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int | None = None
    decoder_num_attention_heads: int | None = None
    decoder_window_size: list[int] | tuple[int, ...] = (4, 4)
    decoder_shift_size: list[int] | tuple[int, ...] = (2, 0)
    estimator_hidden_size: int | None = None
    estimator_num_hidden_layers: int | None = None
    estimator_num_attention_heads: int | None = None
    mask_ratio: float | int | None = None
    mask_type: str | None = None
    predict_ratio: float | int = 1.0
    soft_targets: int = 0
    codebook_loss_weight: float | int = 1.0
    cosine_loss_weight: float | int = 1.0
    joint_tokenizer_weight: float | int = 0.5
    cold_start: bool = True
    cold_start_positions: bool | None = None
    pooling: str = "mean"
    classifier_mask_ratio: list[float | int] | tuple[float | int, ...] = (0.0, 0.0)
    quantizer_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        defaults = dict(MODALITY_DEFAULTS.get(self.modality, {}))
        if self.preset == "official":
            defaults.update(OFFICIAL_OVERRIDES.get(self.modality, {}))
        defaults["intermediate_size"] = 4 * self.hidden_size
        defaults["estimator_hidden_size"] = self.hidden_size
        defaults["estimator_num_attention_heads"] = self.num_attention_heads
        defaults["cold_start_positions"] = self.preset == "official"
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.position_size is None:
            self.position_size = self.input_size
        if not isinstance(self.quantizer_config, PreTrainedConfig):
            self.quantizer_config = BridleQuantizerConfig(**{"preset": self.preset, **(self.quantizer_config or {})})
        _check_inherited(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_bridle(self):
        _check_choices(self, CHOICES)
        for part in PARTS:
            _check_sizes(self, ("hidden_size", "num_hidden_layers", "num_attention_heads"), part)
        _check_sizes(self, ("intermediate_size", "num_channels"))
        axes = len(MODALITY_DEFAULTS[self.modality]["patch_size"])
        if not len(self.input_size) == len(self.patch_size) == axes:
            raise ValueError(
                f"`patch_size` is {tuple(self.patch_size)} and `input_size` {tuple(self.input_size)}; "
                f"modality {self.modality!r} takes {axes} numbers each, one per axis."
            )
        for name in ("input_size", "position_size"):
            sizes = tuple(getattr(self, name))
            if len(sizes) != axes or any(p < 1 or s < p or s % p for s, p in zip(sizes, self.patch_size, strict=True)):
                raise ValueError(f"`patch_size` {tuple(self.patch_size)} does not divide `{name}` {sizes}.")
        if self.interpolate_positions and self.modality == "audio":
            raise ValueError("`interpolate_positions` is True; modality 'audio' takes False.")
        _check_product("the patches along the axes of `input_size`", self.grid, MOST_PATCHES)
        in_a_patch = *self.patch_size, self.num_channels
        _check_product("`patch_size` and `num_channels`", in_a_patch, MOST_IN_A_PATCH)
        position_axes = 1 if self.position_layout == "flat" else axes
        for part in PARTS:
            size, heads = getattr(self, part + "hidden_size"), getattr(self, part + "num_attention_heads")
            if size % heads:
                raise ValueError(
                    f"`{part}hidden_size` {size} is not a multiple of `{part}num_attention_heads` {heads}."
                )
            if self.position_layout != "table" and size % (2 * position_axes):
                raise ValueError(
                    f"`{part}hidden_size` is {size}; sin-cos positions over {position_axes} axes take a multiple of "
                    f"{2 * position_axes}."
                )
        window, shift = tuple(self.decoder_window_size), tuple(self.decoder_shift_size)
        if self.decoder_type == "swin" and not (
            len(window) == len(shift) == axes and all(0 <= s < w for w, s in zip(window, shift, strict=True))
        ):
            raise ValueError(
                f"`decoder_window_size` is {window} and `decoder_shift_size` {shift}; "
                f"they take {axes} numbers each, one per axis, and a shift smaller than its window."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes a number in [0, 1).")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}; it takes one of transformers', such as 'gelu'.")
        for name, least in (("layer_norm_eps", sys.float_info.min), ("initializer_range", 0)):
            if not least <= getattr(self, name) < inf:
                takes = "a positive number" if least else "a number from 0 on"
                raise ValueError(f"`{name}` is {getattr(self, name)}; it takes {takes}.")
        numbers, names = sorted(self.id2label), list(self.id2label.values())
        if numbers != list(range(len(names))) or len(set(names)) < len(names):
            raise ValueError(f"`id2label` is {self.id2label}; it takes a name of its own for each number from 0 on.")
        for name in ("codebook_loss_weight", "cosine_loss_weight", "joint_tokenizer_weight"):
            check_range(name, getattr(self, name), 0, MOST_WEIGHT)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` is {self.mask_ratio}; it takes a number between 0 and 1.")
        if not 0 < self.predict_ratio <= 1:
            raise ValueError(f"`predict_ratio` is {self.predict_ratio}; it takes a number above 0 and up to 1.")
        quantizer = self.quantizer_config
        check_range("soft_targets", self.soft_targets, 0, min(quantizer.codebook_sizes), "`codebook_size`")
        if self.soft_targets and quantizer.codebook_type != "vector":
            raise ValueError(
                f"`soft_targets` is {self.soft_targets}; the quantizer's {quantizer.codebook_type!r} takes 0. Shares "
                "by distance are those of EMA codebooks: 'vector', or 'residual' and 'product' with inner 'vector'."
            )
        if self.mask_type == "tube" and axes != 3:
            raise ValueError("`mask_type` is 'tube'; that takes a (frames, height, width) grid. Use 'random' or '2d'.")
        if any(not 0 <= r < 1 for r in self.classifier_mask_ratio):
            raise ValueError(f"`classifier_mask_ratio` is {self.classifier_mask_ratio}; it takes numbers in [0, 1).")
        if self.pooling == "cls" and not self.use_cls_token:
            raise ValueError("`pooling` is 'cls' but `use_cls_token` is False; use pooling='mean'.")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis of an input of `input_size`."""
        return tuple(s // p for s, p in zip(self.input_size, self.patch_size, strict=True))

    @property
    def position_grid(self) -> tuple[int, ...]:
        """Patches along each axis of an input of `position_size`."""
        return tuple(s // p for s, p in zip(self.position_size, self.patch_size, strict=True))

    @property
    def num_patches(self) -> int:
        """Patches of an input of `input_size`."""
        return prod(self.grid)

    @property
    def num_frames(self) -> int:
        """Frames of an input of `input_size`; transformers' video pipeline asks for it."""
        return self.input_size[0]

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return prod(self.patch_size) * self.num_channels

    def to_dict(self):
        # transformers names the one class whose code it saved, and one with "Tokenizer" in its name in a form that it
        # cannot load again; the code of the others is in the same files.
        output = super().to_dict()
        if output.get("auto_map"):
            named = {key: value for key, value in output["auto_map"].items() if isinstance(value, str)}
            output["auto_map"] = AUTO_MAP | named
        return output


__all__ = ["BridleConfig", "BridleQuantizerConfig"]
