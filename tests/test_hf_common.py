"""transformers' own common tests on our classes.

They are in the source archive of the installed transformers, which `.ci/run` and `make test-slow` put into `.sdist/`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from hfharness import (
    FeatureExtractorSpec,
    ImageProcessorSpec,
    ModelSpec,
    PipelineSpec,
    RemoteCodeSpec,
    VideoProcessorSpec,
    make_tests,
)
from hfharness.upstream import locate_sdist, sdist_is_there
from picture_files import counting_video
from PIL import Image

from bridle_hf import (
    BridleConfig,
    BridleFeatureExtractor,
    BridleForAudioClassification,
    BridleForImageClassification,
    BridleForPreTraining,
    BridleForVideoClassification,
    BridleImageProcessor,
    BridleModel,
    BridleTokenizer,
    BridleVideoProcessor,
    modeling_bridle,
)
from bridle_hf.data import MODALITIES

pytestmark = pytest.mark.slow  # a minute, and the archive has to be fetched
if not sdist_is_there() and os.environ.get("CI") != "true":
    pytest.skip(f"no source archive of transformers in {locate_sdist()}", allow_module_level=True)


def test_the_archive_is_there():
    assert sdist_is_there(), f"`.ci/fetch_transformers python` puts it into {locate_sdist()}"


PATCHES, KEPT, WIDTH, HEADS, LAYERS = 16, 3, 48, 4, 2
TINY = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "decoder_hidden_size": WIDTH,
    "decoder_num_hidden_layers": LAYERS,
    "decoder_num_attention_heads": HEADS,
    "estimator_num_hidden_layers": 1,
    "mask_ratio": 0.8,
    "cold_start": False,  # the whole tokenizer, so that every weight takes part
    "quantizer_config": {"codebook_size": 8, "codebook_dim": 8, "num_codebooks": 2},
}
GRIDS = {
    "audio": {"modality": "audio", "input_size": [16, 8], "patch_size": [2, 4]},
    "image": {"modality": "image", "input_size": [16, 16], "patch_size": [4, 4]},
    "video": {"modality": "video", "input_size": [4, 8, 16], "patch_size": [2, 4, 4], "mask_type": "random"},
}
AUDIO, IMAGE, VIDEO = GRIDS.values()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The harness ends its tests of remote code by forgetting under which Auto class each of them is saved."""
    processors = [modality.processor for modality in MODALITIES.values()]
    for cls in (BridleConfig, BridleForPreTraining, *processors):
        monkeypatch.setattr(cls, "_auto_class", cls._auto_class)


def audio(config, batch_size, torch):
    mask = torch.ones(batch_size, config.input_size[0], dtype=torch.long)
    return {"input_values": torch.randn(batch_size, *config.input_size), "attention_mask": mask}


def image(config, batch_size, torch):
    return {"pixel_values": torch.randn(batch_size, config.num_channels, *config.input_size)}


def video(config, batch_size, torch):
    frames, *size = config.input_size
    return {"pixel_values": torch.randn(batch_size, frames, config.num_channels, *size)}


def adapt(config, batch_size, torch, inputs, return_labels):
    """Upstream makes every input that `forward` names; give the model those that go together."""
    if "bool_masked_pos" in inputs:
        inputs.pop("noise", None)
    if config.modality != "audio":
        inputs.pop("attention_mask", None)
    return inputs


def adapt_pretraining(config, batch_size, torch, inputs, return_labels):
    """A loss that reaches every weight is that of the joint phase."""
    inputs = adapt(config, batch_size, torch, inputs, return_labels)
    return {**inputs, "phase": "joint"} if return_labels else inputs


def spec(name, classes, modality, inputs, seq_length=1 + PATCHES, per_class=adapt, **more):
    # every field of the quantizer, as the test that compares what went in with what was saved wants it
    quantizer = BridleConfig(**TINY, **modality).to_diff_dict()["quantizer_config"]
    return ModelSpec(
        name=name,
        config=BridleConfig,
        classes=classes,
        config_kwargs={**TINY, **modality, "quantizer_config": quantizer},
        inputs=inputs,
        seq_length=seq_length,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_masks=PATCHES - KEPT,
        mask_length=PATCHES,
        # read by the test that makes noise for a square image
        extra={"image_size": 4, "patch_size": 1},
        per_class_inputs={cls.__name__: per_class for cls in classes},
        **more,
    )


def a_sound(folder):
    # 16 frames, the whole of the input: of a longer clip the features of all its windows come back
    return np.random.default_rng(0).normal(size=2800).astype(np.float32) / 10


def a_picture(folder):
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8))


def a_video(folder):
    return str(counting_video(Path(folder) / "video.mp4"))


def processor_kwargs(modality):
    return MODALITIES[modality].sizes(BridleConfig(**TINY, **GRIDS[modality]))


def check_scores(case, answers):
    case.assertEqual({answer["label"] for answer in answers}, {"LABEL_0", "LABEL_1"})
    case.assertAlmostEqual(sum(answer["score"] for answer in answers), 1, delta=0.01)


def check_features(case, features):
    case.assertEqual(np.shape(features), (1, 1 + PATCHES, WIDTH))


def pipeline(task, model, example, **more):
    modality = task.split("-")[0]
    return PipelineSpec(
        task=task,
        model=model,
        config=BridleConfig,
        config_kwargs={**TINY, **GRIDS[modality]},
        processor_kw="feature_extractor" if modality == "audio" else f"{modality}_processor",
        processor=MODALITIES[modality].processor,
        processor_kwargs=processor_kwargs(modality),
        example=example,
        check=check_scores if task.endswith("-classification") else check_features,
        **more,
    )


def remote_code(modality):
    """Every Auto class of a modality loads from the one checkpoint of `BridleForPreTraining`."""
    head = getattr(modeling_bridle, MODALITIES[modality].classifier)
    return RemoteCodeSpec(
        name=f"Bridle{modality.title()}",
        config=BridleConfig,
        config_kwargs={**TINY, **GRIDS[modality]},
        model=BridleForPreTraining,
        auto_classes={
            "AutoModel": BridleModel,
            "AutoModelForPreTraining": BridleForPreTraining,
            "AutoModelForAudioTokenization": BridleTokenizer,
            head.__name__.replace("Bridle", "AutoModel"): head,
        },
        processors={MODALITIES[modality].auto_processor: (MODALITIES[modality].processor, processor_kwargs(modality))},
        forbidden=("bridle_hf",),  # the optional ones too: tests/hub/test_reload.py
    )


SPECS = [
    spec("BridleAudio", [BridleModel, BridleForAudioClassification], AUDIO, audio),
    spec("BridleImage", [BridleModel, BridleForImageClassification], IMAGE, image),
    spec("BridleVideo", [BridleModel, BridleForVideoClassification], VIDEO, video),
    # the encoder sees the kept patches alone
    spec("BridleAudioPreTraining", [BridleForPreTraining], AUDIO, audio, 1 + KEPT, adapt_pretraining),
    spec("BridleImagePreTraining", [BridleForPreTraining], IMAGE, image, 1 + KEPT, adapt_pretraining),
    spec("BridleVideoPreTraining", [BridleForPreTraining], VIDEO, video, 1 + KEPT, adapt_pretraining),
    spec(
        "BridleTokenizer",
        [BridleTokenizer],
        AUDIO,
        audio,
        has_attentions=False,  # it returns codes
        all_params_have_gradient=False,  # the estimator learns beside a teacher only
        skip=dict.fromkeys(
            ["test_hidden_states_output", "test_retain_grad_hidden_states_attentions"],
            "a tokenizer returns codes, not hidden states",
        ),
    ),
    ImageProcessorSpec(
        name="Bridle",
        backends={"torchvision": BridleImageProcessor},
        init={"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}},
        size=(3, 18, 18),
    ),
    VideoProcessorSpec(
        name="Bridle",
        cls=BridleVideoProcessor,
        init={"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}},
        num_frames=8,
        crop=18,
    ),
    FeatureExtractorSpec(
        name="Bridle",
        cls=BridleFeatureExtractor,
        # one frame a patch: otherwise `pad` makes whole patches, where these tests count frames
        init={"num_mel_bins": 8, "sampling_rate": 8000, "max_length": 64, "mean": -3.0, "pad_to_multiple_of": 1},
        feature_size=8,
        sequence=True,
    ),
    pipeline("audio-classification", BridleForAudioClassification, a_sound),
    pipeline("image-classification", BridleForImageClassification, a_picture),
    # transformers refuses batches where there is a video processor alone
    pipeline("video-classification", BridleForVideoClassification, a_video, batching=False),
    pipeline("audio-feature-extraction", BridleModel, a_sound),
    pipeline("image-feature-extraction", BridleModel, a_picture),
    pipeline("video-feature-extraction", BridleModel, a_video, batching=False),
    *[remote_code(modality) for modality in MODALITIES],
]
if sdist_is_there():
    TESTS = make_tests(SPECS, __name__)
    # one of the tests gives four channels and takes them back; the harness's shape is the same always
    TESTS["BridleImageProcessorTest"].image_processor_tester_class.expected_output_image_shape = lambda self, images: (
        self.num_channels,
        18,
        18,
    )
    globals().update(TESTS)
