"""The names that `import bridle_hf` gives, and their registration with transformers' Auto classes."""

# First of all: built for another torch these fail in many ways, and with them transformers' modules for images and
# sounds, with an error that names neither cause nor cure.
try:
    import torchvision  # noqa: F401
except Exception as error:
    raise ImportError(
        f"torchvision does not load beside the torch installed ({error}): install both again from one index, "
        "`pip install --force-reinstall torch torchvision`."
    ) from error
try:
    import torchaudio  # noqa: F401
except ModuleNotFoundError:
    pass  # bridle_hf does without it
except Exception as error:
    raise ImportError(
        f"torchaudio does not load beside the torch installed ({error}), and bridle_hf does without it: "
        "`pip uninstall torchaudio`."
    ) from error

# isort: split

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioTokenization,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_bridle import BridleConfig, BridleQuantizerConfig
from .feature_extraction_bridle import BridleFeatureExtractor
from .fixed_quantization_bridle import FSQQuantizer, RandomProjectionQuantizer
from .hub.official import load_official
from .image_processing_bridle import BridleImageProcessor
from .learned_quantization_bridle import (
    GradientQuantizer,
    SimVQQuantizer,
    SmoothedQuantizer,
    knn_regularizer,
    perplexity_regularizer,
)
from .modeling_bridle import (
    BridleForAudioClassification,
    BridleForImageClassification,
    BridleForPreTraining,
    BridleForVideoClassification,
    BridleModel,
    BridleTokenizer,
)
from .pipeline_bridle import (
    BridleAudioClassificationPipeline,
    BridleAudioFeatureExtractionPipeline,
    BridleVideoFeatureExtractionPipeline,
)
from .quantization_bridle import (
    ProductQuantizer,
    QuantizerOutput,
    ResidualQuantizer,
    VectorQuantizer,
    build_quantizer,
)
from .video_processing_bridle import BridleVideoProcessor

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
    "FSQQuantizer",
    "GradientQuantizer",
    "ProductQuantizer",
    "QuantizerOutput",
    "RandomProjectionQuantizer",
    "ResidualQuantizer",
    "SimVQQuantizer",
    "SmoothedQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "knn_regularizer",
    "load_official",
    "perplexity_regularizer",
]

AutoConfig.register("bridle", BridleConfig, exist_ok=True)
AutoFeatureExtractor.register(BridleConfig, BridleFeatureExtractor, exist_ok=True)
AutoImageProcessor.register(BridleConfig, image_processor_classes={"torchvision": BridleImageProcessor}, exist_ok=True)
AutoVideoProcessor.register(BridleConfig, video_processor_classes={"torchvision": BridleVideoProcessor}, exist_ok=True)
for auto_class, model_class in {
    AutoModel: BridleModel,
    AutoModelForPreTraining: BridleForPreTraining,
    AutoModelForAudioTokenization: BridleTokenizer,
    AutoModelForAudioClassification: BridleForAudioClassification,
    AutoModelForImageClassification: BridleForImageClassification,
    AutoModelForVideoClassification: BridleForVideoClassification,
}.items():
    auto_class.register(BridleConfig, model_class, exist_ok=True)
    # `save_pretrained` puts the code beside the weights: `trust_remote_code=True` then loads them without this package
    model_class.register_for_auto_class(auto_class.__name__)
for travelling_class in (BridleConfig, BridleFeatureExtractor, BridleImageProcessor, BridleVideoProcessor):
    travelling_class.register_for_auto_class()
for task, pipeline_class in {
    "audio-feature-extraction": BridleAudioFeatureExtractionPipeline,
    "video-feature-extraction": BridleVideoFeatureExtractionPipeline,
}.items():
    PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=AutoModel)
PIPELINE_REGISTRY.register_pipeline(
    "long-audio-classification",
    pipeline_class=BridleAudioClassificationPipeline,
    pt_model=AutoModelForAudioClassification,
)
