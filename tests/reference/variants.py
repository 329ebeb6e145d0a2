"""Every modality and quantizer as arguments of small configs, for tests that go through all of them."""

from bridle_hf.quantization_bridle import QUANTIZERS as REGISTRY

SIZES = {
    "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "decoder_hidden_size": 48, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
    "estimator_num_hidden_layers": 1,
}  # fmt: skip
CLIPS = {
    "audio": {"input_size": (64, 32)},
    "image": {"input_size": (32, 32)},
    "video": {"input_size": (4, 32, 32), "decoder_window_size": (2, 4, 4), "decoder_shift_size": (1, 2, 0)},
}
QUANTIZERS = {
    "rq": {},
    "official": {"ema_mode": "official", "normalize": "per_stage"},
    "soft codes": {"soft_codes": 3},
    "knn": {"type": "smoothed", "regularizer": "knn_ce"},
    "gumbel": {"type": "smoothed", "gumbel": "hard", "regularizer": "perplexity"},
    "rotation": {"type": "gradient", "estimator": "rotation"},
    "product": {"type": "product", "inner": "smoothed"},
    "smoothed rq": {"inner": "smoothed"},
} | {name: {"type": name} for name in REGISTRY}


def quantizer_options(name: str) -> dict:
    """The `quantizer_config` of an entry of `QUANTIZERS`, with 16 codes of 16 numbers."""
    return {"codebook_dim": 16, "codebook_size": 16, "levels": (4, 4)} | QUANTIZERS[name]
