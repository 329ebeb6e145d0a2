"""The recipes of the paper at their real size, three steps of one or two samples each."""

import io
import json

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, Features, Image
from PIL import Image as Picture

from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe
from bridle_hf.quantizer_experiments.rows import run_methods
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from bridle_hf.recipes import FOLDER
from bridle_hf.training import load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = ["steps=3", "warmup_steps=2", "logging_steps=1", "data.num_workers=0", "data.train_split=train"]


def parquet(folder, column, feature, samples):
    table = Dataset.from_list([{column: {"bytes": sample, "path": None}} for sample in samples])
    folder.mkdir()
    table.cast(Features({column: feature})).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    random, pngs = np.random.default_rng(0), []
    for _ in range(4):
        buffer = io.BytesIO()
        Picture.fromarray(random.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(buffer, "PNG")
        pngs.append(buffer.getvalue())
    return parquet(tmp_path_factory.mktemp("real") / "pictures", "image", Image(), pngs)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    random, wavs = np.random.default_rng(0), []
    for seconds in (17, 12, 3, 16):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * random.normal(size=seconds * 16_000), 16_000, format="FLAC")
        wavs.append(buffer.getvalue())
    return parquet(tmp_path_factory.mktemp("real") / "utterances", "audio", Audio(decode=False), wavs)


def run(path, cls, folder, data, method, *more):
    given = [f"data.dataset={data}", "data.name=null", "data.test_split=train", f"output_dir={folder}", *SHORT, *more]
    (results,) = run_methods(load_recipe(path, given, cls), [method])
    steps = [json.loads(line) for line in (folder / method / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(np.isfinite(step["loss"]) for step in steps)
    return results


@pytest.mark.parametrize("method", ["euclidean-ste", "simvq-ste", "softmax-knn_l2-8", "softmax-knn_ce-1"])
@pytest.mark.parametrize("path", sorted((FOLDER / "autoencoding").glob("imagenet_*")), ids=lambda path: path.stem)
def test_autoencoding(path, method, pictures, tmp_path):
    given = ["batch_size=1", "data.test_split=train[:2]", "fidelity=false"]
    results = run(path, AutoencodingRecipe, tmp_path, pictures, method, *given)
    assert results["images"] == 2 and 0 < results["rmse"] < 1


@pytest.mark.parametrize("method", ["euclidean-ste", "gumbel_hard-knn_ce-2", "softmax-knn_ce-1"])
@pytest.mark.parametrize("path", sorted((FOLDER / "wav2vec2").glob("librispeech_*")), ids=lambda path: path.stem)
def test_wav2vec2(path, method, utterances, tmp_path):
    results = run(path, Wav2Vec2Recipe, tmp_path, utterances, method, "batch_size=2")
    assert 0 <= results["contrastive_loss"] < 20  # 0 where all codes are one, and no negative is left
