"""Discrete autoencoding: the network's shapes, its measures by hand, the script from recipe to table."""

import io
import json
import runpy
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from bridle_hf import (
    BridleQuantizerConfig,
    GradientQuantizer,
    ProductQuantizer,
    SmoothedQuantizer,
    VectorQuantizer,
)
from bridle_hf.quantizer_experiments.autoencoder import DiscreteAutoencoder, ResidualBlock
from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe, evaluate, save_pairs
from bridle_hf.quantizer_experiments.fidelity import Fidelity, Inception
from bridle_hf.quantizer_experiments.table import DatasetArguments, open_split
from bridle_hf.recipes import FOLDER
from bridle_hf.training import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = FOLDER / "autoencoding"
TINY = ["steps=2", "batch_size=4", "model.channels=[8, 8, 8]", "quantizer={codebook_size: 8, codebook_dim: 4}"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of 12 training and 6 test images of 40 x 32 pixels."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)

    def png():
        buffer = io.BytesIO()
        Picture.fromarray(random.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = Features({"img": Image(), "label": Value("int64")})
    for split, count in (("train", 12), ("test", 6)):
        rows = [{"img": png(), "label": i} for i in range(count)]
        (folder / "data").mkdir(exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def table(monkeypatch, capsys):
    def run(*arguments, fails=False):
        monkeypatch.setattr("sys.argv", ["discrete_autoencoding.py", *map(str, arguments)])
        if fails:
            with pytest.raises(SystemExit, match="2"):
                runpy.run_path(str(ROOT / "examples" / "discrete_autoencoding.py"), run_name="__main__")
            return capsys.readouterr().err
        runpy.run_path(str(ROOT / "examples" / "discrete_autoencoding.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("channels", [[16, 8], [8, 16, 16], [24, 16, 16, 8]])
def test_the_decoder_mirrors_the_encoder(channels):
    model, factor = DiscreteAutoencoder(GradientQuantizer(5, 1, 8), channels), 2 ** (len(channels) - 1)
    images = torch.randn(2, 3, 16, 24)
    reconstruction, output = model(images)
    assert output.codes.shape == (2, 16 // factor, 24 // factor, 1)
    assert reconstruction.shape == images.shape
    reconstruction.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("quantizer"))


def test_convolutions_are_3_x_3_and_depthwise_separable_but_for_the_outermost():
    model = DiscreteAutoencoder(GradientQuantizer(5, 1, 8), [16, 16, 8])
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    dense = [m for m in convolutions if m.kernel_size != (1, 1) and m.groups == 1]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in dense] == [(3, 16, (3, 3)), (16, 3, (3, 3))]
    assert {m.kernel_size for m in convolutions if m.groups > 1} == {(3, 3)}
    for depthwise, pointwise in zip(convolutions, convolutions[1:], strict=False):
        if depthwise.groups > 1:
            assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
            assert pointwise.kernel_size == (1, 1) and pointwise.in_channels == depthwise.out_channels
    with pytest.raises(ValueError, match=r"`channels` is \[12\]; it takes two or more multiples of 8"):
        DiscreteAutoencoder(GradientQuantizer(5, 1, 8), [12])


class Identity(DiscreteAutoencoder):
    """Pixels are vectors of 3 numbers, and what is decoded is what was quantized."""

    def __init__(self, quantizer):
        super().__init__(quantizer, [8, 8])
        self.encoder = self.decoder = torch.nn.Identity()


def test_measures_by_hand():
    quantizer = GradientQuantizer(3, 1, 4)
    with torch.no_grad():
        quantizer.codebooks[0].embed.copy_(torch.tensor([[1.0] * 3, [-1.0] * 3, [9.0] * 3, [-9.0] * 3]))
    image = torch.full((1, 3, 2, 2), 0.6)
    image[..., 1, 1] = -1.0
    other = torch.full((1, 3, 2, 2), 1.0)
    measured = evaluate(Identity(quantizer).eval(), [image, other])
    assert measured["code_use"] == [0.5]
    assert measured["images"] == 2 and measured["images_by_codes"] == {"1": 1, "2": 1}
    assert measured["images_with_code"] == [2, 1, 0, 0]
    assert measured["rmse"] == pytest.approx((3 / 8 * 0.2**2) ** 0.5)  # three of eight places are .4 / 2 off
    entropy = -(7 / 8 * np.log(7 / 8) + 1 / 8 * np.log(1 / 8))
    assert measured["perplexity"] == pytest.approx([np.exp(entropy)])
    assert measured["individual_perplexity"] == {"75": 1, "90": 1, "99": 1, "100": 1}
    assert measured["temperature"] is None and "fid" not in measured


def test_individual_perplexity_is_that_of_the_training_assignments():
    quantizer = SmoothedQuantizer(3, 1, 4, temperature=0.5)
    model, images = Identity(quantizer).eval(), torch.randn(2, 3, 4, 4)
    rows = images.movedim(1, -1).reshape(-1, 3).double()
    codes = quantizer.codebooks[0].embed.detach().double()
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], codes, dim=-1)
    p = (cosine / 0.5).softmax(-1)
    expected = (p * -p.log()).sum(-1).exp().numpy()
    measured = evaluate(model, [images])
    assert measured["individual_perplexity"]["100"] == pytest.approx(expected.max(), rel=1e-5)
    assert measured["individual_perplexity"]["75"] == pytest.approx(np.percentile(expected, 75), rel=1e-5)
    assert measured["temperature"] == pytest.approx(0.5)


def test_codebooks_of_a_product_are_measured_one_by_one():
    model = Identity(ProductQuantizer([GradientQuantizer(1, 1, 4), GradientQuantizer(2, 1, 4)])).eval()
    recipe = load_recipe(RECIPES / "cifar10_small.yaml", cls=AutoencodingRecipe)
    row = recipe.summary_row({"method": "x", "minutes": 1.0, **evaluate(model, [torch.randn(2, 3, 4, 4)])})
    assert len(row["code use %"].split()) == len(row["perplexity"].split()) == 2


def test_one_command_ends_in_one_table_and_goes_on_where_it_was(table, pictures, tmp_path):
    command = ["--recipe", RECIPES / "cifar10_small.yaml", *TINY, f"data.dataset={pictures}", f"output_dir={tmp_path}"]
    first = table(*command, "data.size=16", "--method", "ema-kmeans", "--method", "softmax-knn_ce-1")
    assert [line.split(" | ")[0] for line in first.splitlines()[2:]] == ["| softmax-knn_ce-1", "| ema-kmeans"]
    results = json.loads((tmp_path / "softmax-knn_ce-1" / "results.json").read_text())
    assert (
        results["recipe"]["steps"] == 2
        and len(results["images_with_code"]) == 8
        and 1 < results["individual_perplexity"]["100"] <= 8
    )
    before = (tmp_path / "ema-kmeans" / "results.json").stat().st_mtime_ns
    second = table(*command, "data.size=16", "--method", "ema-kmeans", "--method", "cosine-ste", "seed=0")
    assert "| cosine-ste |" in second and first.splitlines()[3] in second
    assert (tmp_path / "ema-kmeans" / "results.json").stat().st_mtime_ns == before
    assert (tmp_path / "results.md").read_text() == second
    histograms = (tmp_path / "code_histograms.svg").read_text()
    drawn = {
        name: f"<!-- {name} -->" in histograms for name in ("ema-kmeans", "softmax-knn_ce-1", "cosine-ste", "softmax")
    }
    assert drawn == {"ema-kmeans": True, "softmax-knn_ce-1": True, "cosine-ste": True, "softmax": False}
    assert Picture.open(tmp_path / "cosine-ste" / "reconstructions.png").size == (4 * 16, 2 * 16)


def test_bfloat16(table, pictures, tmp_path):
    command = ["--recipe", RECIPES / "cifar10_small.yaml", *TINY, f"data.dataset={pictures}", f"output_dir={tmp_path}"]
    out = table(*command, "data.size=16", "--method", "gumbel_hard-knn_ce-1", "mixed_precision=bf16")
    assert "| gumbel_hard-knn_ce-1 |" in out


def test_a_picture_has_images_above_what_the_codes_make_of_them(tmp_path):
    quantizer = GradientQuantizer(3, 1, 2)
    with torch.no_grad():
        quantizer.codebooks[0].embed.copy_(torch.tensor([[1.0, -1.0, 0.2], [-2.0, -2.0, -2.0]]))
    images = torch.full((2, 3, 4, 6), 0.8)
    images[1] = -1.0
    save_pairs(Identity(quantizer).eval(), images, tmp_path / "pairs.png")
    pixels = np.asarray(Picture.open(tmp_path / "pairs.png"))
    assert pixels.shape == (8, 12, 3)
    assert (pixels[:4, :6] == 230).all() and (pixels[:4, 6:] == 0).all()  # 127.5 * 1.8 = 229.5
    assert (pixels[4:, :6] == [255, 0, 153]).all() and (pixels[4:, 6:] == 0).all()


def test_what_is_wrong_is_named(table, pictures, tmp_path):
    recipe = ["--recipe", RECIPES / "cifar10_small.yaml", f"output_dir={tmp_path}"]
    assert "no method kmeans in the recipe; it has euclidean-ste" in table(*recipe, "--method", "kmeans", fails=True)
    assert "unknown key `quantizer.size`" in table(*recipe, "quantizer.size=3", fails=True)
    wrong = "methods=[{name: a, quantizer: {type: tree}}]"
    assert "`methods`, a: `type` is 'tree'" in table(*recipe, wrong, fails=True)
    twice = "methods=[{name: a, quantizer: {}}, {name: a, quantizer: {}}]"
    assert "each with a name of its own" in table(*recipe, twice, fails=True)
    given = [*recipe, f"data.dataset={pictures}"]
    assert "data.column is 'image'" in table(*given, "data.column=image", "--method", "cosine-ste", fails=True)
    for key in ("data.train_split", "data.test_split"):
        assert f"error: {key} is 'valid'" in table(*given, f"{key}=valid", f"output_dir={tmp_path}", fails=True)
    few = table(*given, "batch_size=13", f"output_dir={tmp_path}", fails=True)
    assert "error: the training split has 12 samples; a step takes batch_size=13 on each of 1 processes." in few
    assert not list(tmp_path.iterdir())  # no model was built, no step taken
    assert "`methods`, softmax-knn_l2-2: `num_neighbors` is 2; a step has at most 1 vectors" in table(
        *given, "data.size=4", "batch_size=1", fails=True
    )
    assert "`data.size` is 6; `model.channels` takes multiples of 4" in table(*given, "data.size=6", fails=True)
    assert "neither `steps` nor `epochs` is given" in table(*given, "steps=null", fails=True)
    assert "`epochs` is 0.0; it takes a number above 0" in table(*given, "steps=null", "epochs=0", fails=True)
    assert "`warmup_steps` is -1" in table(*given, "warmup_steps=-1", fails=True)


def test_excluded_clips_are_not_opened(pictures):
    given = {"dataset": str(pictures), "column": "img", "test_split": "test"}
    kept = [open_split(DatasetArguments(**given, exclude={"label": ["2", 5]}), train) for train in (True, False)]
    assert [len(clips) for clips in kept] == [10, 4] and kept[0].column_names == ["img"]
    whole = open_split(DatasetArguments(**given), True)
    assert kept[0][2]["img"] == whole[3]["img"] and kept[0][4]["img"] == whole[6]["img"]
    with pytest.raises(ValueError, match="^data.exclude names 'esc10'; .* has img, label.$"):
        open_split(DatasetArguments(**given, exclude={"esc10": [False]}), True)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path, cls=AutoencodingRecipe)
    assert recipe.data.size % recipe.model.downsampling == 0


def test_the_rows_are_those_of_table_1():
    recipe = load_recipe(RECIPES / "imagenet_64x64x3.yaml", cls=AutoencodingRecipe)
    rows = {}
    for method in recipe.methods:
        own, config = recipe.of(method), method.config(recipe.quantizer)
        kind = config.estimator if config.type in ("gradient", "simvq") else config.gumbel
        rows[method.name] = (
            config.type, kind, config.distance, config.regularizer, config.num_neighbors, own.learning_rate,
            own.weight_decay,
        )  # fmt: skip
        assert config.commitment_weight in (1.0, 0.0) and config.regularizer_weight == 1.0
    slow, usual = (5e-5, 0), (1e-4, 1e-4)
    default = BridleQuantizerConfig(type="smoothed")
    hard = {
        "euclidean-ste": ("gradient", "ste", "euclidean", *slow), "cosine-ste": ("gradient", "ste", "cosine", *usual),
        "simvq-ste": ("simvq", "ste", "euclidean", *usual),
        "euclidean-rotation": ("gradient", "rotation", "euclidean", *slow),
        "cosine-rotation": ("gradient", "rotation", "cosine", *usual),
    }  # fmt: skip
    assert {name: (*rows[name][:3], *rows[name][5:]) for name in hard} == hard
    smooth = {"gumbel_hard-perplexity": ("hard", "perplexity", 1), "gumbel_hard-knn_ce-1": ("hard", "knn_ce", 1),
              "gumbel_soft-perplexity": ("soft", "perplexity", 1), "gumbel_soft-knn_ce-1": ("soft", "knn_ce", 1),
              "softmax-perplexity": (default.gumbel, "perplexity", 1)}  # fmt: skip
    for divergence in ("knn_l2", "knn_ce"):
        smooth |= {f"softmax-{divergence}-{k}": (default.gumbel, divergence, k) for k in (1, 2, 4, 8)}
    assert {name: (rows[name][1], *rows[name][3:5]) for name in smooth} == smooth
    assert all(rows[name][5:] == usual for name in smooth) and rows.keys() == hard.keys() | smooth.keys()
    small = load_recipe(RECIPES / "cifar10_small.yaml", cls=AutoencodingRecipe)
    assert [method.name for method in small.methods] == [*rows, "ema-kmeans", "softmax"]


TABLE_4 = {
    "16x16x32": ([128, 128, 64, 64, 32, 32], [256, 128, 64, 32, 16, 16], 1024, 500_450),
    "64x64x3": ([128, 64, 32, 3], [256, 128, 64, 64], 8192, 500_450),
    "64x64x32": ([128, 64, 32, 32], [256, 128, 64, 64], 8192, 400_360),
    "64x64x2048": ([128, 64, 32, 2048], [256, 128, 64, 64], 8192, 400_360),
}


def test_every_size_of_table_4_has_a_recipe():
    assert {path.stem.removeprefix("imagenet_") for path in RECIPES.glob("imagenet_*.yaml")} == TABLE_4.keys()


@pytest.mark.parametrize("size", TABLE_4)
def test_imagenet_recipes_are_those_of_table_4(size, monkeypatch):
    channels, sides, codes, steps = TABLE_4[size]
    recipe = load_recipe(RECIPES / f"imagenet_{size}.yaml", cls=AutoencodingRecipe)
    assert recipe.quantizer["codebook_size"] == codes
    monkeypatch.setattr(recipe, "open_samples", lambda train: range(1_281_167))
    assert recipe.batch_size * 4 == 64 and recipe.length(num_processes=4) == steps
    row = recipe.build_tasks(num_processes=4)[1]
    assert row.learning_rate_at(0) == 0 and row.learning_rate_at(4000) == 2.5e-5
    assert row.learning_rate_at(16_000) == 1e-4 and row.learning_rate_at(steps) == pytest.approx(0.5e-4)
    assert row.learning_rate_at((16_000 + steps) // 2) == pytest.approx(0.75e-4, rel=1e-5)
    seen = []
    with torch.device("meta"):
        model = DiscreteAutoencoder(VectorQuantizer(channels[-1], 8), recipe.model.channels)
        for module in model.encoder:
            if not isinstance(module, ResidualBlock):
                module.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[1:])))
        model.encoder(torch.empty(1, 3, 256, 256))
    assert seen == [(width, side, side) for width, side in zip(channels, sides, strict=True)]
    blocks = [isinstance(module, ResidualBlock) for module in model.encoder]
    assert blocks == [False, *[False, True] * (len(recipe.model.channels) - 1), False]


def test_a_trained_row_is_measured_on_another_split(table, pictures, tmp_path):
    command = ["--recipe", RECIPES / "cifar10_small.yaml", *TINY, f"data.dataset={pictures}", f"output_dir={tmp_path}"]
    command += ["data.size=16", "--method", "cosine-ste"]
    assert "cosine-ste: not trained" in table(*command, "--split", "train", fails=True)
    table(*command, "epochs=1", "steps=null", "warmup_steps=1")
    results = json.loads((tmp_path / "cosine-ste" / "results.json").read_text())
    assert results["images"] == 6 and results["recipe"]["epochs"] == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "cosine-ste" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 12 // 4
    out = table(*command, "--split", "train[:50%]")
    folder = tmp_path / "cosine-ste" / "splits" / "train%5B%3A50%25%5D"
    on_split = json.loads((folder / "results.json").read_text())
    assert on_split["images"] == 6 and on_split["rmse"] != results["rmse"] and on_split["split"] == "train[:50%]"
    assert (tmp_path / "results-train%5B%3A50%25%5D.md").read_text() == out
    assert json.loads((tmp_path / "cosine-ste" / "results.json").read_text()) == results
    assert "data.test_split is 'nowhere'" in table(*command, "--split", "nowhere", fails=True)


def test_fid_and_is_are_those_of_their_formulas():
    """Against both formulas in float64, with features of a random Inception V3."""
    torch.manual_seed(0)
    inception = Inception(weights=None).eval()
    images, other = (torch.rand(6, 3, 32, 32).mul(2).sub(1) for _ in range(2))
    fidelity, found = Fidelity("cpu", inception), []
    for batch in (images, other):
        with torch.no_grad():
            features, logits = inception(fidelity.preprocess(batch / 2 + 0.5))
        found.append((features.double().numpy(), logits.double().numpy()))
    for start in (0, 4):
        fidelity.update_(images[start : start + 4], other[start : start + 4])
    (a, _), (b, logits) = found
    assert a.shape == (6, 2048) and logits.shape == (6, 1000)
    # tr (C1 C2)^(1/2) is the sum of the singular values of A B' where C1 = A' A and C2 = B' B.
    centered = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    shared = np.linalg.svd(centered[0] @ centered[1].T, compute_uv=False).sum()
    traces = sum(np.square(x).sum() for x in centered)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + traces - 2 * shared
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    score = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    measured = fidelity.compute()
    assert measured["fid"] == pytest.approx(expected, rel=1e-5)
    assert measured["inception_score"] == pytest.approx(score, rel=1e-6)
    with pytest.raises(ValueError, match="FID takes two images or more; the test split has 0"):
        Fidelity("cpu", inception).compute()


def test_features_are_what_the_last_layer_of_inception_gets():
    inception = Inception(weights=None).eval()
    seen = []
    inception.body.avgpool.register_forward_hook(lambda _, __, output: seen.append(output.flatten(1)))
    with torch.no_grad():
        features, logits = inception(torch.randn(2, 3, 299, 299))
    assert torch.equal(features, seen[0]) and torch.equal(logits, inception.classifier(features))


def test_fidelity_without_its_weights_is_said_before_training(table, pictures, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    command = ["--recipe", RECIPES / "cifar10_small.yaml", *TINY, f"data.dataset={pictures}", f"output_dir={tmp_path}"]
    said = table(*command, "data.size=16", "fidelity=true", fails=True)
    assert "the weights of Inception V3 cannot be had from https" in said and "fidelity=false goes without" in said
    assert not list(tmp_path.iterdir())
