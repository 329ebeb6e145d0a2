"""Names in other people's checkpoints and ours, as data: BRIDLE's reference code, AudioMAE, ViT-MAE and VideoMAE.

A map is `{their name: our name}`; `*` stands for a number, `weight` or `bias`, the same on both sides. Our names are
those of the widest model that holds the part: `bridle.`, `decoder.` and `tokenizer.` of `BridleForPreTraining`,
`layernorm.` and `classifier.` of a classification model. An ending `[q]`, `[k]` or `[v]` stands for that third of a
tensor. Where two of their names become one of ours, the first is the one that is written.
"""

import re
from collections.abc import Callable
from math import isqrt
from typing import NamedTuple

from ..configuration_bridle import SPECTROGRAM_DEFAULTS

VIT_BLOCK = {
    "norm1.*": "norm1.*",
    "attn.qkv.*": "attention.qkv.*",
    "attn.proj.*": "attention.proj.*",
    "norm2.*": "norm2.*",
    "mlp.fc1.*": "mlp.fc1.*",
    "mlp.fc2.*": "mlp.fc2.*",
}
# Queries and values have a bias, keys have none: it would not change the softmax.
VIDEO_BLOCK = {
    **VIT_BLOCK,
    "attn.q_bias": "attention.qkv.bias[q]",
    "attn.v_bias": "attention.qkv.bias[v]",
}
SWIN_BLOCK = {
    "norm1.*": "norm1.*",
    "attn.qkv.*": "attention.qkv.*",
    "attn.proj.*": "attention.proj.*",
    "attn.tau": "attention.tau",
    "attn.meta_mlp.model.0.*": "attention.bias_mlp.0.*",
    "attn.meta_mlp.model.3.*": "attention.bias_mlp.3.*",
    "norm2.*": "norm2.*",
    "mlp.model.0.*": "mlp.fc1.*",
    "mlp.model.2.*": "mlp.fc2.*",
}


def _under(theirs: str, ours: str, names: dict) -> dict:
    return {theirs + key: ours + value for key, value in names.items()}


# The encoders of BRIDLE, AudioMAE and MAE are one class, those of BRIDLE's video model and VideoMAE another.
EMBEDDINGS = {
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.positions.table",
}
# The reference has one patch embedding for the tokenizer's encoder and the cold start: ours -> ours.
COLD_START = {
    "cold_start.patch_embeddings.": "encoder.embeddings.patch_embeddings.",
    "cold_start.positions.": "encoder.embeddings.positions.",
}
ENCODER = {**EMBEDDINGS, **_under("blocks.*.", "layers.*.", VIT_BLOCK), "norm.*": "layernorm.*"}
VIDEO_ENCODER = {**EMBEDDINGS, **_under("blocks.*.", "layers.*.", VIDEO_BLOCK), "norm.*": "layernorm.*"}
QUANTIZE = {
    "quantize_layer.*.*": "quantize_layer.*.*",
    "cold_start_encoder.weight": "cold_start.projection",
}
QUANTIZERS = {
    "residual": {
        **QUANTIZE,
        "quantizer.codebooks.*.weight": "quantizer.codebooks.*.embed",
        "quantizer.codebooks.*.embed_ema": "quantizer.codebooks.*.embed_sum",
        "quantizer.codebooks.*.cluster_size_ema": "quantizer.codebooks.*.cluster_size",
    },
    "vector": {
        **QUANTIZE,
        "quantizer.embedding.weight": "quantizer.codebooks.0.embed",
        "quantizer.embedding.embed_avg": "quantizer.codebooks.0.embed_sum",
        "quantizer.embedding.initted": "quantizer.codebooks.0.initialized",
        "quantizer.cluster_size": "quantizer.codebooks.0.cluster_size",
    },
}
DECODER = {
    "decoder_embed.*": "embed.*",
    "mask_token": "mask_token",
    "decoder_pos_embed": "positions.table",
    "decoder_norm.*": "norm.*",
    "decoder_pred.*": "head.*",
}
DECODERS = {
    "swin": {**DECODER, **_under("decoder_blocks.*.", "layers.*.", SWIN_BLOCK)},
    "plain": {**DECODER, **_under("decoder_blocks.*.", "layers.*.", VIT_BLOCK)},
}
ESTIMATOR = {
    "estimator_embed.*": "embed.*",
    "estimator_pos_embed": "positions.table",
    **_under("estimator_blocks.*.", "layers.*.", VIT_BLOCK),
    "estimator_norm.*": "norm.*",
    "estimator_pred.*": "head.*",
}
# The reference's video decoder and video estimator are one class.
VIDEO_DECODER = {
    "encoder_to_decoder.weight": "embed.weight",
    "mask_token": "mask_token",
    **_under("decoder.blocks.*.", "layers.*.", VIDEO_BLOCK),
    "decoder.norm.*": "norm.*",
    "decoder.head.*": "head.*",
}


def pretraining(decoder: str, quantizer: str) -> dict[str, str]:
    """Names of an audio or image checkpoint, by the kind of its decoder and quantizer (keys of the two maps above)."""
    return {
        **_under("encoder_decoder.", "bridle.", ENCODER),
        **_under("encoder_decoder.", "decoder.", DECODERS[decoder]),
        **_under("tokenizer.", "tokenizer.encoder.", ENCODER),
        **_under("tokenizer.", "tokenizer.", QUANTIZERS[quantizer]),
        **_under("tokenizer.", "tokenizer.estimator.", ESTIMATOR),
    }


def video_pretraining(decoder: str, quantizer: str) -> dict[str, str]:
    """Names of a video checkpoint, whose decoder is always plain."""
    return {
        **_under("encoder_decoder.encoder.", "bridle.", VIDEO_ENCODER),
        **_under("encoder_decoder.", "decoder.", VIDEO_DECODER),
        **_under("tokenizer.encoder.", "tokenizer.encoder.", VIDEO_ENCODER),
        **_under("tokenizer.encoder.", "tokenizer.", QUANTIZERS[quantizer]),
        **_under("tokenizer.", "tokenizer.estimator.", VIDEO_DECODER),
    }


# A fine-tuned checkpoint, or an encoder alone.
HEAD = {"fc_norm.*": "layernorm.*", "head.*": "classifier.*"}
CLASSIFICATION = {**_under("", "bridle.", ENCODER), **HEAD}
VIDEO_CLASSIFICATION = {**_under("", "bridle.", VIDEO_ENCODER), **HEAD}


class ReferenceFormat(NamedTuple):
    """Checkpoints of BRIDLE's reference code for one modality.

    Attributes:
        pretraining: (decoder, quantizer) -> names of a pretraining checkpoint.
        classification: names of a fine-tuned checkpoint, or of an encoder alone.
        grid: (number of patches, patch size) -> grid of a stored position table; () where none can be told.
        stores_positions: whether a file holds position tables.
        shares_decoder_class: whether the estimator is built as the decoder is, both without a bias in their embedding.
        may_lack_norm: whether an encoder alone may come without its final norm (transformers' VideoMAE, pooled).
    """

    pretraining: Callable[[str, str], dict[str, str]]
    classification: dict[str, str]
    grid: Callable[[int, tuple[int, ...]], tuple[int, ...]]
    stores_positions: bool = True
    shares_decoder_class: bool = False
    may_lack_norm: bool = False


def _spectrogram_grid(patches: int, patch_size: tuple[int, ...]) -> tuple[int, ...]:
    bins = SPECTROGRAM_DEFAULTS["input_size"][1] // patch_size[1]
    return patches // bins, bins


REFERENCE_FORMATS = {
    "audio": ReferenceFormat(pretraining, CLASSIFICATION, _spectrogram_grid),
    "image": ReferenceFormat(pretraining, CLASSIFICATION, lambda patches, patch_size: (isqrt(patches),) * 2),
    "video": ReferenceFormat(
        video_pretraining,
        VIDEO_CLASSIFICATION,
        lambda patches, patch_size: (),
        stores_positions=False,
        shares_decoder_class=True,
        may_lack_norm=True,
    ),
}

# The same encoders in transformers: names in its files, then names in its models where they differ.
TRANSFORMERS_BLOCK = {
    "layernorm_before.*": "norm1.*",
    "attention.attention.query.*": "attention.qkv.*[q]",
    "attention.attention.key.*": "attention.qkv.*[k]",
    "attention.attention.value.*": "attention.qkv.*[v]",
    "attention.output.dense.*": "attention.proj.*",
    "layernorm_after.*": "norm2.*",
    "intermediate.dense.*": "mlp.fc1.*",
    "output.dense.*": "mlp.fc2.*",
    "attention.attention.q_bias": "attention.qkv.bias[q]",
    "attention.attention.v_bias": "attention.qkv.bias[v]",
    "attention.q_proj.*": "attention.qkv.*[q]",
    "attention.k_proj.*": "attention.qkv.*[k]",
    "attention.v_proj.*": "attention.qkv.*[v]",
    "attention.o_proj.*": "attention.proj.*",
    "mlp.fc1.*": "mlp.fc1.*",
    "mlp.fc2.*": "mlp.fc2.*",
}
TRANSFORMERS_ENCODER = {
    "embeddings.patch_embeddings.projection.*": "embeddings.patch_embeddings.projection.*",
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.position_embeddings": "embeddings.positions.table",
    **_under("encoder.layer.*.", "layers.*.", TRANSFORMERS_BLOCK),
    **_under("layers.*.", "layers.*.", TRANSFORMERS_BLOCK),
    "layernorm.*": "layernorm.*",
}


class EncoderSource(NamedTuple):
    """Where encoders come from: their modality, the names of the original code, and others that are read too."""

    modality: str
    names: dict[str, str]
    aliases: dict[str, str]


MASKED_AUTOENCODERS = {
    "audiomae": EncoderSource("audio", CLASSIFICATION, {}),
    "vit-mae": EncoderSource(
        "image",
        CLASSIFICATION,
        {**_under("", "bridle.", TRANSFORMERS_ENCODER), **_under("vit.", "bridle.", TRANSFORMERS_ENCODER)},
    ),
    "videomae": EncoderSource(
        "video",
        _under("encoder.", "bridle.", VIDEO_ENCODER),
        {
            **VIDEO_CLASSIFICATION,
            **_under("", "bridle.", TRANSFORMERS_ENCODER),
            **_under("videomae.", "bridle.", TRANSFORMERS_ENCODER),
            "classifier.*": "classifier.*",
        },
    ),
}
SOURCES = ("bridle", *MASKED_AUTOENCODERS)

# Beginnings of names that carry nothing our model could use, and why.
_IDLE_COUNT = "the reference never moves it; `quantizer.cluster_size` holds the counts"
DROPPED = {
    "tokenizer.quantizer.embedding.cluster_size": _IDLE_COUNT,
    "tokenizer.encoder.quantizer.embedding.cluster_size": _IDLE_COUNT,
}
_PIXELS = "the decoder of a masked autoencoder predicts pixels, not codes"
DROPPED_DECODER = dict.fromkeys(("decoder_", "decoder.", "mask_token", "encoder_to_decoder."), _PIXELS)


def bridle(names, modality: str) -> dict[str, str]:
    """The map for the names of one of BRIDLE's own checkpoints."""
    reference = REFERENCE_FORMATS[modality]
    if not any(name.startswith(("encoder_decoder.", "tokenizer.")) for name in names):
        return reference.classification
    quantizer = "vector" if any(".quantizer.embedding." in name for name in names) else "residual"
    decoder = "swin" if any(".meta_mlp." in name for name in names) else "plain"
    return reference.pretraining(decoder, quantizer)


def rename(name: str, names: dict) -> str | None:
    """What `names` makes of a name, `None` where no entry fits."""
    for pattern, target in names.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+|weight|bias)"), name)
        if match:
            return target.replace("*", "{}").format(*match.groups())
    return None


def backwards(names: dict) -> dict[str, str]:
    """The map from our names to theirs."""
    return {ours: theirs for theirs, ours in reversed(names.items())}


def reference_name(ours: str, names: dict) -> str:
    """Their name for one of ours, for messages."""
    return rename(ours, backwards(names)) or ours
