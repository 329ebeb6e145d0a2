"""What to test, as data: a spec per model, processor, pipeline and set of remote code."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ModelSpec:
    """One run of `ModelTesterMixin`. It feeds the same inputs to every class, hence one spec per modality."""

    name: str  # of the test class, NAME + "ModelTest"
    config: type
    classes: list[type]  # the test of retained gradients takes the first
    config_kwargs: dict  # tiny: at most 2 layers, 64 wide, a million parameters
    inputs: Callable  # (config, batch_size, torch) -> dict of tensors, batch first
    seq_length: int  # of hidden_states[0] and attention maps, CLS included
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    batch_size: int = 3  # above 1, or batches are not compared with single inputs
    num_labels: int = 3
    has_attentions: bool = True
    # class name -> function (config, batch_size, torch, inputs, return_labels) -> inputs of that class
    per_class_inputs: dict = field(default_factory=dict)
    all_params_have_gradient: bool = True
    resize_embeddings: bool = False
    # where a forward takes `bool_masked_pos`, which the test of eager against sdpa attention makes
    num_masks: int | None = None
    mask_length: int | None = None  # patches without the CLS token
    skip: dict = field(default_factory=dict)  # name of a test -> reason
    extra: dict = field(default_factory=dict)  # more attributes of the model tester


@dataclass
class FeatureExtractorSpec:
    name: str
    cls: type
    init: dict
    feature_size: int
    sequence: bool = False  # also padding and truncation by `pad`: SequenceFeatureExtractionTestMixin
    batch_size: int = 7
    min_seq_length: int = 400
    max_seq_length: int = 2000
    skip: dict = field(default_factory=dict)


@dataclass
class ImageProcessorSpec:
    name: str
    backends: dict[str, type]  # "torchvision" or "pil" -> class
    init: dict
    size: tuple  # (C, H, W) of what comes out
    skip: dict = field(default_factory=dict)


@dataclass
class VideoProcessorSpec:
    name: str
    cls: type
    init: dict  # with size 20 and crop 18, which upstream's test_video_processor_from_dict_with_kwargs expects
    num_frames: int
    crop: int
    input_name: str = "pixel_values"
    num_channels: int = 3
    batch_size: int = 5
    skip: dict = field(default_factory=dict)


@dataclass
class PipelineSpec:
    task: str
    model: type
    config: type
    config_kwargs: dict
    processor_kw: str  # "feature_extractor", "image_processor" or "video_processor"
    processor: type
    processor_kwargs: dict
    example: Callable  # (folder) -> one input
    check: Callable  # (test case, output)
    batching: bool = True  # transformers refuses batches where a video processor is the only processor


@dataclass
class RemoteCodeSpec:
    """A saved folder, loaded in a fresh interpreter that cannot import the package."""

    name: str
    config: type
    config_kwargs: dict
    model: type
    auto_classes: dict[str, type]  # "AutoModel" -> class: all that must load from the saved folder
    processors: dict = field(default_factory=dict)  # "AutoFeatureExtractor" -> (class, keyword arguments)
    forbidden: tuple = ()  # top-level packages that the interpreter must not import
