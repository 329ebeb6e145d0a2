"""Saved folders in an interpreter that has neither this package nor soxr, torchaudio, datasets or accelerate."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny import fill_codebooks_, tiny_config

import bridle_hf
from bridle_hf.data import MODALITIES, build_processor
from bridle_hf.hub import reload

SIZES = {"audio": (32, 32), "image": (32, 32), "video": (4, 32, 32)}
HEADS = {name: modality.classifier for name, modality in MODALITIES.items()}
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import reload
reload.forbid()
from safetensors.torch import save_file
for folder in sys.argv[2:]:
    save_file(reload.outputs(folder), folder + "/outputs.safetensors")
leaked = [name for name in sys.modules if name.split(".")[0] in reload.FORBIDDEN and sys.modules[name]]
assert not leaked, leaked
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for every modality and every class that saves weights of its own, run in one clean interpreter."""
    root, found = tmp_path_factory.mktemp("saved"), {}
    torch.manual_seed(0)
    for modality, size in SIZES.items():
        config = tiny_config(modality, input_size=size, cold_start=False)
        for name in ("BridleForPreTraining", "BridleModel", "BridleTokenizer", HEADS[modality]):
            model = getattr(bridle_hf, name)(config)
            fill_codebooks_(model)
            found[modality, name] = folder = root / f"{modality}-{name}"
            model.save_pretrained(folder)
            build_processor(config).save_pretrained(folder)
    program = [sys.executable, "-I", "-c", CHILD, reload.__file__.rsplit("/", 1)[0], *map(str, found.values())]
    subprocess.run(program, check=True)
    return found


@pytest.mark.parametrize("modality", SIZES)
@pytest.mark.parametrize(
    ("name", "loaded"),
    [
        ("BridleForPreTraining", {"AutoModel", "AutoModelForPreTraining", "AutoModelForAudioTokenization"}),
        ("BridleModel", {"AutoModel"}),
        ("BridleTokenizer", {"AutoModelForAudioTokenization"}),
        ("head", {"AutoModel", "AutoModelFor{}Classification"}),
    ],
)
def test_every_class_loads_without_the_package_and_computes_the_same(folders, modality, name, loaded):
    folder = folders[modality, HEADS[modality] if name == "head" else name]
    there = load_file(folder / "outputs.safetensors")
    here = reload.outputs(folder)
    assert set(there) == set(here)
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=0, atol=0, msg=key)
    classes = {key.split(".")[0] for key in there}
    assert classes == {"processor"} | {auto.format(modality.title()) for auto in loaded}
    codes = there.get("AutoModelForAudioTokenization.codes")
    assert codes is None or len(codes.unique()) > 1


def test_every_auto_class_of_the_map_is_the_one_registered_here(folders):
    import transformers

    mapped = json.loads((folders["audio", "BridleModel"] / "config.json").read_text())["auto_map"]
    for auto_class, reference in mapped.items():
        if auto_class != "AutoConfig":
            registered = getattr(transformers, auto_class)._model_mapping[bridle_hf.BridleConfig]
            assert f"modeling_bridle.{registered.__name__}" == reference


def test_the_table_is_that_of_the_modalities():
    named = {name: (each.auto_processor, each.auto_classifier) for name, each in MODALITIES.items()}
    assert {name: row[:2] for name, row in reload.MODALITIES.items()} == named


def test_auto_classes_of_the_modalities_are_those_registered(folders):
    import transformers

    for modality in MODALITIES.values():
        mapping = getattr(transformers, modality.auto_classifier)._model_mapping
        assert mapping[bridle_hf.BridleConfig].__name__ == modality.classifier
        folder = folders[modality.name, modality.classifier]
        assert type(getattr(transformers, modality.auto_processor).from_pretrained(folder)) is modality.processor
