"""From a `BridleQuantizerConfig` to a quantizer: the one place where its fields meet the classes."""

from .codebook_bridle import check_choice
from .gradient_quantization_bridle import GradientQuantizer, SimVQQuantizer
from .product_quantization_bridle import ProductQuantizer
from .quantization_bridle import RandomProjectionQuantizer, ResidualQuantizer, VectorQuantizer
from .smoothed_quantization_bridle import SmoothedQuantizer

TYPES = ("residual", "vector", "gradient", "simvq", "smoothed", "product", "random_projection")

# The fields that are keyword arguments of the classes.
EMA_OPTIONS = (
    "ema_decay ema_epsilon ema_mode commitment_weight normalize codebook_init "
    "kmeans_iterations kmeans_samples_per_code reset_threshold soft_codes"
).split()
HARD_OPTIONS = "distance estimator commitment_weight normalize".split()
SMOOTHED_OPTIONS = (
    "temperature gumbel gumbel_schedule regularizer regularizer_weight num_neighbors num_vertices commitment_weight "
    "normalize"
).split()
LEARNED = {
    "gradient": (GradientQuantizer, HARD_OPTIONS),
    "simvq": (SimVQQuantizer, HARD_OPTIONS),
    "smoothed": (SmoothedQuantizer, SMOOTHED_OPTIONS),
}


def build_quantizer(config, cold_start=False):
    """Quantizer of a `BridleQuantizerConfig`.

    Args:
        cold_start: for the frozen tokenizer of the first iteration, which nothing trains. Codebooks that learn by
            gradient say nothing before they have; `residual` ones of the same shape, set by k-means, stand in for them.

    Raises:
        ValueError: an unknown type.
    """
    check_choice("type", config.type, TYPES)
    dim, books, codes = config.codebook_dim, config.num_codebooks, config.codebook_size
    if config.type == "random_projection":
        return RandomProjectionQuantizer(dim, books, codes)
    ema = {name: getattr(config, name) for name in EMA_OPTIONS}
    if config.type == "vector":
        return VectorQuantizer(dim, codes, **ema)
    cls, fields = LEARNED.get(config.codebook_type, (ResidualQuantizer, EMA_OPTIONS))
    if cold_start and cls is not ResidualQuantizer:
        return ResidualQuantizer(dim, books, codes, **ema)
    options = {name: getattr(config, name) for name in fields}
    if config.type == "product":
        return ProductQuantizer([cls(dim // books, 1, codes, **options) for _ in range(books)])
    return cls(dim, books, codes, **options)
