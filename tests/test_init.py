"""What `import bridle_hf` gives: the public names, and transformers' Auto classes that find them."""

import os
import subprocess
import sys

import pytest
import transformers

import bridle_hf
from bridle_hf.data import MODALITIES, build_processor

TINY = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "estimator_num_hidden_layers": 1, "estimator_num_attention_heads": 2,
    "quantizer_config": {"codebook_size": 8, "codebook_dim": 8},
}  # fmt: skip


def test_every_public_name_is_there():
    missing = [name for name in bridle_hf.__all__ if not hasattr(bridle_hf, name)]
    assert not missing and sorted(bridle_hf.__all__) == bridle_hf.__all__


def import_beside(folder, package: str) -> subprocess.CompletedProcess:
    """Import bridle_hf in a new process that finds a `package` built for another torch."""
    (folder / f"{package}.py").write_text("raise RuntimeError('undefined symbol')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", "import bridle_hf"], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("package", "cure"),
    [("torchvision", "pip install --force-reinstall torch torchvision"), ("torchaudio", "pip uninstall torchaudio")],
)
def test_a_companion_built_for_another_torch_is_named_with_the_cure(package, cure, tmp_path):
    result = import_beside(tmp_path, package)
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: {package} does not load beside the torch installed (undefined symbol)")
    assert cure in message


def test_models_and_processors_do_without_what_the_extras_install():
    program = """
import sys
extras = ("accelerate", "datasets", "evaluate", "sklearn", "scipy", "soundfile", "threadpoolctl", "torchdata")
sys.modules.update(dict.fromkeys((*extras, "torchaudio", "av", "matplotlib")))
import torch
import bridle_hf
config = bridle_hf.BridleConfig(modality="audio", hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
inputs = bridle_hf.BridleFeatureExtractor()(torch.ones(16000), sampling_rate=16000, return_tensors="pt")
bridle_hf.BridleModel(config).eval()(**inputs)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("auto", "modality", "name"),
    [
        ("AutoModel", "audio", "BridleModel"),
        ("AutoModelForPreTraining", "audio", "BridleForPreTraining"),
        ("AutoModelForAudioTokenization", "audio", "BridleTokenizer"),
        ("AutoModelForAudioClassification", "audio", "BridleForAudioClassification"),
        ("AutoModelForImageClassification", "image", "BridleForImageClassification"),
        ("AutoModelForVideoClassification", "video", "BridleForVideoClassification"),
    ],
)
def test_auto_models_load_what_was_saved(auto, modality, name, tmp_path):
    config = bridle_hf.BridleConfig(modality=modality, **TINY)
    getattr(bridle_hf, name)(config).save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is bridle_hf.BridleConfig
    assert type(getattr(transformers, auto).from_pretrained(tmp_path)) is getattr(bridle_hf, name)


def test_auto_feature_extractor_loads_what_was_saved(tmp_path):
    bridle_hf.BridleConfig(modality="audio", **TINY).save_pretrained(tmp_path)
    bridle_hf.BridleFeatureExtractor(num_mel_bins=64).save_pretrained(tmp_path)
    loaded = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is bridle_hf.BridleFeatureExtractor and loaded.num_mel_bins == 64


@pytest.mark.parametrize("trust", [False, True])
def test_auto_classes_find_the_processor_of_a_modality_and_no_other(trust, tmp_path):
    found, expected = {}, {}
    for modality, processor in ((name, modality.processor) for name, modality in MODALITIES.items()):
        config = bridle_hf.BridleConfig(modality=modality, **TINY)
        for part in (bridle_hf.BridleModel(config), build_processor(config)):
            part.save_pretrained(tmp_path / modality)
        for auto in ("AutoProcessor", *(each.auto_processor for each in MODALITIES.values())):
            own = auto in ("AutoProcessor", MODALITIES[modality].auto_processor)
            expected[modality, auto] = processor if own else None
            try:
                loaded = getattr(transformers, auto).from_pretrained(tmp_path / modality, trust_remote_code=trust)
                found[modality, auto] = type(loaded)
            except (ValueError, OSError):
                found[modality, auto] = None
    assert found == expected


def test_a_processor_says_what_it_found_instead(tmp_path):
    bridle_hf.BridleConfig(modality="audio", **TINY).save_pretrained(tmp_path)
    bridle_hf.BridleFeatureExtractor().save_pretrained(tmp_path)
    for cls in (bridle_hf.BridleImageProcessor, bridle_hf.BridleVideoProcessor):
        with pytest.raises(ValueError, match="holds the settings of a BridleFeatureExtractor; this class takes those"):
            cls.from_pretrained(tmp_path)
    bridle_hf.BridleImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of a BridleImageProcessor; this class takes those of a feature_extractor"):
        bridle_hf.BridleFeatureExtractor.from_pretrained(tmp_path)
