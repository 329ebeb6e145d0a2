"""How a cache stores a sample in its columns: as decoded arrays, or as an undecoded file."""

import datasets
import numpy as np

from .media import UnusableDataError, is_array

CLIP_TYPE = {
    "features": datasets.Value("binary"),
    "dtype": datasets.Value("string"),
    "shape": datasets.List(datasets.Value("int32")),
}
EIGHT_BIT_TYPE = CLIP_TYPE | {"low": datasets.Value("float32"), "step": datasets.Value("float32")}
FILE_TYPE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string"), "shape": CLIP_TYPE["shape"]}


def pack_clip(clip: np.ndarray, eight_bits: bool = False) -> dict:
    """The columns that hold a sample: pixels as they are, features in half precision or, as `eight_bits`, as the
    nearest of 256 values between the least and the largest of the clip. Features beyond the range of half precision, as
    a tiny `std` makes them, stay in single precision."""
    dtype = clip.dtype
    if dtype.kind == "f" and eight_bits and clip.size:
        low, high = float(clip.min()), float(clip.max())
        step = (high - low) / 255 or 1.0
        values = np.rint((clip - low) / step).astype(np.uint8)
        return pack_clip(values) | {"low": low, "step": step}
    if dtype.kind == "f":
        fits = np.abs(clip).max(initial=0) <= np.finfo(np.float16).max
        dtype = np.float16 if fits else np.float32
    return {"features": clip.astype(dtype).tobytes(), "dtype": np.dtype(dtype).name, "shape": list(clip.shape)}


def unpack_clip(
    row: dict,
    rng: np.random.Generator | None = None,
    views: tuple[int, int] | None = None,
    stream: bool = False,
    *,
    column: str,
) -> np.ndarray:
    """The sample of a row, whole; the collator crops it."""
    clip = row[column]
    values = np.frombuffer(clip["features"], dtype=clip["dtype"]).reshape(clip["shape"])
    if clip.get("step") is None:
        return values
    return values * np.float32(clip["step"]) + np.float32(clip["low"])


def pack_file(raw: dict | bytes | str, column: str) -> dict:
    """The columns for an undecoded file.

    Raises:
        UnusableDataError: the value is an array, not a file.
    """
    if isinstance(raw, bytes):
        return {"bytes": raw, "path": None}
    if isinstance(raw, str):
        return {"bytes": None, "path": raw}
    if is_array(raw) or raw.get("array") is not None:
        raise UnusableDataError(
            f"data.in_memory is false and column {column!r} holds arrays; it takes files, or data.cache=true, which "
            "keeps what is made of arrays."
        )
    return {key: raw.get(key) for key in ("bytes", "path")}
