"""Discrete autoencoding: the network's shapes, its measures by hand, the script from recipe to table."""

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from bridle_hf import GradientQuantizer, ProductQuantizer, SmoothedQuantizer
from bridle_hf.quantizer_experiments.autoencoder import DiscreteAutoencoder
from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe, evaluate, save_pairs
from bridle_hf.quantizer_experiments.table import DatasetArguments, open_split
from bridle_hf.recipes import FOLDER
from bridle_hf.training import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = FOLDER / "autoencoding"
TINY = ["steps=2", "batch_size=4", "model.channels=8", "quantizer={codebook_size: 8, codebook_dim: 4}"]


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


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_the_decoder_mirrors_the_encoder(downsampling):
    model = DiscreteAutoencoder(GradientQuantizer(5, 1, 8), channels=16, downsampling=downsampling, num_blocks=1)
    images = torch.randn(2, 3, 16, 24)
    reconstruction, output = model(images)
    assert output.codes.shape == (2, 16 // downsampling, 24 // downsampling, 1)
    assert reconstruction.shape == images.shape
    reconstruction.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("quantizer"))


def test_convolutions_are_depthwise_separable_but_for_the_outermost():
    model = DiscreteAutoencoder(GradientQuantizer(5, 1, 8), channels=16, downsampling=8)
    wide = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) and m.groups == 1]
    assert [(m.in_channels, m.out_channels) for m in wide] == [(3, 16), (16, 3)]
    with pytest.raises(ValueError, match="downsampling is 6, must be a power of 2"):
        DiscreteAutoencoder(GradientQuantizer(5, 1, 8), downsampling=6)


class Identity(DiscreteAutoencoder):
    """Pixels are vectors of 3 numbers, and what is decoded is what was quantized."""

    def __init__(self, quantizer):
        super().__init__(quantizer, channels=8, downsampling=2)
        self.encoder = self.decoder = torch.nn.Identity()


def test_measures_by_hand():
    quantizer = GradientQuantizer(3, 1, 4)
    with torch.no_grad():
        quantizer.codebooks[0].embed.copy_(torch.tensor([[1.0] * 3, [-1.0] * 3, [9.0] * 3, [-9.0] * 3]))
    image = torch.full((1, 3, 2, 2), 0.6)
    image[..., 1, 1] = -1.0
    other = torch.full((1, 3, 2, 2), 1.0)
    measured = evaluate(Identity(quantizer).eval(), [image, other], "cpu")
    assert measured["code_use"] == [0.5]
    assert measured["codes_per_image"] == 1.5
    assert measured["popularity"] == [7 / 8, 1 / 8, 0, 0]
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
    measured = evaluate(model, [images], "cpu")
    assert measured["individual_perplexity"]["100"] == pytest.approx(expected.max(), rel=1e-5)
    assert measured["individual_perplexity"]["75"] == pytest.approx(np.percentile(expected, 75), rel=1e-5)
    assert measured["temperature"] == pytest.approx(0.5)


def test_codebooks_of_a_product_are_measured_one_by_one():
    model = Identity(ProductQuantizer([GradientQuantizer(1, 1, 4), GradientQuantizer(2, 1, 4)])).eval()
    recipe = load_recipe(RECIPES / "cifar10_small.yaml", cls=AutoencodingRecipe)
    row = recipe.summary_row({"method": "x", "minutes": 1.0, **evaluate(model, [torch.randn(2, 3, 4, 4)], "cpu")})
    assert len(row["code use %"].split()) == len(row["perplexity"].split()) == 2


def test_one_command_ends_in_one_table_and_goes_on_where_it_was(table, pictures, tmp_path):
    command = ["--recipe", RECIPES / "cifar10_small.yaml", *TINY, f"data.dataset={pictures}", f"output_dir={tmp_path}"]
    first = table(*command, "data.size=16", "--method", "ema-kmeans", "--method", "softmax-knn_ce")
    assert [line.split(" | ")[0] for line in first.splitlines()[2:]] == ["| ema-kmeans", "| softmax-knn_ce"]
    results = json.loads((tmp_path / "softmax-knn_ce" / "results.json").read_text())
    assert (
        results["recipe"]["steps"] == 2
        and len(results["popularity"]) == 8
        and 1 < results["individual_perplexity"]["100"] <= 8
    )
    before = (tmp_path / "ema-kmeans" / "results.json").stat().st_mtime_ns
    second = table(*command, "data.size=16", "--method", "ema-kmeans", "--method", "cosine-ste", "seed=0")
    assert "| cosine-ste |" in second and first.splitlines()[3] in second
    assert (tmp_path / "ema-kmeans" / "results.json").stat().st_mtime_ns == before
    assert (tmp_path / "results.md").read_text() == second
    popularity = (tmp_path / "popularity.svg").read_text()
    drawn = {
        name: f"<!-- {name} -->" in popularity for name in ("ema-kmeans", "softmax-knn_ce", "cosine-ste", "softmax")
    }
    assert drawn == {"ema-kmeans": True, "softmax-knn_ce": True, "cosine-ste": True, "softmax": False}
    assert Picture.open(tmp_path / "cosine-ste" / "reconstructions.png").size == (4 * 16, 2 * 16)


def test_bfloat16(table, pictures, tmp_path):
    command = ["--recipe", RECIPES / "cifar10_small.yaml", *TINY, f"data.dataset={pictures}", f"output_dir={tmp_path}"]
    out = table(*command, "data.size=16", "--method", "gumbel_hard-knn_l2", "mixed_precision=bf16")
    assert "| gumbel_hard-knn_l2 |" in out


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
    with pytest.raises(ValueError, match="data.column is 'image'; .* has img, label"):
        table(*recipe, f"data.dataset={pictures}", "data.column=image", "--method", "cosine-ste")


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
    assert len(recipe.methods) >= 15 and recipe.data.size % recipe.model.downsampling == 0


def test_imagenet_rows_have_the_sizes_in_their_names():
    for path in RECIPES.glob("imagenet_*.yaml"):
        recipe = load_recipe(path, cls=AutoencodingRecipe)
        side, _, dim = map(int, path.stem.removeprefix("imagenet_").split("x"))
        assert recipe.data.size // recipe.model.downsampling == side and recipe.quantizer["codebook_dim"] == dim
        assert recipe.model.channels == 256 and recipe.quantizer["codebook_size"] == 8192
