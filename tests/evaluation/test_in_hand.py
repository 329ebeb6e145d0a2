"""Features, codes and probes of datasets that the caller built are those of the same dataset as a folder."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from bridle_hf import BridleFeatureExtractor, BridleModel, BridleTokenizer
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.evaluation.features import encoder_features, write_features
from bridle_hf.evaluation.probe import linear_probe
from bridle_hf.evaluation.tokens import write_codes


@pytest.fixture(scope="module", params=["Dataset", "IterableDataset"])
def given(request, tones):
    dataset = datasets.Dataset.from_parquet(str(tones / "train.parquet"))
    return dataset if request.param == "Dataset" else dataset.to_iterable_dataset(num_shards=2)


@pytest.fixture(scope="module")
def extractor(pretrained):
    return BridleFeatureExtractor.from_pretrained(pretrained)


def same(one, other) -> bool:
    tables = [pq.read_table(path).to_pylist() for path in (one, other)]
    return tables[0] == tables[1]


def test_features_and_codes(given, tones, pretrained, extractor, tmp_path):
    model, tokenizer = BridleModel.from_pretrained(pretrained), BridleTokenizer.from_pretrained(pretrained)
    data = DataArguments(str(tones))
    write_features(tmp_path / "a.parquet", model, data, extractor)
    assert write_features(tmp_path / "b.parquet", model, DataArguments(), extractor, dataset=given) == 24
    assert same(tmp_path / "a.parquet", tmp_path / "b.parquet")
    write_codes(tmp_path / "c.parquet", tokenizer, data, extractor)
    assert write_codes(tmp_path / "d.parquet", tokenizer, DataArguments(), extractor, dataset=given) == 24
    assert same(tmp_path / "c.parquet", tmp_path / "d.parquet")


def test_features_of_a_list(tone, pretrained, extractor, tmp_path):
    waveforms = [tone(i % 2, i).astype(np.float32) for i in range(4)]
    model = BridleModel.from_pretrained(pretrained)
    assert write_features(tmp_path / "f.parquet", model, DataArguments(), extractor, dataset=waveforms) == 4
    assert pq.read_schema(tmp_path / "f.parquet").names == ["clip_name", "last"]


def test_a_probe(given, tones, pretrained, extractor):
    model, results = BridleModel.from_pretrained(pretrained), []
    for dataset in (None, given):
        data = DataArguments("" if dataset is not None else str(tones), label_column="sound", fold_column="fold")
        examples = load_examples(data, extractor, dataset)
        features = encoder_features(model, examples)[None, "mean"]
        results.append(linear_probe(features, examples.labels, examples.folds))
    assert results[0].per_fold == results[1].per_fold
