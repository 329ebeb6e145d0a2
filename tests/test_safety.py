"""Files from disk or the Hub are data: a pickle planted where one is read never runs, and no name leads outside."""

import json
import os
import shutil
import zipfile

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sound_files import clip, flac, write_parquet

from bridle_hf import BridleConfig, BridleFeatureExtractor, BridleForPreTraining, load_official
from bridle_hf.data import DataArguments, build_loader
from bridle_hf.training import RecipeError, load_recipe, replay
from bridle_hf.training.checkpoints import _fingerprint, open_checkpoint, save_checkpoint

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY |= {"input_size": (32, 16), "patch_size": (16, 8), "decoder_type": "plain", "decoder_hidden_size": 16}
TINY |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "estimator_num_hidden_layers": 1}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def plant(tmp_path):
    """Write a hostile pickle; afterwards it must not have run."""
    ran = tmp_path / "ran"

    def write(path):
        torch.save({"state": Payload(ran)}, path)

    write(tmp_path / "trial")
    torch.load(tmp_path / "trial", weights_only=False)
    assert ran.exists(), "the payload does not work"
    ran.rmdir()
    yield write
    assert not ran.exists()


def test_models_and_processors_run_no_pickle(tmp_path, plant):
    for name in ("pytorch_model.bin", "model.safetensors"):
        folder = tmp_path / name.split(".")[0]
        BridleForPreTraining(BridleConfig(**TINY)).save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        plant(folder / name)
        with pytest.raises(Exception, match="(?i)header|weights_only|unsupported|safetensors"):
            BridleForPreTraining.from_pretrained(folder)
    plant(tmp_path / "preprocessor_config.json")
    with pytest.raises((OSError, UnicodeDecodeError)):
        BridleFeatureExtractor.from_pretrained(tmp_path)
    plant(tmp_path / "config.json")
    with pytest.raises((OSError, UnicodeDecodeError)):
        BridleConfig.from_pretrained(tmp_path)


def test_reference_checkpoints_run_no_pickle(tmp_path, plant):
    plant(tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="damaged or holds other things than tensors"):
        load_official(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rank-0.json", "state.json"])
def test_checkpoints_run_no_pickle(tmp_path, plant, name):
    """Not even where the manifest vouches for it."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    path = save_checkpoint(
        tmp_path, accelerator, model, optimizer, task=0, step=1, state={}, data={}, recipe="a: 1", keep=1
    )
    plant(path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {name: _fingerprint(path / name)}))
    with pytest.raises(Exception, match="(?i)header|utf-8|codec|json"):
        checkpoint = open_checkpoint(path)
        checkpoint.weights()
        checkpoint.rank_state(0)
        checkpoint.load_optimizer_(model, optimizer.optimizer)


def test_failures_run_no_pickle(tmp_path, plant):
    for name in ("rank-0.json", "rank-0.safetensors", "model.safetensors"):
        plant(tmp_path / name)
    with pytest.raises(ValueError):
        replay(tmp_path)


def test_datasets_run_no_pickle(tmp_path, plant):
    extractor = BridleFeatureExtractor(max_length=32, num_mel_bins=16)
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.flac").write_bytes(flac(clip(0)))
    plant(folder / "train" / "b.flac")
    plant(folder / "train" / "c.pkl")
    loader = build_loader(DataArguments(str(folder), shuffle_buffer=4), extractor, batch_size=2, seed=0)
    for _ in range(2):
        next(loader)
    assert [name.rsplit("/", 1)[1] for name in loader.skipped] == ["b.flac"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [PATH]", "!!python/name:os.system"])
def test_recipes_run_no_code(tmp_path, tag):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: {tag.replace('PATH', str(tmp_path / 'ran'))}\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)
    assert not (tmp_path / "ran").exists()


def test_names_of_clips_lead_nowhere(tmp_path):
    """Neither the cache nor the stream writes where a clip's name points."""
    work = tmp_path / "deep" / "work"
    dataset = write_parquet(work / "set", [flac(clip(i)) for i in range(4)], shards=1)
    import pyarrow.parquet as pq

    (file,) = (work / "set").iterdir()
    table = pq.read_table(file)
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row["audio"]["path"] = ("../../escaped.flac", str(tmp_path / "escaped.flac"), "..", "~/escaped")[number]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file)
    before = {path for path in tmp_path.rglob("*") if work not in path.parents}
    data = DataArguments(dataset, cache=True, cache_dir=str(work / "cache"))
    next(build_loader(data, BridleFeatureExtractor(max_length=32, num_mel_bins=16), batch_size=4, seed=0))
    assert {path for path in tmp_path.rglob("*") if work not in path.parents} == before


def test_bare_paths_are_read_and_never_written(tmp_path):
    """A column of paths may name files beyond the dataset, as it may in `datasets`; a run leaves them as they are."""
    work, beyond = tmp_path / "deep" / "work", tmp_path / "beyond.flac"
    beyond.write_bytes(flac(clip(0)))
    (work / "set").mkdir(parents=True)
    lost = ["../../lost.flac", str(tmp_path / "lost.flac"), "~/lost.flac", ".."]
    rows = [{"audio": path} for path in [str(beyond), *lost]]
    datasets.Dataset.from_list(rows).to_parquet(str(work / "set" / "train.parquet"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = DataArguments(str(work / "set"), cache=True, cache_dir=str(work / "cache"), max_bad_share=0.9)
    loader = build_loader(data, BridleFeatureExtractor(max_length=32, num_mel_bins=16), batch_size=1, seed=0)
    next(loader)
    assert loader.skipped.keys() == set(lost)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if work not in path.parents and path.is_file()} == {
        path: content for path, content in before.items() if work not in path.parents
    }


def test_archive_bombs_are_not_unpacked_in_memory(tmp_path):
    """A zip named like a clip is no clip."""
    path = tmp_path / "bomb.flac"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", np.zeros(10**7, np.uint8).tobytes())
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "bomb.flac")
    (folder / "fine.flac").write_bytes(flac(clip(0)))
    extractor = BridleFeatureExtractor(max_length=32, num_mel_bins=16)
    loader = build_loader(DataArguments(str(tmp_path / "set"), shuffle_buffer=2), extractor, batch_size=2, seed=0)
    for _ in range(2):
        next(loader)
    assert [name.rsplit("/", 1)[1] for name in loader.skipped] == ["bomb.flac"]
