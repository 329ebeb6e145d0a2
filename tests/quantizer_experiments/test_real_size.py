"""The recipes of the paper at their real size, three steps of one or two samples each."""

import pytest
from made_up_data import finite_steps, write_pictures, write_sounds

from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe
from bridle_hf.quantizer_experiments.rows import run_methods
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from bridle_hf.recipes import FOLDER
from bridle_hf.training import load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = ["steps=3", "warmup_steps=2", "logging_steps=1", "data.num_workers=0", "data.train_split=train"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("real") / "pictures", 4)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("real") / "utterances", [17, 12, 3, 16])


def run(path, cls, folder, data, method, *more):
    given = [f"data.dataset={data}", "data.name=null", "data.test_split=train", f"output_dir={folder}", *SHORT, *more]
    (results,) = run_methods(load_recipe(path, given, cls), [method])
    assert finite_steps(folder / method) == [1, 2, 3]
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
