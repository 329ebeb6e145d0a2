"""What both experiments need around their tests."""

import io

import numpy as np
import pytest
import soundfile
from accelerate.state import AcceleratorState
from datasets import Audio, Dataset, Features


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Folder of 10 clips of noise, 0.2 to 0.4 s at 16 kHz."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)

    def wav():
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * random.normal(size=random.integers(3200, 6400)), 16_000, format="WAV")
        return {"bytes": buffer.getvalue(), "path": None}

    table = Dataset.from_list([{"audio": wav()} for _ in range(10)]).cast(Features({"audio": Audio(decode=False)}))
    table.to_parquet(folder / "train.parquet")
    return folder
