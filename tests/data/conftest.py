"""Small datasets of real audio files, one with several shards and one with a single shard."""

import numpy as np
import pytest
from sound_files import RATE, clip, flac, write_audiofolder, write_parquet

from bridle_hf import BridleConfig
from bridle_hf.data import build_processor
from bridle_hf.feature_extraction_bridle import BridleFeatureExtractor

LAYERS = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def extractor() -> BridleFeatureExtractor:
    return BridleFeatureExtractor(num_mel_bins=32, max_length=32)


@pytest.fixture(scope="session")
def waveforms() -> list[np.ndarray]:
    return [clip(index) for index in range(24)]


@pytest.fixture(scope="session")
def parquet_folder(tmp_path_factory, waveforms) -> str:
    """24 clips in 4 shards."""
    return write_parquet(tmp_path_factory.mktemp("parquet"), [flac(w) for w in waveforms], shards=4)


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory, waveforms) -> str:
    """The same 24 clips in 1 shard."""
    return write_audiofolder(tmp_path_factory.mktemp("folder") / "set", [flac(w) for w in waveforms])


@pytest.fixture(scope="session")
def identify(waveforms, extractor):
    """Batch of unaugmented features -> indices of the clips."""
    known = np.stack([extractor(w, sampling_rate=RATE)["input_values"][0] for w in waveforms])

    def of(batch: dict) -> list[int]:
        distances = np.abs(batch["input_values"].numpy()[:, None] - known).mean(axis=(2, 3))  # (B, 24)
        assert (distances.min(axis=1) < 0.01).all()
        return distances.argmin(axis=1).tolist()

    return of


@pytest.fixture(scope="session")
def image_processor():
    config = BridleConfig(modality="image", input_size=(16, 16), **LAYERS)
    return build_processor(config, image_mean=[0.0] * 3, image_std=[1.0] * 3)


@pytest.fixture(scope="session")
def video_processor():
    config = BridleConfig(modality="video", input_size=(4, 16, 16), patch_size=(2, 8, 8), **LAYERS)
    return build_processor(config, frame_stride=3, image_mean=[0.0] * 3, image_std=[1.0] * 3)
