"""docs/recipes.md names every key of a recipe, with its default, and no other."""

import dataclasses
import inspect
import re

import pytest
import yaml
from transformers import PreTrainedConfig

from bridle_hf import BridleConfig, BridleFeatureExtractor
from bridle_hf.configuration_bridle import BridleQuantizerConfig
from bridle_hf.data import DataArguments
from bridle_hf.data.modalities import processor_keys
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining
from bridle_hf.training import PretrainRecipe
from bridle_hf.training.arguments import OptimizationArguments
from bridle_hf.training.evaluating import EvaluateArguments
from bridle_hf.training.phases import EncoderPhase, JointPhase, Phase, TokenizerPhase

# the heading of each table and whose keys are in it
SECTIONS = {
    "Pretraining": PretrainRecipe,
    "Phases": Phase,
    "`encoder`": EncoderPhase,
    "`tokenizer`": TokenizerPhase,
    "`joint`": JointPhase,
    "`training`": OptimizationArguments,
    "`evaluate`": EvaluateArguments,
    "Data": DataArguments,
    "Model": BridleConfig,
    "`model.quantizer_config`": BridleQuantizerConfig,
    "Fine-tuning": FinetuneRecipe,
    "`training` of fine-tuning": FinetuneTraining,
}


@pytest.fixture(scope="module")
def tables(repository):
    """Heading -> key -> default, as the page has them."""
    tables = {}
    text = (repository / "docs" / "recipes.md").read_text()
    for heading, body in re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL):
        rows = [line.split(" | ") for line in body.splitlines() if line.startswith("| `")]
        tables[heading] = {key: cells[1].strip("`") for cells in rows for key in re.findall(r"`([\w.]+)`", cells[0])}
    return {heading: rows for heading, rows in tables.items() if rows}


def defaults(cls):
    """Key -> default of a dataclass's own fields; None where the page says in words what it is."""
    inherited = {f.name for f in dataclasses.fields(PreTrainedConfig)} if issubclass(cls, PreTrainedConfig) else ()
    if issubclass(cls, Phase) and cls is not Phase:
        common = {f.name: f.default for f in dataclasses.fields(Phase)}
        inherited = {f.name for f in dataclasses.fields(cls) if common.get(f.name, ()) == f.default} | {"kind"}
    if cls is EvaluateArguments:
        inherited = {f.name for f in dataclasses.fields(DataArguments)}
    return {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(cls)
        if f.name not in inherited
    }


def test_the_page_has_a_table_for_every_section(tables):
    assert set(tables) == {*SECTIONS, "Processor"}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_stands_in_the_page_with_its_default(tables, heading):
    rows, found = tables[heading], defaults(SECTIONS[heading])
    assert set(rows) == set(found)
    for key, default in found.items():
        assert default in (None, "") or same(rows[key], default), f"{key}: the page says {rows[key]}, it is {default!r}"


def test_the_settings_of_processors_stand_in_the_page(tables):
    rows, sounds = tables["Processor"], processor_keys({"model": {"modality": "audio"}})
    assert set(sounds) <= set(rows) <= set(processor_keys({}))
    for key, parameter in inspect.signature(BridleFeatureExtractor.__init__).parameters.items():
        if key in sounds and not rows[key].startswith(("the window", "frames")):  # these follow the model
            assert same(rows[key], parameter.default), key


def same(cell, default):
    """Whether a cell is the YAML of a default; YAML 1.1 takes 1e-4, without a point, for a word."""
    if isinstance(default, float):
        return float(cell) == default
    if isinstance(default, str):
        return cell == default
    return yaml.safe_load(cell) == (list(default) if isinstance(default, tuple) else default)
