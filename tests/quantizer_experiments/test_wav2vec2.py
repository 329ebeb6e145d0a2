"""wav2vec 2.0 with another quantizer: the loss by hand, what is masked and cut, the script from recipe to table."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from bridle_hf import GradientQuantizer, ProductQuantizer, SmoothedQuantizer
from bridle_hf.data.audio import decode_audio
from bridle_hf.quantizer_experiments.wav2vec2 import (
    Wav2Vec2Recipe,
    Wav2Vec2WithQuantizer,
    count_frames,
    crop,
    draw_masks,
)
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
    return model, {"input_values": torch.randn(3, 4000), **draw_masks(config, [4000] * 3, seed=0)}


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


def test_training_clips_are_cropped_at_random_places():
    wave, random = np.arange(10.0), np.random.default_rng(0)
    starts = {crop(wave, 4, random)[0] for _ in range(200)}
    assert starts == set(range(7)) and len(crop(wave, 4, random)) == 4
    assert crop(wave, 23, random).tolist() == wave.tolist()


def test_neither_masks_nor_negatives_touch_padding():
    config, samples = Wav2Vec2Config(**TINY), [6400, 4000, 2000]
    frames = [count_frames(config, length) for length in samples]
    with torch.no_grad():
        encoded = Wav2Vec2ForPreTraining(config).wav2vec2.feature_extractor(torch.randn(1, 4000))
    assert frames[1] == encoded.shape[-1]
    for seed in range(20):
        drawn = draw_masks(config, samples, seed)
        mask, negatives = drawn["mask_time_indices"], drawn["sampled_negative_indices"]
        assert mask.shape == (3, frames[0])
        for row, length in enumerate(frames):
            assert mask[row, :length].sum() >= 3 and not mask[row, length:].any()
            own = negatives[row][mask[row]] - row * frames[0]
            assert mask[row][own].all()  # a negative is a masked frame of the same clip
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    draw_masks(config, samples, 0)
    assert np.random.random() == expected  # others who draw from numpy's global state go on with theirs
    with pytest.raises(ValueError, match="a clip has 500 samples, that is 1 frames; .*mask_time_length"):
        draw_masks(config, [6400, 500], 0)


def a_recipe(clips, folder, *more):
    options = [f"model.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in TINY.items()]
    options += [f"data.dataset={clips}", "data.exclude={}", f"output_dir={folder}", *more]
    return load_recipe(RECIPES / "esc10_1x1024.yaml", options, Wav2Vec2Recipe)


def test_a_padded_clip_is_trained_on_as_if_it_were_alone(clips, tmp_path):
    """The transformer and the quantizer see no padding; of the feature encoder's group norm this cannot be said."""
    recipe = a_recipe(clips, tmp_path, "data.seconds=0.3", "data.train_split=train", "model.feat_extract_norm=layer")
    rows = recipe.open_samples(train=True)
    lengths = [len(decode_audio(row["audio"], 16_000)) for row in rows]
    long, short = int(np.argmax(lengths)), int(np.argmin(lengths))
    assert lengths[short] < 0.3 * 16_000 < lengths[long]
    pair = recipe.collate([rows[long], rows[short]], 3, train=True)
    assert pair["input_values"].shape == (2, 4800) and pair["attention_mask"].sum(-1).tolist() == [4800, lengths[short]]
    alone = recipe.collate([rows[short]], 3, train=True)
    assert "attention_mask" not in alone
    torch.testing.assert_close(pair["input_values"][1, : lengths[short]], alone["input_values"][0])
    model = recipe.build(recipe.methods[0]).eval()
    frames = count_frames(recipe.config, lengths[short])
    alone = {"input_values": alone["input_values"], "mask_time_indices": pair["mask_time_indices"][1:, :frames]}
    with torch.no_grad():
        together = model(**pair).projected_states[1, :frames]
        expected = model(**alone).projected_states[0]
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    assert len(recipe.vectors(model, pair)) == count_frames(recipe.config, 4800) + frames


def test_whole_clips_are_measured(clips, tmp_path):
    recipe = a_recipe(clips, tmp_path, "data.seconds=0.1", "data.test_split=train", "batch_size=4")
    model, seen = recipe.build(recipe.methods[0]).eval(), []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_values"].shape), with_kwargs=True)
    recipe.measure(model, torch.device("cpu"), tmp_path)
    lengths = [len(decode_audio(row["audio"], 16_000)) for row in recipe.open_samples(train=False)]
    assert seen == [(1, length) for length in lengths] and len(set(lengths)) > 5


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
    monkeypatch.setattr("sys.argv", [str(script), "--recipe", str(RECIPES / "esc10_1x1024.yaml"), *options])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| method | code use % | perplexity | contrastive loss")
    assert [len(line.split("|")[2].split()) for line in lines[2:]] == [1, 2]  # a figure a codebook


TABLE_3 = {
    "euclidean-ste", "cosine-ste", "simvq-ste", "euclidean-rotation", "cosine-rotation",
    "gumbel_hard-perplexity", "gumbel_hard-knn_l2-2", "gumbel_hard-knn_ce-2",
    "gumbel_soft-perplexity", "gumbel_soft-knn_l2-2", "gumbel_soft-knn_ce-2",
    "softmax-perplexity", "softmax-knn_l2-1", "softmax-knn_l2-2", "softmax-knn_ce-1", "softmax-knn_ce-2",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_have_the_rows_of_table_3(path):
    recipe = load_recipe(path, cls=Wav2Vec2Recipe)
    assert {method.name for method in recipe.methods} == TABLE_3
    shape = tuple(map(int, path.stem.split("_")[1].split("x")))
    for method in recipe.methods:
        config = method.config(recipe.quantizer)
        assert (config.num_codebooks, config.codebook_size) == shape and config.codebook_dim == 256
        kind = config.type if config.type != "product" else config.inner
        assert (kind == "smoothed") == ("-knn" in method.name or "perplexity" in method.name)
        if kind == "smoothed":
            sampling, regularizer, *neighbors = method.name.split("-")
            assert config.regularizer == regularizer and config.num_neighbors == int((neighbors or [1])[0])
            assert sampling in (f"gumbel_{config.gumbel}", "softmax") and config.regularizer_weight == 1
        else:
            assert method.name == {"simvq": "simvq-ste"}.get(kind, f"{config.distance}-{config.estimator}")
            assert config.commitment_weight == 1
    with pytest.raises(ValueError, match="unknown key `model.hidden`"):
        load_recipe(path, ["model.hidden=3"], Wav2Vec2Recipe)


@pytest.mark.parametrize(
    ("name", "batch", "warmup", "steps"), [("1x1024", 128, 32_000, 281_216), ("2x320", 64, 10_000, 87_880)]
)
def test_librispeech_is_table_5(name, batch, warmup, steps, monkeypatch):
    recipe = load_recipe(RECIPES / f"librispeech_{name}.yaml", cls=Wav2Vec2Recipe)
    config = Wav2Vec2Config(**recipe.model)
    assert set(config.conv_dim) == {512} and list(config.conv_kernel) == [10, 3, 3, 3, 3, 2, 2]
    assert list(config.conv_stride) == [5, 2, 2, 2, 2, 2, 2]
    assert (config.num_hidden_layers, config.hidden_size) == (12, 768)
    assert (config.num_attention_heads, config.intermediate_size) == (8, 4096)
    dropouts = (config.hidden_dropout, config.attention_dropout, config.activation_dropout, config.layerdrop)
    assert dropouts == (0.1, 0.1, 0.1, 0.05)
    assert int(recipe.data.seconds * 16_000) == 250_000 and recipe.quantizer_loss_weight == 1
    assert (config.mask_time_prob / config.mask_time_length, config.mask_time_length) == (0.065, 10)
    assert config.contrastive_logits_temperature == 0.1
    assert recipe.batch_size * 4 == batch and recipe.betas == (0.9, 0.99) and recipe.weight_decay == 0
    assert recipe.max_grad_norm is None
    monkeypatch.setattr(recipe, "open_samples", lambda train: range(281_241))
    row = recipe.build_tasks(num_processes=4)[0]
    assert row.steps == steps and row.learning_rate_at(0) == 0 and row.learning_rate_at(warmup) == 5e-4
    assert row.learning_rate_at(steps) == pytest.approx(5e-6)
