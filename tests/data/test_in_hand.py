"""Datasets that the caller built: streams, caches and labelled sets of them are those of the same files."""

import datasets
import numpy as np
import pytest
import torch
from picture_files import LEVELS, counting_video, picture, png
from PIL import Image
from sound_files import RATE, Decoder, flac

from bridle_hf import BridleConfig
from bridle_hf.data import (
    BadClipError,
    DataArguments,
    audio_decoding,
    build_loader,
    build_processor,
    decode_audio,
    load_examples,
)
from bridle_hf.data.media import pixels_of
from bridle_hf.data.source import sound_reader

PLAIN = {"roll": False, "gain": False}
LAYERS = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def of_files(waveforms) -> datasets.Dataset:
    """Files as `datasets` holds them, with a class and a fold."""
    rows = [
        {"audio": {"bytes": flac(waveform), "path": f"clip-{i}.flac"}, "kind": i % 2, "fold": i % 3}
        for i, waveform in enumerate(waveforms)
    ]
    return datasets.Dataset.from_list(rows).cast_column("kind", datasets.ClassLabel(names=["low", "high"]))


def generate(waveforms):
    for waveform in waveforms:
        yield {"audio": waveform}


@pytest.fixture(
    params=[
        "Audio",
        "undecoded",
        "floats",
        "array and rate",
        "list",
        "tensors",
        "splits",
        "stream",
        "shards",
        "generator",
    ]
)
def given(request, waveforms):
    """The 24 waveforms in every form."""
    files, kind = of_files(waveforms), request.param
    return {
        "Audio": lambda: files.cast_column("audio", datasets.Audio()),
        "undecoded": lambda: files.cast_column("audio", datasets.Audio(decode=False)),
        "floats": lambda: datasets.Dataset.from_dict({"sound": waveforms}).rename_column("sound", "audio"),
        "array and rate": lambda: datasets.Dataset.from_dict(
            {"audio": [{"array": waveform, "sampling_rate": RATE} for waveform in waveforms]}
        ),
        "list": lambda: waveforms,
        "tensors": lambda: tuple(map(torch.from_numpy, waveforms)),
        "splits": lambda: datasets.DatasetDict({"train": files, "test": files.select([0])}),
        "stream": lambda: files.cast_column("audio", datasets.Audio()).to_iterable_dataset(),
        "shards": lambda: files.to_iterable_dataset(num_shards=4),
        "generator": lambda: datasets.IterableDataset.from_generator(generate, gen_kwargs={"waveforms": waveforms}),
    }[kind]()


def take(loader, count):
    return [next(loader)["input_values"] for _ in range(count)]


@pytest.mark.parametrize("shuffle_buffer", [5, 1000])
def test_each_epoch_has_every_sample_once(given, extractor, identify, shuffle_buffer):
    data = DataArguments(shuffle_buffer=shuffle_buffer, **PLAIN)
    loader = build_loader(data, extractor, given, batch_size=8, seed=0)
    epochs = [[index for _ in range(3) for index in identify(next(loader))] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2 and epochs[0] != epochs[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_over_two_epochs(given, extractor, num_workers):
    data = DataArguments(shuffle_buffer=7, num_workers=num_workers, frequency_mask=0.3)
    reference = build_loader(data, extractor, given, batch_size=5, seed=3)
    states, batches = [], []
    for _ in range(10):  # 24 samples of an epoch
        states.append(reference.state_dict())
        batches += take(reference, 1)
    for stop in (0, 3, 7):
        resumed = build_loader(data, extractor, given, batch_size=5, seed=3)
        resumed.load_state_dict(states[stop])
        assert all(torch.equal(*pair) for pair in zip(take(resumed, 3), batches[stop : stop + 3], strict=True))


def test_examples_are_those_of_the_files(given, extractor, parquet_folder):
    expected = load_examples(DataArguments(parquet_folder), extractor)
    examples = load_examples(DataArguments(), extractor, given)
    assert len(examples) == 24 and examples.fingerprint and expected.fingerprint is None
    for ours, theirs in zip(examples.clips, expected.clips, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02)  # files hold 16 bits
    played = sound_reader(DataArguments(), extractor, given)({0, 5})
    np.testing.assert_allclose(played[5], decode_audio({"bytes": flac(played[5]), "path": None}, RATE), atol=1e-4)


@pytest.mark.parametrize("options", [{"cache": True}, {"in_memory": False}, {"in_memory": False, "cache": True}])
def test_where_samples_are_kept_changes_nothing(waveforms, extractor, tmp_path, options):
    data = DataArguments(cache_dir=str(tmp_path), label_column="kind", exclude={"fold": [1]})
    files = of_files(waveforms)
    expected = load_examples(data, extractor, files)
    for key, value in options.items():
        setattr(data, key, value)
    for _ in range(2):
        kept = load_examples(data, extractor, files)
        assert kept.labels.tolist() == expected.labels.tolist() and kept.label_names == ["low", "high"]
        assert kept.clip_names == expected.clip_names and len(kept) == 16
        batches = (each.batch(range(16))["input_values"] for each in (kept, expected))
        np.testing.assert_allclose(*batches, atol=2e-3)  # half precision
    assert len(kept.training_batch(range(3), np.random.default_rng(0))["input_values"]) == 3
    data.label_column, data.exclude = None, {}
    assert len(load_examples(data, extractor, waveforms)) == 24
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == (2 if data.cache else 0)


def test_a_cache_is_of_one_dataset(waveforms, extractor, tmp_path):
    data = DataArguments(cache=True, cache_dir=str(tmp_path))
    for given in (waveforms, waveforms[::-1], of_files(waveforms), of_files(waveforms).select(range(9))):
        examples = load_examples(data, extractor, given)
        np.testing.assert_allclose(
            examples.clips[0], load_examples(DataArguments(), extractor, given).clips[0], atol=5e-3
        )
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


@pytest.mark.parametrize("options", [{"cache": True}, {"in_memory": False}])
def test_a_stream_cannot_be_kept(waveforms, extractor, tmp_path, options):
    data = DataArguments(cache_dir=str(tmp_path), **options)
    with pytest.raises(ValueError, match="is an IterableDataset, which has no fingerprint"):
        load_examples(data, extractor, of_files(waveforms).to_iterable_dataset())


def test_a_position_in_another_dataset_is_refused(waveforms, extractor):
    data = DataArguments(shuffle_buffer=5)
    files = of_files(waveforms)
    for shuffle_buffer in (5, 1000):
        data.shuffle_buffer = shuffle_buffer
        state = build_loader(data, extractor, files, batch_size=2, seed=0).state_dict()
        assert not build_loader(data, extractor, of_files(waveforms), batch_size=2, seed=0).differs(state)
        for other in (of_files(waveforms[::-1]), waveforms, files.to_iterable_dataset()):
            with pytest.raises(ValueError, match="of another loader: .*dataset=[0-9a-f]{16}, now"):
                build_loader(data, extractor, other, batch_size=2, seed=0).load_state_dict(state)


def test_a_split_to_test_on(waveforms, extractor):
    files = of_files(waveforms)
    splits = datasets.DatasetDict({"train": files.select(range(20)), "test": files.select(range(20, 24))})
    data = DataArguments(label_column="kind", test_split="test")
    expected = load_examples(data, extractor, splits)
    assert expected.folds.tolist() == ["train"] * 20 + ["test"] * 4 and expected.test_folds == ["test"]
    data.test_split = None
    for in_memory in (True, False):
        data.in_memory = in_memory
        examples = load_examples(data, extractor, splits["train"], splits["test"])
        assert examples.folds.tolist() == expected.folds.tolist() and examples.test_folds == ["test"]
        np.testing.assert_array_equal(
            examples.batch(range(24))["input_values"], expected.batch(range(24))["input_values"]
        )
    with pytest.raises(ValueError, match="data.test_split is 'test' and the given dataset is one split"):
        load_examples(DataArguments(test_split="test"), extractor, files)
    with pytest.raises(ValueError, match="test_dataset is given; it takes a dataset to train on"):
        load_examples(DataArguments(), extractor, None, files)


@pytest.mark.parametrize(
    ("given", "data", "message"),
    [
        (
            5,
            {},
            "dataset is a int; it takes a datasets.Dataset, IterableDataset or DatasetDict, or a list of arrays",
        ),
        ([{"audio": np.zeros(9)}], {}, "datasets.Dataset.from_list"),
        ([], {}, "dataset is an empty list"),
        ([np.zeros(9)], {"dataset": "somewhere"}, "data.dataset is 'somewhere' and a dataset was given"),
        (
            [np.zeros(9)],
            {"label_column": "kind"},
            r"data.label_column: the given dataset has no column 'kind'; .* \[\]",
        ),
        (datasets.DatasetDict(), {}, "data.split is 'train'; the given dataset has"),
        (datasets.Dataset.from_dict({"sound": [[0.0]]}), {}, r"no column of type Audio.*\['sound'\]"),
        (datasets.Dataset.from_dict({"audio": [[0.0]]}), {"exclude": {"fold": [1]}}, "data.exclude.fold"),
    ],
)
def test_what_cannot_be_read_is_named(given, data, message, extractor):
    with pytest.raises((ValueError, TypeError), match=message):
        build_loader(DataArguments(**data), extractor, given, batch_size=1, seed=0)


def test_bad_samples_are_skipped_and_named(waveforms, extractor, identify):
    given = [*waveforms[:5], np.zeros((2, 1, 9)), np.zeros(3)]
    loader = build_loader(DataArguments(shuffle_buffer=3, **PLAIN), extractor, given, batch_size=5, seed=0)
    assert sorted(identify(next(loader))) == list(range(5))
    next(loader)
    assert loader.skipped.keys() == {"row 5", "row 6"} and "(2, 1, 9)" in loader.skipped["row 5"]
    assert len(load_examples(DataArguments(in_memory=False), extractor, given)) == 5


def test_decoders_of_sounds_are_their_samples(waveforms, extractor):
    decoders = [Decoder(np.stack([waveform] * 2), RATE) for waveform in waveforms]
    arrays = [{"array": waveform, "sampling_rate": RATE} for waveform in waveforms]
    ours, theirs = (load_examples(DataArguments(), extractor, given).clips for given in (decoders, arrays))
    assert len(ours) == len(waveforms)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_int16_is_scaled_and_other_rates_are_resampled(waveforms):
    whole = (32767 * waveforms[0]).astype(np.int16)
    np.testing.assert_allclose(decode_audio(whole, RATE), waveforms[0], atol=1e-4)
    resampled = decode_audio({"array": waveforms[0], "sampling_rate": 2 * RATE}, RATE)
    assert abs(len(resampled) - len(waveforms[0]) / 2) < 1
    with pytest.raises(BadClipError, match=r"an array \(9,\) of int64; it takes \(samples,\) of floats or int16"):
        decode_audio(np.zeros(9, np.int64), RATE)


def test_channels_of_arrays_are_averaged_as_those_of_files(waveforms, extractor, identify, caplog):
    audio_decoding._say_mixed.cache_clear()
    stereo = [np.stack([1.5 * waveform, 0.5 * waveform]) for waveform in waveforms]
    forms = [each if i % 2 else each.T for i, each in enumerate(stereo)]
    loader = build_loader(DataArguments(**PLAIN), extractor, forms, batch_size=24, seed=0)
    assert sorted(identify(next(loader))) == list(range(24)) and not loader.skipped
    assert [line for line in caplog.messages if "averaged" in line] == [
        "there are sounds of several channels; they are averaged to mono."
    ]
    whole = (stereo[0] / 2 * 32767).astype(np.int16)
    np.testing.assert_allclose(decode_audio(whole, RATE), waveforms[0] / 2, atol=1e-4)


@pytest.mark.parametrize("form", ["PIL", "HWC", "CHW", "list of PIL", "Image", "Array3D", "lists", "stream"])
def test_images_in_every_form(form):
    config = BridleConfig(modality="image", input_size=(16, 16), **LAYERS)
    processor = build_processor(config, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    pixels = [picture(i) for i in range(24)]
    named = {"image": pixels}
    array = datasets.Features({"image": datasets.Array3D((20, 20, 3), "uint8")})
    encoded = datasets.Dataset.from_list([{"image": {"bytes": png(each), "path": None}} for each in pixels])
    given = {
        "PIL": lambda: [Image.fromarray(each) for each in pixels],
        "HWC": lambda: pixels,
        "CHW": lambda: [each.transpose(2, 0, 1) for each in pixels],
        "list of PIL": lambda: datasets.Dataset.from_dict({"img": [Image.fromarray(each) for each in pixels]}),
        "Image": lambda: encoded.cast_column("image", datasets.Image()),
        "Array3D": lambda: datasets.Dataset.from_dict(named, features=array),
        "lists": lambda: datasets.Dataset.from_dict(named),
        "stream": lambda: encoded.cast_column("image", datasets.Image()).to_iterable_dataset(num_shards=3),
    }[form]()
    data = DataArguments(crop_scale=(1.0, 1.0), flip=False, shuffle_buffer=5)
    values = next(build_loader(data, processor, given, batch_size=24, seed=0))["pixel_values"]
    assert sorted(np.round(255 * values.numpy().mean(axis=(1, 2, 3)))) == LEVELS.tolist()


@pytest.mark.parametrize("form", ["THWC", "TCHW", "paths", "Video", "stream"])
def test_videos_in_every_form(form, tmp_path):
    config = BridleConfig(modality="video", input_size=(4, 16, 16), patch_size=(2, 8, 8), **LAYERS)
    processor = build_processor(config, frame_stride=3, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    levels = [10 * (first + np.arange(13)) for first in range(6)]
    frames = [np.broadcast_to(each[:, None, None, None], (13, 32, 32, 3)).astype(np.uint8) for each in levels]
    paths = [str(counting_video(tmp_path / f"{i}.mp4", 13, first=i)) for i in range(6)]
    given = {
        "THWC": lambda: frames,
        "TCHW": lambda: [each.transpose(0, 3, 1, 2) for each in frames],
        "paths": lambda: datasets.Dataset.from_dict({"video": paths}),
        "Video": lambda: datasets.Dataset.from_dict({"video": paths}).cast_column("video", datasets.Video()),
        "stream": lambda: datasets.Dataset.from_dict({"video": paths}).to_iterable_dataset(),
    }[form]()
    data = DataArguments(crop_scale=(1.0, 1.0), flip=False)
    values = next(build_loader(data, processor, given, batch_size=6, seed=0))["pixel_values"].numpy()
    shown = np.round(255 * values.mean(axis=(2, 3, 4)) / 10)
    assert values.shape == (6, 4, 3, 16, 16) and (np.diff(shown) == 3).all() and len(set(shown[:, 0])) > 2
    assert [len(clip) for clip in load_examples(data, processor, given).clips] == [13] * 6


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [((8, 6), 3, (3, 8, 6)), ((8, 6, 1), 3, (3, 8, 6)), ((8, 6, 4), 3, (3, 8, 6)), ((4, 8, 6), 3, (3, 8, 6)),
     ((5, 8, 6), 4, (5, 3, 8, 6)), ((5, 1, 8, 6), 4, (5, 3, 8, 6))],
)  # fmt: skip
def test_channels_of_pixels_are_found(shape, axes, expected):
    assert pixels_of(np.zeros(shape, np.uint8), axes).shape == expected


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 6, 3)), np.zeros((8, 6, 5), np.uint8), np.full((8, 6), 300), np.zeros(())]
)
def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(BadClipError, match="it takes"):
        pixels_of(pixels, 3)


def test_a_transform_that_is_not_applied_is_said(waveforms, extractor, caplog):
    given = of_files(waveforms)
    given.set_transform(lambda rows: {"audio": []})
    assert len(load_examples(DataArguments(), extractor, given)) == len(waveforms)
    assert "the transform of the given dataset (set_transform) is not applied" in caplog.text


def test_images_are_no_videos_and_rows_no_images():
    with pytest.raises(BadClipError, match=r"\(40, 48, 3\), an image with channels, no video; it takes 4 axes"):
        pixels_of(np.zeros((40, 48, 3), np.uint8), 4)
    with pytest.raises(BadClipError, match=r"\(48, 4\), a row of colours, no image; it takes 3 axes"):
        pixels_of(np.zeros((48, 4), np.uint8), 3)


def test_one_bad_entry_of_a_list_costs_itself(extractor, image_processor, video_processor, tmp_path):
    (tmp_path / "cut.png").write_bytes(png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:5000])
    sizes = [Image.new("RGB", (8, size)) for size in (8, 8, 9, 8)]
    sound, film = np.ones(8000, np.float32) / 9, np.zeros((5, 8, 8, 3), np.uint8)
    for processor, good, bad in (
        (extractor, sound, {"array": sound}),
        (extractor, {"array": sound, "sampling_rate": 8000}, {"array": sound, "sampling_rate": None}),
        (extractor, torch.tensor(sound).bfloat16(), {"array": sound, "sampling_rate": "16000"}),
        (extractor, torch.tensor(sound, requires_grad=True), {"array": sound, "sampling_rate": float("nan")}),
        (extractor, flac(sound), b"none"),
        (extractor, sound, None),
        (extractor, sound, [1.0, [2.0]]),
        (image_processor, picture(0), Image.open(tmp_path / "cut.png")),
        (image_processor, png(picture(0)), None),
        (video_processor, film, sizes),
        (video_processor, film, film[0]),
    ):
        examples = load_examples(DataArguments(max_bad_share=0.5), processor, [good, bad, good])
        assert examples.clip_names == ["row 0", "row 2"]


@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_16_bits_are_sounds(stream, waveforms, extractor):
    sounds = [np.round(each * 32767).astype(np.int16) for each in waveforms]
    types = datasets.Features({"audio": datasets.List(datasets.Value("int16"))})
    given = datasets.Dataset.from_dict({"audio": sounds}, features=types)
    given = given.to_iterable_dataset() if stream else given
    found = load_examples(DataArguments(), extractor, given).batch(range(len(sounds)))["input_values"]
    expected = load_examples(DataArguments(), extractor, sounds).batch(range(len(sounds)))["input_values"]
    np.testing.assert_array_equal(found, expected)
    holed = [[*sounds[0][:100].tolist(), None, *sounds[0][100:].tolist()], sounds[1]]
    given = datasets.Dataset.from_dict({"audio": holed}, features=types)
    given = given.to_iterable_dataset() if stream else given
    assert len(load_examples(DataArguments(max_bad_share=0.5), extractor, given)) == 1  # None is no number


@pytest.mark.parametrize("form", [int, np.int64, torch.tensor, np.array])
def test_labels_of_a_stream_may_be_of_any_type(form, waveforms, extractor):
    def generate():
        for number, sound in enumerate(waveforms):
            yield {"audio": sound, "label": form(number % 2)}

    given = datasets.IterableDataset.from_generator(generate)
    found = load_examples(DataArguments(label_column="label"), extractor, given)
    assert found.labels.tolist() == [number % 2 for number in range(len(waveforms))]


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_streams_in_another_format_hold_the_same_sounds(form, waveforms, extractor):
    rows = [{"audio": {"array": sound.tolist(), "sampling_rate": RATE}} for sound in waveforms]
    given = datasets.Dataset.from_list(rows)
    expected = load_examples(DataArguments(), extractor, given)
    for stream in (given.with_format(form).to_iterable_dataset(), given.to_iterable_dataset().with_format(form)):
        found = load_examples(DataArguments(), extractor, stream)
        assert len(found) == len(waveforms)
        for one, other in zip(found.clips, expected.clips, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)
