"""BRIDLE: self-supervised pretraining with residual quantization, in the HuggingFace ecosystem (arXiv 2502.02118)."""

from . import _compat  # noqa: F401  (first: it says in one sentence why the imports below would fail)

# isort: split

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from .configuration_bridle import BridleConfig, BridleQuantizerConfig
from .feature_extraction_bridle import BridleFeatureExtractor
from .hub.official import load_official
from .image_processing_bridle import BridleImageProcessor
from .modeling_bridle import (
    BridleForAudioClassification,
    BridleForImageClassification,
    BridleForPreTraining,
    BridleForVideoClassification,
    BridleModel,
    BridleTokenizer,
)
from .quantization_bridle import (
    QuantizerOutput,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    build_quantizer,
)
from .video_processing_bridle import BridleVideoProcessor

__version__ = "0.1.0"

__all__ = [
    "BridleConfig",
    "BridleFeatureExtractor",
    "BridleForAudioClassification",
    "BridleForImageClassification",
    "BridleForPreTraining",
    "BridleForVideoClassification",
    "BridleImageProcessor",
    "BridleModel",
    "BridleQuantizerConfig",
    "BridleTokenizer",
    "BridleVideoProcessor",
    "QuantizerOutput",
    "RandomProjectionQuantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "load_official",
]

AutoConfig.register("bridle", BridleConfig, exist_ok=True)
AutoFeatureExtractor.register(BridleConfig, BridleFeatureExtractor, exist_ok=True)
AutoImageProcessor.register(BridleConfig, image_processor_classes={"torchvision": BridleImageProcessor}, exist_ok=True)
AutoVideoProcessor.register(BridleConfig, video_processor_classes={"torchvision": BridleVideoProcessor}, exist_ok=True)
AutoModel.register(BridleConfig, BridleModel, exist_ok=True)
AutoModelForPreTraining.register(BridleConfig, BridleForPreTraining, exist_ok=True)
AutoModelForAudioClassification.register(BridleConfig, BridleForAudioClassification, exist_ok=True)
AutoModelForImageClassification.register(BridleConfig, BridleForImageClassification, exist_ok=True)
AutoModelForVideoClassification.register(BridleConfig, BridleForVideoClassification, exist_ok=True)
