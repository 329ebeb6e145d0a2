"""Runs on datasets that the caller built: two epochs, stopped and resumed, end as the run that was left alone."""

import logging

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from runs import differing, records, stop_after, weights

from bridle_hf.training import load_recipe, pretrain


@pytest.fixture(scope="session")
def waveforms():
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(16000)).astype(np.float32) for _ in range(20)]


def as_dataset(waveforms):
    return datasets.Dataset.from_dict({"audio": waveforms})


def as_stream(waveforms):
    return as_dataset(waveforms).to_iterable_dataset(num_shards=2)


@pytest.fixture
def train(tiny_recipe, tmp_path):
    def run(folder, dataset, *overrides, stop=None):
        AcceleratorState._reset_state(reset_partial_state=True)
        named = [f"output_dir={tmp_path / folder}", "data.dataset=''", "data.shuffle_buffer=7"]
        return pretrain(load_recipe(tiny_recipe, [*named, *overrides]), dataset, stop=stop)

    return run


@pytest.mark.parametrize("form", [as_dataset, as_stream, list], ids=["Dataset", "IterableDataset", "list"])
def test_a_run_resumes_exactly(train, waveforms, tmp_path, form):
    assert train("alone", form(waveforms))  # 12 steps of 4 samples, 20 in an epoch
    for steps in (3, 7):
        assert not train("stopped", form(waveforms), stop=stop_after(tmp_path / "stopped", steps))
    assert train("stopped", form(waveforms))
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert not differing(weights(alone / "final"), weights(stopped / "final"))
    assert records(alone) == records(stopped)


def test_another_dataset_is_said(train, waveforms, tmp_path, caplog):
    assert not train("run", as_dataset(waveforms), stop=stop_after(tmp_path / "run", 3))
    with caplog.at_level(logging.WARNING):
        assert train("run", as_dataset(waveforms[::-1]))
    assert "dataset=" in caplog.text and "the data is shuffled anew" in caplog.text


def test_the_same_data_from_memory_and_from_a_table_are_the_same_run(train, waveforms, tmp_path):
    for folder, dataset in (("dataset", as_dataset(waveforms)), ("list", waveforms)):
        assert train(folder, dataset)
    assert records(tmp_path / "dataset") == records(tmp_path / "list")


def test_two_datasets_are_one_too_many(train, waveforms):
    with pytest.raises(ValueError, match="data.dataset is 'somewhere' and a dataset was given"):
        train("run", waveforms, "data.dataset=somewhere")
