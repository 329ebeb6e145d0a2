"""Writers of small datasets of real audio files, whose clips can be told apart by their features."""

import io
import json
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

RATE = 16000


class Decoder:
    """Stands in for the `AudioDecoder` of torchcodec."""

    def __init__(self, data, sample_rate):
        self.samples = SimpleNamespace(data=torch.from_numpy(data), sample_rate=sample_rate)

    def get_all_samples(self):
        return self.samples


def clip(index: int) -> np.ndarray:
    """A third of a second of noise with a tone: no two indices sound alike."""
    rng = np.random.default_rng(index)
    time = np.arange(RATE // 3) / RATE
    return (0.3 * np.sin(2 * np.pi * (300 + 90 * index) * time) + 0.05 * rng.standard_normal(len(time))).astype(
        "float32"
    )


def flac(waveform: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="FLAC")
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16", **header) -> bytes:
    """A wav file; `header` overwrites the rate it declares or the length of its data."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    content = bytearray(buffer.getvalue())
    if "declared_rate" in header:
        content[24:28] = struct.pack("<I", header["declared_rate"])
    if "data_bytes" in header:
        content[40:44] = struct.pack("<I", header["data_bytes"])
    return bytes(content)


def write_parquet(folder: Path, clips: list[bytes], shards: int) -> str:
    """A dataset folder of parquet shards with the columns audio, index, fold (text) and class."""
    features = {"audio": {"sampling_rate": RATE, "_type": "Audio"}, "index": {"dtype": "int64", "_type": "Value"}}
    features |= {key: {"dtype": "string", "_type": "Value"} for key in ("fold", "class")}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    folder.mkdir(parents=True, exist_ok=True)
    for shard, indices in enumerate(np.array_split(np.arange(len(clips)), shards)):
        rows = [
            {
                "audio": {"bytes": clips[i], "path": f"clip-{i}.flac"},
                "index": i,
                "fold": str(i % 3),
                "class": "high" if i % 2 else "deep",
            }
            for i in indices.tolist()
        ]
        table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")
    return str(folder)


def write_audiofolder(folder: Path, clips: list[bytes]) -> str:
    """An audio folder: one shard, whatever it holds."""
    (folder / "train").mkdir(parents=True)
    with open(folder / "train" / "metadata.jsonl", "w") as metadata:
        for index, content in enumerate(clips):
            (folder / "train" / f"clip-{index}.flac").write_bytes(content)
            metadata.write(json.dumps({"file_name": f"clip-{index}.flac", "index": index}) + "\n")
    return str(folder)


def encoded_with_av(waveform: np.ndarray, rate: int, container: str, codec: str) -> dict:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform.astype("float32")[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return {"bytes": buffer.getvalue(), "path": None}


def peak_memory(function) -> int:
    """Peak memory of Python and NumPy while `function()` runs, in bytes."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
