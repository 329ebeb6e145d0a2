"""The attentive probe and the mixes of layers: heads, patches in memory, and `bridle probe` with them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from bridle_hf import BridleModel
from bridle_hf.cli.main import main
from bridle_hf.evaluation.clip_patches import ClipPatches
from bridle_hf.evaluation.features import encoder_features, encoder_patches
from bridle_hf.evaluation.gradient_probe import AttentiveHead, LinearHead, Patches, gradient_scores
from bridle_hf.evaluation.probe import KINDS, LAYERED, linear_probe


def events(n=90, classes=3, dims=6, seed=0):
    """Clips of 5 to 9 patches of strong noise; the class is in one of them, marked by its last number."""
    rng, labels, clips = np.random.default_rng(seed), np.arange(n) % classes, []
    for label in labels:
        patches = 4 * rng.normal(size=(rng.integers(5, 10), dims - 1))
        patches = np.concatenate([patches, np.zeros((len(patches), 1))], axis=1)
        place = rng.integers(len(patches))
        patches[place] = 0.0
        patches[place, label], patches[place, -1] = 3.0, 3.0
        clips.append(patches)
    return clips, labels, np.arange(n) // classes % 3


def test_the_head_is_pytorchs_attention_with_one_query():
    generator = torch.Generator().manual_seed(0)
    head = AttentiveHead(2, 12, 3, generator, heads=4)
    with torch.no_grad():
        for parameter in (head.query, head.weight, head.bias, head.mix):
            parameter.normal_(generator=generator)
        patches = torch.randn(5, 2, 7, 12, generator=generator)
        valid = torch.arange(7) < torch.tensor([7, 1, 3, 6, 2])[:, None]
        x = (head.mix.softmax(0)[:, None, None] * patches).sum(1)
        query, key, value = head.query.expand(5, 1, 4, 3), x @ head.key.T, x @ head.value.T
        key, value = (each.unflatten(2, (4, 3)).transpose(1, 2) for each in (key, value))
        seen = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, valid[:, None, None])
        expected = seen.transpose(1, 2).flatten(1) @ head.weight.T + head.bias
        torch.testing.assert_close(head((patches, valid)), expected, atol=1e-5, rtol=1e-5)
        changed = patches.clone()
        changed.transpose(1, 2)[~valid] = 1e4
        torch.testing.assert_close(head((changed, valid)), expected, atol=1e-5, rtol=1e-5)


def test_patches_are_standardised_over_all_that_are_valid():
    clips = [np.random.default_rng(i).normal(3, 2, size=(2, 3 + i, 4)).astype(np.float16) for i in range(5)]
    patches = ClipPatches(clips)
    assert len(patches) == 5 and len(patches[np.array([True, False, True, False, True])]) == 3
    all_of_them = np.concatenate(clips, axis=1).astype(np.float64)
    x = Patches(patches)
    values, valid = x[torch.tensor([4, 0])]
    assert valid.sum(dim=1).tolist() == [7, 3]
    expected = (clips[0] - all_of_them.mean(axis=1, keepdims=True)) / all_of_them.std(axis=1, keepdims=True)
    np.testing.assert_allclose(values[1, :, :3], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([np.zeros((3, 4)), np.zeros((3, 5))], "got arrays of shapes"),
        ([np.zeros((3, 4)), np.zeros((0, 4))], "at least one patch"),
        ([np.full((3, 4), 1e6)], "more than float16 holds"),
    ],
)
def test_patches_that_cannot_be_are_named(clips, message):
    with pytest.raises(ValueError, match=message):
        ClipPatches(clips)


def test_attention_finds_the_patch_that_says_something():
    clips, labels, folds = events()
    found = linear_probe(ClipPatches(clips), labels, folds, kind="attentive", grid=(1e-2,))
    mean = linear_probe(np.stack([clip.mean(axis=0) for clip in clips]), labels, folds, kind="gradient", grid=(1e-2,))
    assert found.accuracy > mean.accuracy + 0.2 and found.accuracy > 0.7
    again = linear_probe(ClipPatches(clips), labels, folds, kind="attentive", grid=(1e-2,), test_folds=[1])
    assert again.predicted[folds == 1].tolist() == found.predicted[folds == 1].tolist()


def test_its_knob_is_chosen_by_the_other_folds_alone():
    clips, labels, folds = events(n=45)
    plain = linear_probe(ClipPatches(clips), labels, folds, kind="attentive", grid=(1e-6, 1e-2), test_folds=[2])
    shuffled = labels.copy()
    shuffled[folds == 2] = np.random.default_rng(0).permutation(labels[folds == 2])
    other = linear_probe(ClipPatches(clips), shuffled, folds, kind="attentive", grid=(1e-6, 1e-2), test_folds=[2])
    assert other.chosen_c[2] == plain.chosen_c[2]


def test_features_of_another_kind_are_named():
    with pytest.raises(ValueError, match=r"got an array of shape \(8, 2\); kind 'attentive' takes ClipPatches"):
        linear_probe(np.zeros((8, 2)), np.arange(8) % 2, kind="attentive")
    with pytest.raises(ValueError, match="got ClipPatches; kind 'linear' takes"):
        linear_probe(ClipPatches([np.zeros((3, 2))] * 8), np.arange(8) % 2)


def test_a_head_of_vectors_is_a_linear_layer_of_their_mean():
    head = LinearHead(3, 4, 2)
    rows = torch.randn(5, 3, 4)
    with torch.no_grad():
        head.weight.normal_(), head.mix.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    expected = (0.5 * rows[:, 0] + 0.3 * rows[:, 1] + 0.2 * rows[:, 2]) @ head.weight.T
    torch.testing.assert_close(head(rows), expected)


def test_the_layer_that_says_something_gets_the_weight():
    clips, labels, folds = events(n=60)
    noise = [np.random.default_rng(i).normal(size=clip.shape) for i, clip in enumerate(clips)]
    layers = ClipPatches([np.stack(both) for both in zip(noise, clips, strict=True)])
    _, mix = gradient_scores(layers, labels, layers, [1e-2])
    assert mix[0, 1] > 0.6 and mix[0].sum() == pytest.approx(1)
    found = linear_probe(layers, labels, folds, kind="attentive", grid=(1e-2,))
    assert list(found.layer_weights) == [0, 1, 2] and all(weights[1] > 0.5 for weights in found.layer_weights.values())


def test_patches_of_an_encoder_are_those_that_are_no_padding(pretrained, padded_examples):
    model = BridleModel.from_pretrained(pretrained)
    frames, bins = model.config.input_size
    x = np.random.default_rng(0).normal(size=(3, frames, bins)).astype(np.float32)
    short = frames // 2 // 16 * 16
    clips = padded_examples(x, np.arange(frames) < np.array([frames, short, frames])[:, None])
    patches = encoder_patches(model, clips, (0, None), batch_size=2)
    alone = padded_examples(x[1:2, :short], np.ones((1, short), dtype=bool))
    expected = encoder_patches(model, alone, (0, None))
    assert patches.num_layers == 2 and patches.clips[1].shape == expected.clips[0].shape
    torch.testing.assert_close(patches.clips[1], expected.clips[0], atol=4e-3, rtol=2e-3)  # of float16
    # their mean is what the other kinds see
    means = np.stack([clip[1].float().mean(dim=0).numpy() for clip in patches.clips])
    np.testing.assert_allclose(means, encoder_features(model, clips)[None, "mean"], atol=2e-3)


def test_a_mean_of_layers_is_that_of_extract_features(pretrained, padded_examples):
    model = BridleModel.from_pretrained(pretrained).eval()
    x = np.random.default_rng(0).normal(size=(3, *model.config.input_size)).astype(np.float32)
    clips = padded_examples(x, np.ones(x.shape[:2], dtype=bool))
    found = encoder_features(model, clips, (0, 1, -1), ("mean_std",), even=True)
    with torch.no_grad():
        expected = model.extract_features(
            torch.tensor(x), pooling="mean_std", layers=[0, 1, -1], layer_weights=torch.ones(3)
        ).features
    assert list(found) == [((0, 1, -1), "mean_std")]
    np.testing.assert_allclose(found[(0, 1, -1), "mean_std"], expected, atol=1e-5)


@pytest.fixture
def probe(tones, pretrained, capsys, monkeypatch):
    for kind in LAYERED:  # one rate, for speed
        monkeypatch.setitem(KINDS, kind, (KINDS[kind][0], (1e-2,)))

    def run(*options, fails=False):
        words = ["probe", "--dataset", tones, "--label-column", "sound", "--fold-column", "fold", *options]
        words += [] if "logmel-delta" in options else ["--model", pretrained]
        if fails:
            with pytest.raises(SystemExit, match="2"):
                main([str(word) for word in words])
            return capsys.readouterr().err
        main([str(word) for word in words])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize(
    ("options", "layer", "number"),
    [
        (["--kind", "attentive"], None, None),
        (["--kind", "attentive", "--baseline", "random", "--seeds", "0", "--layers", "all"], ["all"], None),
        (["--kind", "attentive", "--layers", "0", "1", "--mix", "weighted"], [0, 1], 2),
        (["--kind", "gradient", "--layers", "all", "--mix", "weighted"], ["all"], 2),
        (["--layers", "0", "1", "--mix", "mean"], [0, 1], None),
        (["--kind", "knn", "--baseline", "logmel-delta"], None, None),
        (["--kind", "gradient", "--baseline", "logmel-delta"], None, None),
    ],
)
def test_kinds_and_layers_of_the_command(probe, pretrained, options, layer, number):
    report = probe(*options)
    depth = BridleModel.from_pretrained(pretrained).config.num_hidden_layers
    assert report["layer"] in (layer, *(layer or ["none"])) and report["clips"] == 24 and report["accuracy"] > 0.7
    assert (report["pooling"] is None) == ("attentive" in options or "logmel-delta" in options)
    if number is None:
        assert "layer_weights" not in report
    else:
        weights = np.array(report["layer_weights"])
        assert weights.shape == (1, 3, number if "all" not in options else depth + 1)
        np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0", "1", "--mix", "weighted"], "it takes --kind gradient or attentive"),
        (["--layers", "1", "--mix", "mean"], "it takes several --layers"),
        (["--layers", "1", "1"], "it takes each layer once"),
        (["--layers", "all", "1"], "it takes one or the other"),
        (["--layers", "99"], "the model has layers 1.."),
        (["--kind", "attentive", "--pooling", "mean"], "--kind attentive learns how to pool"),
        (["--kind", "attentive", "--baseline", "logmel-delta"], "--kind attentive looks at patches, and takes random"),
        (["--layers", "1", "--baseline", "logmel-delta"], "has no encoder"),
        (["--pooling", "bands", "--baseline", "logmel-delta"], "has no encoder"),
        (["--pooling", "mean", "bands", "--output", "said.csv"], "--pooling is mean bands; --output"),
    ],
)
def test_options_that_do_not_go_together_are_named(probe, options, message):
    assert message in probe(*options, fails=True)


def test_several_poolings_give_a_line_each_as_if_alone(tones, pretrained, capsys):
    words = ["probe", "--dataset", tones, "--label-column", "sound", "--fold-column", "fold", "--model", pretrained]
    words = [str(word) for word in words] + ["--kind", "knn", "--baseline", "random", "--seeds", "0", "1", "--pooling"]

    def reports(*poolings):
        main([*words, *poolings])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    both = reports("mean", "bands", "mean")
    assert both == reports("mean") + reports("bands")
    assert all(1 <= k <= 50 for report in both for chosen in report["k"] for k in chosen) and "C" not in both[0]


def test_a_mean_of_layers_is_written(tones, pretrained, tmp_path, capsys):
    common = ["features", "--model", str(pretrained), "--dataset", str(tones), "--layers", "all"]
    main([*common, "--output", str(tmp_path / "each.parquet")])
    main([*common, "--mix", "mean", "--output", str(tmp_path / "mean.parquet")])
    each, mean = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in ("each", "mean"))
    layers = [name for name in each if name.startswith("layer_")]
    assert layers == [f"layer_{i}" for i in range(BridleModel.from_pretrained(pretrained).config.num_hidden_layers + 1)]
    np.testing.assert_allclose(mean["mean"], np.mean([each[name] for name in layers], axis=0), atol=1e-5)
    assert not set(layers) & set(mean)
