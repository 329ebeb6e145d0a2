"""Random input finds no error but the documented ones: a few hundred inputs here, 10,000 each in the slow run."""

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bridle_hf import BridleConfig, BridleFeatureExtractor, BridleImageProcessor, BridleVideoProcessor, load_official
from bridle_hf.data import BadClipError, decode_audio, decode_image
from bridle_hf.training import RecipeError, load_recipe

DEPTHS = [
    pytest.param(100, id="few"),
    pytest.param(10_000, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
]

scalars = st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=6
)
waves = arrays(
    st.sampled_from([np.float32, np.float64, np.int16, np.bool_]),
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=2000).filter(lambda s: np.prod(s, dtype=float) < 5000),
)
pixels = arrays(
    st.sampled_from([np.uint8, np.float32, np.int64]),
    array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=24).filter(lambda s: np.prod(s, dtype=float) < 5000),
)


def fuzz(strategy, depth: int, function, documented: tuple) -> None:
    """Calls `function` with `depth` inputs; only documented errors may leave it."""

    @settings(
        max_examples=depth, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def check(value):
        try:
            function(value)
        except documented:
            pass

    check()


@pytest.mark.parametrize("depth", DEPTHS)
def test_feature_extractor(depth):
    extractor = BridleFeatureExtractor(max_length=32, num_mel_bins=16)
    rates = st.sampled_from([16000, 16000, 16000, 44100, 0, None])

    def extract(drawn):
        out = extractor(drawn[0], sampling_rate=drawn[1], return_tensors="np")["input_values"]
        assert out.shape[1:] == (32, 16) and np.isfinite(out).all()

    fuzz(st.tuples(waves | st.lists(waves, max_size=2) | values, rates), depth, extract, (ValueError, TypeError))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("cls", [BridleImageProcessor, BridleVideoProcessor])
def test_processors(cls, depth):
    processor = cls(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    fuzz(
        pixels | st.lists(pixels, max_size=2),
        depth,
        lambda v: processor(v, return_tensors="np"),
        (ValueError, TypeError),
    )


@pytest.mark.parametrize("depth", DEPTHS)
def test_config(depth):
    keys = st.sampled_from(sorted(BridleConfig.__annotations__)) | st.text(max_size=8)
    documented = (ValueError, TypeError, StrictDataclassError)
    fuzz(st.dictionaries(keys, values, max_size=3), depth, lambda v: BridleConfig(**v), documented)


@pytest.mark.parametrize("depth", DEPTHS)
def test_recipes(tmp_path, depth):
    path = tmp_path / "recipe.yaml"
    keys = st.sampled_from(
        ["output_dir", "data", "seed", "model", "training", "phases", "encoder", "base", "processor"]
    )
    content = st.binary(max_size=60) | st.dictionaries(keys | st.text(max_size=5), values, max_size=5).map(
        lambda v: yaml.safe_dump(v, allow_unicode=True).encode("utf-8", "replace")
    )

    def load(drawn):
        path.write_bytes(drawn[0])
        load_recipe(path, drawn[1])

    fuzz(st.tuples(content, st.lists(st.text(max_size=12), max_size=2)), depth, load, (RecipeError,))


@pytest.mark.parametrize("depth", DEPTHS)
def test_files(depth):
    def decode(content):
        for function in (lambda raw: decode_audio(raw, 16000), decode_image):
            try:
                function({"bytes": content, "path": None})
            except BadClipError:
                pass

    heads = st.sampled_from(
        [b"", b"RIFF\x24\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]
    )
    fuzz(st.tuples(heads, st.binary(max_size=200)).map(b"".join), depth, decode, ())


@pytest.mark.parametrize("depth", DEPTHS)
def test_converter(depth):
    names = st.sampled_from(
        ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight", "mask_token"]
    )
    tensors = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4).map(torch.zeros)
    states = st.dictionaries(names | st.text(max_size=8), tensors | values, max_size=4)
    fuzz(states | values, depth, load_official, (ValueError, TypeError, OSError))
