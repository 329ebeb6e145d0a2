"""What a run warns of: the rules, and that each warning is said once."""

import logging
import re
from math import log

import pytest

from bridle_hf import BridleForPreTraining
from bridle_hf.codebook_metrics import few_codes
from bridle_hf.training import load_recipe, pretrain
from bridle_hf.training.phases import build_schedule
from bridle_hf.training.remarks import codebook_remarks


@pytest.fixture
def phase(tiny_recipe):
    return build_schedule(load_recipe(tiny_recipe, ["output_dir=x", "model.quantizer_config.codebook_size=32"]))[0]


def test_few_codes_are_below_an_eighth_of_what_could_be_used():
    assert few_codes([15.9, 16.0], [128, 128], 10_000) == [
        "codebook 1 of 2 uses its 128 codes as if they were 15.9 (perplexity)"
    ]
    assert few_codes([1.1, 1.3], [128, 64], 10) == [
        "codebook 1 of 2 uses its 128 codes as if they were 1.1 (perplexity)"
    ]


def test_what_a_record_gives_reason_to_warn_of(phase):
    model = BridleForPreTraining(phase.recipe.config())
    sizes = model.config.quantizer_config.codebook_sizes
    healthy = {"codebooks": {"perplexity": list(sizes)}, "cross_entropy": [0.9 * log(size) for size in sizes]}
    assert phase.remarks(model, healthy) == {}
    lost = phase.remarks(model, healthy | {"codebooks": {"perplexity": [1.0, *sizes[1:]]}})["codebooks"]
    assert f"codebook 1 of {len(sizes)} uses its {sizes[0]} codes as if they were 1.0" in lost
    chance = phase.remarks(model, healthy | {"cross_entropy": [log(size) for size in sizes]})["prediction"]
    assert f"{sum(map(log, sizes)) / len(sizes):.2f} by chance" in chance
    assert phase.remarks(model, {"evaluate": {"rankme": 2.0}}) == phase.remarks(model, {"evaluate": {"knn": 0.1}}) == {}
    assert "RankMe 1.0" in phase.remarks(model, {"evaluate": {"rankme": 1.0}})["features"]


def test_codes_of_a_tokenizer_that_is_there_are_of_no_random_projection():
    record = {"codebooks": {"perplexity": [2.0]}, "phase": "encoder-iter1"}
    (cold,), (taken,) = (codebook_remarks(record, [256], 10_000, cold_start).values() for cold_start in (True, False))
    assert "random projection" in cold and "random projection" not in taken


def test_a_warning_is_said_once_a_phase_and_not_at_its_start(tiny_recipe, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("bridle_hf.training.phases.codebook_remarks", lambda *_: {"codebooks": "few codes"})
    monkeypatch.setattr("bridle_hf.training.phases.prediction_remarks", lambda *_: {})
    recipe = load_recipe(
        tiny_recipe, [f"output_dir={tmp_path}/run", "training.max_steps_per_phase=4", "training.logging_steps=1"]
    )
    with caplog.at_level(logging.WARNING, "bridle_hf"):
        pretrain(recipe)
    said = [each.getMessage() for each in caplog.records if "few codes" in each.getMessage()]
    assert said == [f"{phase.name}, step 2: few codes" for phase in build_schedule(recipe)]


def test_the_section_that_a_warning_names_is_there(repository):
    (remark,) = codebook_remarks({"codebooks": {"perplexity": [2.0]}}, [256], 10_000).values()
    of_the_cold_start = {"phase": "encoder-iter1", "codebooks": {"perplexity": [2.0]}}
    assert "tokenizer.steps" not in codebook_remarks(of_the_cold_start, [256], 10_000)["codebooks"]
    page, section = re.search(r"(docs/\w+\.md), (.*)$", remark).groups()
    assert f"\n## {section}\n" in (repository / page).read_text()
