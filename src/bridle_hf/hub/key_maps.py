"""Names in the reference code's checkpoints and ours, as data.

A map is `{reference name: our name}`; `*` stands for a number, `weight` or `bias`, the same on both sides. Our names
are those of the widest model that holds the part: `bridle.`, `decoder.` and `tokenizer.` of `BridleForPreTraining`,
`layernorm.` and `classifier.` of a classification model.
"""

import re

VIT_BLOCK = {
    "norm1.*": "norm1.*",
    "attn.qkv.*": "attention.qkv.*",
    "attn.proj.*": "attention.proj.*",
    "norm2.*": "norm2.*",
    "mlp.fc1.*": "mlp.fc1.*",
    "mlp.fc2.*": "mlp.fc2.*",
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


ENCODER = {
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.positions.table",
    **_under("blocks.*.", "layers.*.", VIT_BLOCK),
    "norm.*": "layernorm.*",
}
QUANTIZE = {
    "quantize_layer.*.*": "quantize_layer.*.*",
    "cold_start_encoder.weight": "cold_projection",
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
    "encoder_to_decoder.*": "embed.*",
    "mask_token": "mask_token",
    **_under("decoder.blocks.*.", "layers.*.", VIT_BLOCK),
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


def video_pretraining(quantizer: str) -> dict[str, str]:
    """Names of a video checkpoint."""
    return {
        **_under("encoder_decoder.encoder.", "bridle.", ENCODER),
        **_under("encoder_decoder.", "decoder.", VIDEO_DECODER),
        **_under("tokenizer.encoder.", "tokenizer.encoder.", ENCODER),
        **_under("tokenizer.encoder.", "tokenizer.", QUANTIZERS[quantizer]),
        **_under("tokenizer.", "tokenizer.estimator.", VIDEO_DECODER),
    }


# A fine-tuned checkpoint, or an encoder alone.
CLASSIFICATION = {
    **_under("", "bridle.", ENCODER),
    "fc_norm.*": "layernorm.*",
    "head.*": "classifier.*",
}

# Reference names that carry nothing our model could use, and why.
_IDLE_COUNT = "the reference never moves it; `quantizer.cluster_size` holds the counts"
DROPPED = {
    "tokenizer.quantizer.embedding.cluster_size": _IDLE_COUNT,
    "tokenizer.encoder.quantizer.embedding.cluster_size": _IDLE_COUNT,
}


def rename(name: str, names: dict) -> str | None:
    """What `names` makes of a name, `None` where no entry fits."""
    for pattern, target in names.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+|weight|bias)"), name)
        if match:
            return target.replace("*", "{}").format(*match.groups())
    return None


def reference_name(ours: str, names: dict) -> str:
    """The reference's name for one of ours, for messages."""
    return rename(ours, {target: pattern for pattern, target in names.items()}) or ours
