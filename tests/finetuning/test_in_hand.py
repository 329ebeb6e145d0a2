"""Fine-tuning on datasets that the caller built is that on the same dataset as a folder."""

import datasets
import pytest
from safetensors.torch import load_file

from bridle_hf.data import DataArguments
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune


@pytest.fixture
def recipe(pretrained, tmp_path):
    def make(folder, **data):
        training = {"epochs": 2, "batch_size": 4, "warmup_epochs": 1}
        return FinetuneRecipe(
            model=str(pretrained),
            output_dir=str(tmp_path / folder),
            data=DataArguments(label_column="sound", **data),
            folds=[1] if "fold_column" in data else None,
            training=FinetuneTraining(**training),
        )

    return make


@pytest.fixture
def dataset(tones):
    return datasets.Dataset.from_parquet(str(tones / "train.parquet"))


def weights(folder):
    return {name: value.tolist() for name, value in load_file(folder / "model.safetensors").items()}


def test_folds(recipe, dataset, tones, tmp_path):
    expected = finetune(recipe("folder", dataset=str(tones), fold_column="fold"))
    assert finetune(recipe("given", fold_column="fold"), dataset) == expected
    assert finetune(recipe("stream", fold_column="fold"), dataset.to_iterable_dataset()) == expected
    for folder in ("given", "stream"):
        assert weights(tmp_path / folder / "fold-1") == weights(tmp_path / "folder" / "fold-1")


def test_a_dataset_to_test_on(recipe, dataset, tmp_path):
    splits = datasets.DatasetDict({"train": dataset.select(range(16)), "test": dataset.select(range(16, 24))})
    results = finetune(recipe("splits", test_split="test"), splits)
    assert results["folds"] == ["test"]
    assert finetune(recipe("two"), splits["train"], splits["test"]) == results
    assert weights(tmp_path / "two" / "fold-test") == weights(tmp_path / "splits" / "fold-test")


def test_results_are_of_one_dataset(recipe, dataset, tmp_path):
    """What is done is not done again, unless the dataset is another."""
    made = recipe("run", fold_column="fold")
    first = finetune(made, dataset)
    changed = (tmp_path / "run" / "fold-1" / "model.safetensors").stat().st_mtime_ns
    assert finetune(made, dataset) == first
    assert (tmp_path / "run" / "fold-1" / "model.safetensors").stat().st_mtime_ns == changed
    finetune(made, dataset.select(range(23, -1, -1)))
    assert (tmp_path / "run" / "fold-1.old-1").is_dir()
    for _ in range(2):  # a stream is known by what it holds
        finetune(made, dataset.to_iterable_dataset())
    assert (tmp_path / "run" / "fold-1.old-2").is_dir() and not (tmp_path / "run" / "fold-1.old-3").exists()
