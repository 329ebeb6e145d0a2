"""A small labelled dataset and a small pretrained model, as folders."""

import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from tiny import tiny_config

from bridle_hf import BridleFeatureExtractor, BridleForPreTraining
from bridle_hf.data import MODALITIES, DataArguments, Examples
from bridle_hf.data.audio import AudioCollator

RATE = 16000


def make_tone(label, seed):
    """0.35 s of a low or high tone in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(0.35 * RATE)) / RATE
    pitch = (300, 3000)[label] * rng.uniform(0.8, 1.2)
    return 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.normal(size=len(time))


def wav(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV")
    return {"bytes": buffer.getvalue(), "path": "tone.wav"}


@pytest.fixture(scope="session")
def padded_examples():
    """Examples of log-mel features (n, T, F), each with the frames that its row of a mask (n, T) counts."""

    def make(features, mask, labels=None, folds=None):
        clips = [clip[: valid.sum()] for clip, valid in zip(features, mask, strict=True)]
        extractor = BridleFeatureExtractor(max_length=features.shape[1], num_mel_bins=features.shape[2])
        collate = AudioCollator(DataArguments(roll=False, gain=False), extractor)
        names = [str(label) for label in np.unique(labels)] if labels is not None else []
        return Examples(MODALITIES["audio"], clips, collate, labels, folds, names)

    return make


@pytest.fixture(scope="session")
def tone():
    """(label, seed) -> samples at 16 kHz: what the clips of `tones` are made of."""
    return make_tone


@pytest.fixture(scope="session")
def to_wav():
    """Samples at 16 kHz -> what an audio column holds."""
    return wav


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models of this size only get slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """Folder of 24 clips, columns audio, sound ("low", "high") and fold (1, 2, 3)."""
    folder = tmp_path_factory.mktemp("tones")
    rows = [{"audio": wav(make_tone(i % 2, i)), "sound": ("low", "high")[i % 2], "fold": i // 8 + 1} for i in range(24)]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    BridleForPreTraining(tiny_config(input_size=(48, 64), decoder_type="plain")).save_pretrained(folder)
    BridleFeatureExtractor(max_length=48, num_mel_bins=64, mean=-7.0, std=4.0).save_pretrained(folder)
    return folder
