"""wav2vec 2.0 with another quantizer: the loss by hand, what is masked and cut, the script from recipe to table."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from bridle_hf import GradientQuantizer, ProductQuantizer, SmoothedQuantizer
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe, Wav2Vec2WithQuantizer, cut, draw_masks
from bridle_hf.recipes import FOLDER
from bridle_hf.training import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = FOLDER / "wav2vec2"
TINY = {
    "conv_dim": (8,) * 7, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "proj_codevector_dim": 8, "num_negatives": 5,
    "mask_time_prob": 0.5, "mask_time_length": 2, "layerdrop": 0.0,
}  # fmt: skip


def model_and_batch(quantizer, **options):
    torch.manual_seed(0)
    config = Wav2Vec2Config(**TINY)
    model = Wav2Vec2WithQuantizer(config, quantizer, **options)
    return model, {"input_values": torch.randn(3, 4000), **draw_masks(config, 3, 4000, seed=0)}


def test_the_loss_is_the_library_s_contrastive_one_and_the_quantizer_s():
    model, batch = model_and_batch(SmoothedQuantizer(12, 1, 6), quantizer_loss_weight=0.3)
    torch.manual_seed(1)
    output = model(**batch)
    mask = batch["mask_time_indices"]
    assert mask.shape == (3, 12) and 0 < mask.sum() < mask.numel()
    expected = output.contrastive_loss + 0.3 * mask.sum() * model.quantizer.output.loss
    torch.testing.assert_close(output.loss, expected)
    # The quantizer saw the masked places alone.
    vectors = model.vectors(batch["input_values"])
    torch.testing.assert_close(model.quantizer.quantizer(vectors[mask]).loss, model.quantizer.output.loss)
    output.loss.backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"quantizer.projection.weight", "quantizer.quantizer.codebooks.0.embed", "project_q.weight"} <= grads
    assert model(batch["input_values"]).loss is None


def test_contrastive_loss_is_that_of_the_library_s_model_for_the_same_vectors():
    """The library's own model, its quantizer replaced by a table of what ours gave, comes to the same loss."""
    model, batch = model_and_batch(GradientQuantizer(12, 1, 6))
    model.eval()
    output = model(**batch)
    quantized = model.quantizer.output.quantized.detach()

    class Given(torch.nn.Module):
        def forward(self, hidden_states, mask_time_indices=None):
            return quantized, torch.tensor(1.0)

    plain = Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY, codevector_dim=12, diversity_loss_weight=0.0))
    plain.quantizer = Given()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("quantizer.")})
    plain.eval()
    torch.testing.assert_close(plain(**batch).loss, output.contrastive_loss)


def test_perplexity_is_summed_over_the_codebooks_of_masked_places():
    quantizer = ProductQuantizer([GradientQuantizer(4, 1, 6), GradientQuantizer(8, 1, 6)])
    model, batch = model_and_batch(quantizer)
    mask = batch["mask_time_indices"]
    perplexity = model(**batch).codevector_perplexity.item()
    expected = 0
    for book in model.quantizer.output.codes[mask].T.numpy():
        p = np.bincount(book, minlength=6) / len(book)
        expected += np.exp(-sum(x * np.log(x) for x in p if x > 0))
    assert perplexity == pytest.approx(expected, rel=1e-5)


def test_clips_are_cut_or_repeated():
    wave = np.arange(10.0)
    assert cut(wave, 4).tolist() == [0, 1, 2, 3]
    assert cut(wave, 23).tolist() == [*range(10), *range(10), 0, 1, 2]
    random = np.random.default_rng(0)
    starts = {cut(wave, 4, random)[0] for _ in range(200)}
    assert starts == set(range(7))


def test_one_command_ends_in_one_table(clips, tmp_path, monkeypatch, capsys):
    methods = "[{name: 1x8, quantizer: {type: smoothed, codebook_size: 8}}, {name: 2x4, quantizer: "
    methods += "{type: product, inner: vector, codebook_size: 4, kmeans_samples_per_code: 4}}]"
    options = [f"model.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in TINY.items()]
    options += [
        f"data.dataset={clips}",
        "data.exclude={}",
        "data.seconds=0.25",
        "steps=2",
        "batch_size=4",
        f"methods={methods}",
    ]
    options += ["quantizer={codebook_dim: 8}", f"output_dir={tmp_path}"]
    script = ROOT / "examples" / "wav2vec2_pretraining.py"
    monkeypatch.setattr("sys.argv", [str(script), "--recipe", str(RECIPES / "esc10_small.yaml"), *options])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| method | code use % | perplexity | contrastive loss")
    assert [len(line.split("|")[2].split()) for line in lines[2:]] == [1, 2]  # a figure a codebook


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path, cls=Wav2Vec2Recipe)
    for method in recipe.methods:
        config, (books, codes) = method.config(recipe.quantizer), map(int, method.name.split("-")[0].split("x"))
        assert (config.num_codebooks, config.codebook_size) == (books, codes) and config.codebook_dim == 256
    with pytest.raises(ValueError, match="unknown key `model.hidden`"):
        load_recipe(path, ["model.hidden=3"], Wav2Vec2Recipe)


def test_librispeech_is_the_base_model():
    config, base = (
        Wav2Vec2Config(**load_recipe(RECIPES / "librispeech.yaml", cls=Wav2Vec2Recipe).model),
        Wav2Vec2Config(),
    )
    for name in ("conv_dim", "hidden_size", "num_hidden_layers", "intermediate_size", "num_negatives",
                 "proj_codevector_dim", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups"):  # fmt: skip
        assert tuple(np.ravel(getattr(config, name))) == tuple(np.ravel(getattr(base, name)))
