"""transformers' own common tests, from its source archive, on the classes of this package. See README.md."""

from .factory import make_tests
from .spec import (
    FeatureExtractorSpec,
    ImageProcessorSpec,
    ModelSpec,
    PipelineSpec,
    RemoteCodeSpec,
    VideoProcessorSpec,
)

__all__ = [
    "FeatureExtractorSpec",
    "ImageProcessorSpec",
    "ModelSpec",
    "PipelineSpec",
    "RemoteCodeSpec",
    "VideoProcessorSpec",
    "make_tests",
]
