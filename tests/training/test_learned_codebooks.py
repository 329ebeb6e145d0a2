"""Tokenizers whose codebooks learn by gradient, through whole runs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from bridle_hf import BridleForPreTraining, ResidualQuantizer, build_quantizer
from bridle_hf.recipes import FOLDER
from bridle_hf.training import load_recipe

RECIPES = FOLDER / "quantizer"
SMOOTHED = "model.quantizer_config.inner=smoothed"
GUMBEL = ("model.quantizer_config.gumbel=soft", "model.quantizer_config.gumbel_schedule=[2.0, 0.5, 0.9]")


@pytest.fixture
def whole(train, tmp_path):
    """The tiny run, three phases, with a checkpoint of every step."""
    folder = tmp_path / "whole"
    train(folder, SMOOTHED, *GUMBEL, "training.checkpoint_steps=1", "training.keep_checkpoints=99")
    return folder


def at(folder, phase, step):
    return load_file(folder / "checkpoints" / f"phase-{phase:02d}-step-{step:08d}" / "model.safetensors")


def test_codebooks_are_trained_in_the_tokenizer_phase_alone_and_a_resumed_run_is_the_same(whole, train, tmp_path):
    names = [f"tokenizer.quantizer.codebooks.{stage}.{name}" for stage in (0, 1) for name in ("embed", "log_t", "tau")]
    # Before, the codes are those of the cold start: EMA codebooks that k-means has set.
    assert "tokenizer.quantizer.codebooks.0.cluster_size" in at(whole, 0, 1)
    first, last, after = at(whole, 1, 1), at(whole, 1, 3), at(whole, 2, 4)
    for name in names:
        assert not torch.equal(first[name], last[name]) and torch.equal(last[name], after[name])
    assert last[names[2]] == pytest.approx(2.0 * 0.9**3)

    model = BridleForPreTraining.from_pretrained(whole / "final")
    quantizer = model.tokenizer.quantizer
    assert type(quantizer).__name__ == "SmoothedQuantizer"
    assert torch.equal(quantizer.codebooks[1].embed, after[names[3]])

    low = BridleForPreTraining.from_pretrained(whole / "final", dtype=torch.bfloat16).tokenizer
    assert low.quantize_layer[0].weight.dtype == torch.bfloat16
    for name, value in low.quantizer.state_dict().items():  # not cast
        assert torch.equal(value, after[f"tokenizer.quantizer.{name}"])

    for phase, step in ((0, 4), (1, 2)):  # in the cold start, among the learned codes
        folder = tmp_path / f"resumed-{phase}-{step}"
        name = f"phase-{phase:02d}-step-{step:08d}"
        shutil.copytree(whole / "checkpoints" / name, folder / "checkpoints" / name)
        shutil.copy(whole / "metrics.jsonl", folder)
        train(folder, SMOOTHED, *GUMBEL)
        resumed = load_file(folder / "final" / "model.safetensors")
        assert all(torch.equal(resumed[name], value) for name, value in after.items())


@pytest.mark.parametrize(
    "options",
    [
        "{type: smoothed, num_codebooks: 1, gumbel: hard, regularizer: knn_l2, num_vertices: 2}",
        "{type: residual, inner: simvq, num_codebooks: 2, distance: cosine, estimator: rotation}",
        "{type: product, inner: gradient, num_codebooks: 2}",
        "{type: fsq, num_codebooks: 1, levels: [4]}",
    ],
)
def test_other_kinds_train_as_tokenizers(train, tmp_path, options):
    train(
        tmp_path / "run",
        f"model.quantizer_config={options}",
        "model.quantizer_config.codebook_size=4",
        "model.quantizer_config.codebook_dim=8",
        "phases=[{kind: tokenizer, steps: 2}, {kind: joint, steps: 2}]",
        "training.checkpoint_steps=1",
        "training.keep_checkpoints=99",
    )
    before, after = at(tmp_path / "run", 0, 1), at(tmp_path / "run", 0, 2)
    moved = {name for name in after if ".quantizer." in name and not torch.equal(before[name], after[name])}
    assert any(name.endswith(("embed", "weight")) for name in moved)
    assert not any(name.endswith("frozen") for name in moved)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_overlays_are_a_few_lines_that_build_a_quantizer_with_something_to_learn(path):
    recipe = load_recipe(path)
    quantizer = build_quantizer(recipe.config().quantizer_config)
    assert quantizer.dim == 64
    trained = "tokenizer" in [phase.kind for phase in recipe.phases]
    learns = bool(list(quantizer.parameters())) or not quantizer.initialized  # EMA codebooks wait for data
    assert trained == learns
    assert recipe.output_dir == f"runs/{path.stem}" and len(path.read_text().splitlines()) <= 6


def test_a_cold_start_is_that_of_ema_codebooks(train, tmp_path):
    for name, options in (("ema", ()), ("smoothed", (SMOOTHED,))):
        train(tmp_path / name, *options, "phases=[{kind: encoder, steps: 1}]")
    ema, smoothed = (BridleForPreTraining.from_pretrained(tmp_path / name / "final") for name in ("ema", "smoothed"))
    assert type(smoothed.tokenizer.quantizer) is ResidualQuantizer
    for name, value in ema.state_dict().items():
        assert torch.equal(value, smoothed.state_dict()[name]), name
