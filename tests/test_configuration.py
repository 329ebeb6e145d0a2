"""The configuration: the defaults, the two presets, what is refused, and what comes back from JSON."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from bridle_hf.configuration_bridle import AUTO_MAP, BridleConfig, BridleQuantizerConfig

# Blocks, masks and ViT-B: arXiv 2502.02118, section 4 and appendix C. Sizes, widths and heads: the reference code.
DEFAULTS = {
    "audio": {
        "input_size": (1024, 128),
        "patch_size": (16, 16),
        "num_channels": 1,
        "decoder": ("swin", 512, 16, 16),
        "estimator_num_hidden_layers": 3,
        "mask": ("random", 0.8),
        "grid": (64, 8),
        "num_patches": 512,
        "patch_dim": 256,
    },
    "image": {
        "input_size": (224, 224),
        "patch_size": (16, 16),
        "num_channels": 3,
        "decoder": ("swin", 512, 16, 16),
        "estimator_num_hidden_layers": 3,
        "mask": ("random", 0.8),
        "grid": (14, 14),
        "num_patches": 196,
        "patch_dim": 768,
    },
    "video": {
        "input_size": (16, 224, 224),
        "patch_size": (2, 16, 16),
        "num_channels": 3,
        "decoder": ("plain", 384, 4, 6),
        "estimator_num_hidden_layers": 4,
        "mask": ("tube", 0.9),
        "grid": (8, 14, 14),
        "num_patches": 1568,
        "patch_dim": 1536,
    },
}


@pytest.mark.parametrize("modality", DEFAULTS)
def test_defaults_of_each_modality(modality):
    config, expected = BridleConfig(modality=modality), dict(DEFAULTS[modality])
    decoder = tuple(
        getattr(config, f"decoder_{name}")
        for name in ("type", "hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    assert decoder == expected.pop("decoder")
    assert (config.mask_type, config.mask_ratio) == expected.pop("mask")
    assert {name: getattr(config, name) for name in expected} == expected
    # ViT-B; the estimator is as wide as the encoder
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.intermediate_size, config.estimator_hidden_size) == (3072, 768)
    assert (config.decoder_window_size, config.decoder_shift_size) == ((4, 4), (2, 0))
    assert (config.cosine_loss_weight, config.codebook_loss_weight, config.joint_tokenizer_weight) == (1.0, 1.0, 0.5)
    assert config.cold_start and config.use_cls_token and config.pooling == "mean"


def test_quantizer_defaults():
    residual, vector = BridleConfig().quantizer_config, BridleQuantizerConfig(type="vector")
    assert (residual.type, residual.num_codebooks, residual.codebook_size) == ("residual", 4, 256)
    assert (vector.num_codebooks, vector.codebook_size) == (1, 1024)
    for quantizer in (residual, vector):
        assert (quantizer.codebook_dim, quantizer.ema_decay, quantizer.commitment_weight) == (256, 0.99, 0.25)
        assert (quantizer.codebook_init, quantizer.kmeans_iterations) == ("kmeans", 10)


def test_a_dead_code_is_the_presets():
    """The paper's T_u = 1 and the reference code reset codes that nothing of the first batch chooses."""
    ours, official = BridleConfig().quantizer_config, BridleConfig(preset="official").quantizer_config
    assert (ours.reset, ours.reset_min_count, ours.reset_threshold) == ("periodic", 0, 0.1)
    assert (official.reset, official.reset_min_count) == ("first_batch", 1)
    assert BridleQuantizerConfig(preset="official", reset_min_count=0).reset_min_count == 0


@pytest.mark.parametrize(
    ("options", "sizes", "weight"),
    [
        ({"type": "residual"}, (4, 256), 0.25),
        ({"type": "residual", "inner": "smoothed"}, (4, 256), 0.0),
        ({"type": "vector"}, (1, 1024), 0.25),
        ({"type": "gradient"}, (1, 1024), 1.0),
        ({"type": "simvq"}, (1, 1024), 1.0),
        ({"type": "smoothed"}, (1, 1024), 0.0),
        ({"type": "product"}, (2, 320), 0.25),
        ({"type": "product", "inner": "simvq"}, (2, 320), 1.0),
        ({"type": "random_projection"}, (4, 256), 0.25),
        ({"type": "fsq"}, (1, 1000), 0.25),
        ({"type": "fsq", "levels": (8, 6, 5)}, (1, 240), 0.25),
        ({"type": "product", "inner": "fsq", "levels": (5, 4)}, (2, 20), 0.25),
    ],
)
def test_sizes_and_weights_left_out_are_those_of_the_type(options, sizes, weight, tmp_path):
    config = BridleQuantizerConfig(**options)
    assert (config.num_codebooks, config.codebook_size) == sizes
    assert config.commitment_weight == weight
    config.save_pretrained(tmp_path)
    loaded = BridleQuantizerConfig.from_pretrained(tmp_path)
    assert loaded.to_json_string(use_diff=False) == config.to_json_string(use_diff=False)


@pytest.mark.parametrize(
    ("modality", "official"),
    [
        ("audio", {"position_layout": "wrapped", "decoder_type": "swin", "use_cls_token": True}),
        ("image", {"position_layout": "grid", "decoder_type": "plain", "use_cls_token": True}),
        ("video", {"position_layout": "flat", "decoder_type": "plain", "use_cls_token": False}),
    ],
)
def test_official_preset(modality, official):
    config = BridleConfig(modality=modality, preset="official")
    assert {name: getattr(config, name) for name in official} == official
    assert config.cold_start_positions
    assert (config.quantizer_config.normalize, config.quantizer_config.ema_mode) == ("per_stage", "official")

    default = BridleConfig(modality=modality)
    assert (default.position_layout, default.cold_start_positions) == ("grid", False)
    assert (default.quantizer_config.normalize, default.quantizer_config.ema_mode) == ("once", "counts")


def test_an_option_given_wins_over_the_preset():
    config = BridleConfig(
        preset="official",
        position_layout="grid",
        cold_start_positions=False,
        use_cls_token=False,
        quantizer_config={"normalize": "none", "codebook_size": 32},
    )
    assert (config.position_layout, config.cold_start_positions, config.use_cls_token) == ("grid", False, False)
    quantizer = config.quantizer_config
    assert (quantizer.normalize, quantizer.ema_mode, quantizer.codebook_size) == ("none", "official", 32)


@pytest.mark.parametrize("options", [{}, {"modality": "video", "preset": "official", "mask_ratio": 0.5}])
def test_json_round_trip(tmp_path, options):
    config = BridleConfig(quantizer_config={"codebook_size": 32, "reset": "never"}, num_labels=7, **options)
    config.save_pretrained(tmp_path)
    loaded = BridleConfig.from_pretrained(tmp_path)
    assert loaded.to_json_string(use_diff=False) == config.to_json_string(use_diff=False)
    assert isinstance(loaded.quantizer_config, BridleQuantizerConfig)
    assert (loaded.quantizer_config.codebook_size, loaded.quantizer_config.reset) == (32, "never")
    assert (loaded.grid, loaded.num_labels) == (config.grid, 7)
    # the quantizer of a model's folder can be read alone
    assert BridleQuantizerConfig.from_pretrained(tmp_path).codebook_size == 32


def test_derived_sizes_follow_an_override_at_loading(tmp_path):
    BridleConfig().save_pretrained(tmp_path)
    loaded = BridleConfig.from_pretrained(tmp_path, input_size=(512, 128))
    assert (loaded.grid, loaded.num_patches) == ((32, 8), 256)


def test_auto_map_holds_names_not_pairs_and_every_class():
    config = BridleConfig()
    assert "auto_map" not in config.to_dict()
    config.auto_map = {"AutoModel": "repo--m.BridleModel", "AutoModelForAudioTokenization": (None, "m.BridleTokenizer")}
    saved = json.loads(config.to_json_string())["auto_map"]
    assert saved == AUTO_MAP | {"AutoModel": "repo--m.BridleModel"}


WRONG = [
    ({"id2label": {0: "dog", 1: "dog"}}, "`id2label` is {0: 'dog', 1: 'dog'}; it takes a name of its own for each"),
    ({"id2label": {"0": "dog", "2": "rain"}}, "`id2label` is {0: 'dog', 2: 'rain'}; it takes a name of its own for"),
    ({"hidden_act": "foo"}, "`hidden_act` is 'foo'; it takes one of transformers', such as 'gelu'"),
    ({"layer_norm_eps": -1.0}, "`layer_norm_eps` is -1.0; it takes a positive number"),
    ({"layer_norm_eps": 0.0}, "`layer_norm_eps` is 0.0; it takes a positive number"),
    ({"initializer_range": float("inf")}, "`initializer_range` is inf; it takes a number from 0 on"),
    ({"id2label": ["dog", "cat"]}, r"`id2label` is \['dog', 'cat'\]; it takes a dict"),
    ({"dtype": "float33"}, "`dtype` is 'float33'; it takes the name of one of torch's"),
    ({"modality": "text"}, "`modality` is 'text'; it takes one of 'audio', 'image', 'video'"),
    ({"preset": "papers"}, "`preset` is 'papers'; it takes one of 'default', 'official'"),
    ({"decoder_type": "unet"}, "`decoder_type` is 'unet'"),
    ({"mask_type": "block"}, "`mask_type` is 'block'"),
    ({"position_layout": "learned"}, "`position_layout` is 'learned'"),
    ({"pooling": "max"}, "`pooling` is 'max'"),
    ({"hidden_size": 0}, "`hidden_size` is 0; it takes a whole number from 1 to "),
    ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
    ({"decoder_num_attention_heads": 0}, "`decoder_num_attention_heads` is 0"),
    ({"estimator_num_hidden_layers": 0}, "`estimator_num_hidden_layers` is 0"),
    (
        {"patch_size": (16,)},
        r"`patch_size` is \(16,\) and `input_size` \(1024, 128\); modality 'audio' takes 2 numbers",
    ),
    ({"input_size": (8, 64, 64), "patch_size": (2, 16, 16)}, "modality 'audio' takes 2 numbers"),
    ({"input_size": (1000, 128)}, r"`patch_size` \(16, 16\) does not divide `input_size` \(1000, 128\)"),
    ({"patch_size": (0, 16)}, r"`patch_size` \(0, 16\) does not divide"),
    ({"num_attention_heads": 7}, "`hidden_size` 768 is not a multiple of `num_attention_heads` 7"),
    (
        {"decoder_num_attention_heads": 7},
        "`decoder_hidden_size` 512 is not a multiple of `decoder_num_attention_heads`",
    ),
    ({"modality": "video", "hidden_size": 64, "num_attention_heads": 4}, "`hidden_size` is 64; .* a multiple of 6"),
    ({"decoder_window_size": (4,)}, r"`decoder_window_size` is \(4,\) .* they take 2 numbers each"),
    ({"decoder_shift_size": (4, 0)}, r"`decoder_shift_size` \(4, 0\); .* a shift smaller than its window"),
    ({"modality": "video", "decoder_type": "swin"}, "they take 3 numbers each"),
    ({"mask_ratio": 1.0}, "`mask_ratio` is 1.0; it takes a number between 0 and 1"),
    ({"mask_type": "tube"}, r"`mask_type` is 'tube'; that takes a \(frames, height, width\) grid"),
    ({"drop_path_rate": 1.0}, r"`drop_path_rate` is 1.0; it takes a number in \[0, 1\)"),
    ({"classifier_mask_ratio": (0.2, 1.0)}, "`classifier_mask_ratio` is"),
    ({"pooling": "cls", "use_cls_token": False}, "`pooling` is 'cls' but `use_cls_token` is False"),
]
WRONG_QUANTIZER = [
    ({"type": "lattice"}, "`type` is 'lattice'; it takes one of 'residual', 'vector', 'product', 'random_projection'"),
    ({"ema_mode": "no"}, "`ema_mode` is 'no'"),
    ({"normalize": "twice"}, "`normalize` is 'twice'"),
    ({"codebook_init": "zeros"}, "`codebook_init` is 'zeros'"),
    ({"reset": "always"}, "`reset` is 'always'"),
    ({"reset_min_count": -1}, "`reset_min_count` is -1; it takes 0 to "),
    ({"codebook_size": 0}, "`codebook_size` is 0; it takes a whole number from 1 to "),
    ({"type": "vector", "num_codebooks": 4}, "`num_codebooks` is 4; a quantizer of type 'vector' takes 1"),
    ({"ema_decay": 1.5}, "`ema_decay` is 1.5; it takes 0 to 1"),
    ({"soft_codes": 300}, "`soft_codes` is 300; it takes 0 to 256, `codebook_size`"),
    ({"inner": "residual"}, "`inner` is 'residual'; it takes one of 'vector', 'fsq', 'gradient', 'simvq', 'smoothed'"),
    ({"distance": "l1"}, "`distance` is 'l1'"),
    ({"estimator": "soft"}, "`estimator` is 'soft'"),
    ({"gumbel": "on"}, "`gumbel` is 'on'; it takes one of 'none', 'soft', 'hard'"),
    (
        {"regularizer": "entropy"},
        "`regularizer` is 'entropy'; it takes one of 'none', 'perplexity', 'knn_ce', 'knn_l2'",
    ),
    ({"type": "smoothed", "num_codebooks": 2}, "'smoothed' takes 1. For several: type 'residual' or 'product'"),
    ({"type": "product", "num_codebooks": 3}, "`codebook_dim` is 256; .* takes a multiple of `num_codebooks`, 3"),
    ({"type": "simvq", "preset": "official"}, "`normalize` is 'per_stage'; 'simvq' takes 'once' or 'none'"),
    ({"temperature": 0.001}, "`temperature` is 0.001; it takes 0.01 to 1"),
    ({"gumbel_schedule": (2.0, 0.5)}, r"`gumbel_schedule` is \(2.0, 0.5\); it takes start, end and decay"),
    ({"num_neighbors": 0}, "`num_neighbors` is 0"),
    ({"codebook_weight": -1.0}, "`codebook_weight` is -1.0; it takes 0 to"),
    ({"regularizer_weight": float("nan")}, "`regularizer_weight` is nan; it takes 0 to"),
    ({"num_vertices": 257}, "`num_vertices` is 257; it takes 1 to 256, `codebook_size`"),
    ({"id2label": []}, r"`id2label` is \[\]; it takes a dict"),
    ({"levels": (8, 2)}, r"`levels` is \(8, 2\); it takes whole numbers from 3 to 1000, one per dimension"),
    ({"type": "fsq", "levels": ()}, r"`levels` is \(\); it takes whole numbers"),
    ({"type": "fsq", "codebook_size": 512}, r"`codebook_size` is 512; 'fsq' has 1000, the product of `levels` \(8, 5"),
    ({"type": "fsq", "num_codebooks": 4}, "'fsq' takes 1. For several: type 'product' with inner 'fsq'"),
    ({"inner": "fsq"}, "`inner` is 'fsq'; type 'residual' takes 'vector' or .* may stand inside type 'product'"),
]
# Of a file that somebody else wrote: models that no machine can build.
WRONG += [
    ({"hidden_size": 10**18}, "`hidden_size` is 10{18}; it takes a whole number from 1 to 65536"),
    ({"num_hidden_layers": 10**9}, "`num_hidden_layers` is 10{9}; .* from 1 to 1024"),
    ({"decoder_num_hidden_layers": 10**9}, "`decoder_num_hidden_layers` is 10{9}"),
    ({"estimator_hidden_size": 10**9}, "`estimator_hidden_size` is 10{9}"),
    ({"num_attention_heads": 10**9}, "`num_attention_heads` is 10{9}"),
    ({"intermediate_size": 10**12}, "`intermediate_size` is 10{12}"),
    ({"num_channels": 10**9}, "`num_channels` is 10{9}"),
    ({"cosine_loss_weight": float("nan")}, "`cosine_loss_weight` is nan; it takes 0 to"),
    ({"num_labels": 10**9}, "`num_labels` is 10{9}"),
    ({"quantizer_config": {"num_labels": 10**9}}, "`num_labels` is 10{9}"),
    ({"input_size": (16 * 10**8, 16)}, "the patches along .*`input_size` are 10{8} x 1; their product may be at most"),
    ({"input_size": (10**6, 10**6), "patch_size": (10**6, 10**6)}, "`patch_size` and `num_channels` are 10{6} x 10{6}"),
]
WRONG_QUANTIZER += [
    ({"codebook_size": 10**12}, "`codebook_size` is 10{12}; it takes a whole number from 1 to 16777216"),
    ({"num_codebooks": 10**9}, "`num_codebooks` is 10{9}"),
    ({"codebook_dim": 10**9}, "`codebook_dim` is 10{9}"),
    ({"kmeans_iterations": 10**9}, "`kmeans_iterations` is 10{9}"),
    (
        {"num_codebooks": 1000, "codebook_size": 10**6, "codebook_dim": 1000},
        "`codebook_size` and `codebook_dim` are 1000 x 10{6} x 1000; their product may be at most 2147483648",
    ),
    ({"type": "fsq", "levels": (1000,) * 9}, "`codebook_size` is 10{27}"),
]
CASES = WRONG + [({"quantizer_config": options}, message) for options, message in WRONG_QUANTIZER]


@pytest.mark.parametrize(("options", "message"), CASES)
def test_wrong_values_are_named(options, message):
    # the strict dataclass wraps what a check of the whole raises; its text is kept
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        BridleConfig(**options)


def test_large_models_pass():
    """ViT-22B in width and depth, an hour of sound, and large codebooks."""
    config = BridleConfig(
        hidden_size=6144,
        num_hidden_layers=48,
        num_attention_heads=48,
        input_size=(360_000, 128),
        quantizer_config={"num_codebooks": 32, "codebook_size": 65536, "codebook_dim": 256},
    )
    assert config.num_patches == 180_000
    fsq = BridleQuantizerConfig(type="fsq", levels=(16,) * 6, codebook_dim=2048)
    assert fsq.codebook_size == 2**24


@pytest.mark.parametrize("options", [{"hidden_size": "wide"}, {"num_channels": True}, {"use_cls_token": "yes"}])
def test_wrong_types_are_named(options):
    with pytest.raises((TypeError, StrictDataclassError), match=next(iter(options))):
        BridleConfig(**options)
