"""The interfaces that other people's suites want, on a tiny model, without and with the suites."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soxr
import torch
from PIL import Image
from tiny import tiny_config
from torch.utils.data import DataLoader

from bridle_hf import BridleFeatureExtractor, BridleModel, BridleTokenizer
from bridle_hf.clip_features_bridle import poolings_of
from bridle_hf.data import build_processor
from bridle_hf.evaluation.suites import evar, hear, marble, superb, xares
from bridle_hf.evaluation.suites import mteb as mteb_suite
from bridle_hf.evaluation.suites.pretrained import WINDOWS_AT_ONCE, Pretrained, PretrainedSounds

RATE, WINDOW, BINS, WIDTH = 16000, 32, 32, 24  # two patches in time and two bands a window


def samples(frames):
    """Samples that make exactly so many frames."""
    return 400 + 160 * (frames - 1)


def noise(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def save(folder, modality="audio", **options):
    torch.manual_seed(0)
    config = tiny_config(modality, **options)
    BridleModel(config).save_pretrained(folder)
    build_processor(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sounds"), input_size=(WINDOW, BINS), use_cls_token=True)


@pytest.fixture(scope="module")
def model(source):
    return BridleModel.from_pretrained(source).eval()


@pytest.fixture
def reference(model, source):
    """(clips of whole windows) -> the tokens of each layer (L, B, steps, bands, D), window by window, by `forward`."""
    extractor = BridleFeatureExtractor.from_pretrained(source)

    def tokens(clips):
        values = extractor(clips, sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt")
        found = []
        for window in values["input_values"].split(WINDOW, dim=1):
            with torch.no_grad():
                output = model(window, output_hidden_states=True)
            layers = torch.stack([*output.hidden_states, output.last_hidden_state])
            found.append(layers[:, :, 1:].unflatten(2, (-1, BINS // 16)))
        return torch.cat(found, dim=2)

    return tokens


def test_hear_gives_scenes_and_times(source, reference):
    encoder = hear.load_model(source)
    assert (encoder.sample_rate, encoder.scene_embedding_size, encoder.timestamp_embedding_size) == (RATE, 24, 24)
    clips = torch.stack(noise(samples(96), samples(96)))
    tokens = reference(list(clips))[-1]  # (2, 6, 2, 24), three windows
    scenes = hear.get_scene_embeddings(clips, encoder)
    torch.testing.assert_close(scenes, tokens.mean(dim=(1, 2)))
    frames, times = hear.get_timestamp_embeddings(clips, encoder)
    torch.testing.assert_close(frames, tokens.mean(dim=2))
    # a patch sees 16 frames of 25 ms, 10 ms apart: 175 ms
    torch.testing.assert_close(times, torch.tensor([[87.5, 247.5, 407.5, 567.5, 727.5, 887.5]] * 2))
    assert scenes.dtype == frames.dtype == times.dtype == torch.float32 and not scenes.requires_grad


FOUR = [87.5, 247.5, 407.5, 567.5]


@pytest.mark.parametrize(("length", "expected"), [(11200, FOUR), (11640, [*FOUR, 727.5]), (800, [50])])
def test_no_time_is_beyond_the_clip(length, expected, source):
    frames, times = hear.get_timestamp_embeddings(torch.stack(noise(length)), hear.load_model(source))
    assert times.tolist() == [expected] and frames.shape == (1, len(expected), 24)


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "cls", "bands", "bands_std"])
def test_sizes_are_those_of_the_vectors(pooling, source, model):
    assert pooling in poolings_of(model.config)
    sounds = PretrainedSounds(source, pooling)
    clips = noise(9000, 7000)
    bands = 2 if pooling.startswith("bands") else 1
    assert sounds.clips(clips).shape == (2, sounds.clip_size)
    assert sounds.clip_size == WIDTH * bands * (2 if pooling.endswith("std") else 1)
    assert sounds.frames(clips).features.shape == (2, 4, sounds.frame_size) and sounds.frame_size == WIDTH * bands


def test_a_layer_is_the_one_named(source, reference, monkeypatch):
    clips = noise(samples(32))
    expected = reference(clips)[1].mean(dim=(1, 2))
    torch.testing.assert_close(PretrainedSounds(source, layer=1).clips(clips), expected)
    monkeypatch.setenv("BRIDLE_LAYER", "1")
    monkeypatch.setenv("BRIDLE_POOLING", "bands")
    sounds = PretrainedSounds(source)
    torch.testing.assert_close(sounds.clips(clips), reference(clips)[1].mean(dim=1).flatten(1))
    assert sounds.frame_pooling == "frame_bands"


def test_padding_changes_nothing(source):
    """Clips of several lengths, one of many windows and one shorter than a patch: alone and in a batch."""
    clips = noise(30000, 9000, 100)
    for pooling in ("mean", "bands_std", "cls"):
        sounds = PretrainedSounds(source, pooling)
        batch, found = sounds.clips(clips), sounds.frames(clips)
        for row, clip in enumerate(clips):
            torch.testing.assert_close(batch[row : row + 1], sounds.clips([clip]), atol=1e-5, rtol=1e-5)
            alone = sounds.frames([clip]).features
            steps = alone.shape[1]
            torch.testing.assert_close(found.features[row : row + 1, :steps], alone, atol=1e-5, rtol=1e-5)
            assert found.frame_mask[row].sum() == steps and not found.features[row, steps:].any()


def test_long_clips_go_a_few_windows_at_a_time(source):
    sounds, seen = PretrainedSounds(source), []
    sounds.model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    clips = noise(samples(32 * 19), samples(32 * 20))
    assert sounds.frames(clips).features.shape == (2, 40, 24)
    assert sum(seen) == 39 and max(seen) == WINDOWS_AT_ONCE


def test_the_filter_bank_is_exact_under_autocast(source):
    sounds, clips = PretrainedSounds(source), noise(9000)
    with torch.autocast("cpu", torch.bfloat16):
        found = sounds._inputs(clips)
    torch.testing.assert_close(found["input_values"], sounds._inputs(clips)["input_values"], atol=0, rtol=0)


def test_what_cannot_be_loaded_says_why(tmp_path, source, monkeypatch):
    monkeypatch.delenv("BRIDLE_MODEL", raising=False)
    with pytest.raises(ValueError, match="set the environment variable BRIDLE_MODEL"):
        PretrainedSounds()
    with pytest.raises(ValueError, match="takes image data; this suite has sounds"):
        PretrainedSounds(save(tmp_path / "image", "image", input_size=(32, 32)))
    with pytest.raises(ValueError, match="it takes one of mean, mean_std"):
        PretrainedSounds(source, "median")
    with pytest.raises(ValueError, match="got 3; the model has layers"):
        PretrainedSounds(source, layer=3)
    with pytest.raises(ValueError, match=r"sounds has shape \(1, 2, 9000\)"):
        PretrainedSounds(source).clips(torch.zeros(1, 2, 9000))
    config = tiny_config(input_size=(WINDOW, BINS))
    BridleTokenizer(config).save_pretrained(tmp_path / "tokens")
    build_processor(config).save_pretrained(tmp_path / "tokens")
    with pytest.raises(ValueError, match="holds no encoder"):
        PretrainedSounds(str(tmp_path / "tokens"))


def test_xares_makes_an_encoder_without_arguments(source, reference, monkeypatch):
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["BridleEncoder"]  # xares takes the only one
    monkeypatch.setenv("BRIDLE_MODEL", source)
    encoder = xares.BridleEncoder()
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (RATE, 24, 160)
    (clip,) = noise(samples(96))
    expected = reference([clip])[-1].mean(dim=2)
    torch.testing.assert_close(encoder(clip), expected)
    torch.testing.assert_close(encoder(torch.stack([clip, clip])), expected.expand(2, -1, -1))
    monkeypatch.delenv("BRIDLE_MODEL")
    subclass = type("MyEncoder", (xares.BridleEncoder,), {"source": source})
    torch.testing.assert_close(subclass()(clip), expected)


def test_evar_wants_time_last(source, reference):
    cfg = {"weight_file": source, "sample_rate": RATE, "feature_d": 48, "pooling": "bands"}
    representation = evar.AR_Bridle(cfg)
    representation.precompute("cpu", None)
    clips = torch.stack(noise(samples(96), samples(96)))
    tokens = reference(list(clips))[-1].flatten(2)  # (2, 6, 48)
    torch.testing.assert_close(representation.encode_frames(clips), tokens.transpose(1, 2))
    torch.testing.assert_close(representation(clips), tokens.mean(dim=1))
    representation(clips).sum().backward()  # EVAR trains it, too
    assert representation.sounds.model.layers[0].mlp.fc1.weight.grad.any()
    with pytest.raises(ValueError, match="feature_d is 24; this model, pooled by 'bands', takes 48"):
        evar.AR_Bridle(cfg | {"feature_d": 24})
    with pytest.raises(ValueError, match="sample_rate is 32000; .* takes 16000"):
        evar.AR_Bridle(cfg | {"sample_rate": 32000})


def test_marble_gets_a_tensor_a_layer(source, reference):
    encoder = marble.Bridle_Encoder(source).train()
    assert (encoder.SAMPLING_RATE, encoder.TOKEN_RATE, encoder.num_features) == (RATE, 6.25, 24)
    assert encoder.n_transformer_layers == 2
    clips = torch.stack(noise(samples(96), samples(96)))
    found = encoder(clips[:, None])
    expected = reference(list(clips))[:-1].mean(dim=3)
    assert len(found) == 3
    torch.testing.assert_close(torch.stack(found), expected)
    assert not encoder.sounds.model.training and not found[-1].requires_grad
    full = marble.Bridle_Encoder(source, train_mode="full")
    assert full.sounds.model.training and all(each.requires_grad for each in full.parameters())
    with pytest.raises(ValueError, match="train_mode is 'none'; it takes one of freeze, full, lora"):
        marble.Bridle_Encoder(source, train_mode="none")


def test_marble_trains_lora_matrices(source):
    pytest.importorskip("peft")
    encoder = marble.Bridle_Encoder(source, train_mode="lora", lora_r=2, lora_dropout=0.0)
    clips = torch.stack(noise(9000))
    encoder(clips)[-1].sum().backward()
    trained = [name for name, each in encoder.named_parameters() if each.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert any(each.grad is not None and each.grad.any() for each in encoder.parameters())
    # their product begins at zero
    frozen = marble.Bridle_Encoder(source)
    torch.testing.assert_close(encoder.eval()(clips), frozen(clips))


def test_superb_gets_layers_of_a_list_of_clips(source, reference):
    upstream = superb.UpstreamExpert(source, None)
    assert upstream.get_downsample_rates("hidden_states") == 2560
    long, short = noise(samples(96), samples(32))
    found = upstream([long, short])
    states = torch.stack(found["hidden_states"])  # (L, 2, 6, 24)
    torch.testing.assert_close(states[:, :1], reference([long])[:-1].mean(dim=3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[:, 1:, :2], reference([short])[:-1].mean(dim=3), atol=1e-5, rtol=1e-5)
    assert not states[:, 1, 2:].any() and found["last_hidden_state"] is found["hidden_states"][-1]


def loader(rows, collate=lambda rows: {key: [row[key] for row in rows] for key in rows[0]}):
    return DataLoader(rows, batch_size=2, collate_fn=collate)


def test_mteb_gets_vectors_of_sounds_at_any_rate(source):
    encoder = mteb_suite.BridleEncoder("me/mine", None, source=source, device="cpu", pooling="bands")
    clips = [clip.numpy() for clip in noise(20000, 9000, 15000)]
    rates = (RATE, 8000, RATE)
    rows = [{"audio": {"array": clip, "sampling_rate": rate}} for clip, rate in zip(clips, rates, strict=True)]
    rows[2]["audio"]["array"] = np.stack([clips[2], clips[2]])  # stereo
    found = encoder.encode(loader(rows), task_metadata=None, hf_split="test", hf_subset="default")
    clips[1] = soxr.resample(clips[1], 8000, RATE)
    sounds = PretrainedSounds(source, "bands")
    for row, clip in zip(found, clips, strict=True):
        torch.testing.assert_close(torch.tensor(row), sounds.clips([clip])[0], atol=1e-5, rtol=1e-5)
    assert found.dtype == np.float32


@pytest.fixture(scope="module")
def image_source(tmp_path_factory):
    return save(tmp_path_factory.mktemp("images"), "image", input_size=(32, 32))


@pytest.fixture(scope="module")
def video_source(tmp_path_factory):
    return save(tmp_path_factory.mktemp("videos"), "video", input_size=(4, 32, 32))


def test_mteb_gets_vectors_of_images(image_source):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in pixels]
    encoder = mteb_suite.BridleEncoder(image_source, device="cpu")
    found = encoder.encode(loader([{"image": each} for each in images]))
    processor, model = build_processor(encoder.model.model.config), encoder.model.model
    with torch.no_grad():
        tokens = model(**processor(images, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(torch.tensor(found), tokens[:, int(model.config.use_cls_token) :].mean(dim=1))


def test_videos_come_with_their_frames(video_source):
    videos = [torch.randint(0, 256, (4, 3, 40, 50), dtype=torch.uint8) for _ in range(2)]
    pretrained = Pretrained(video_source)
    pixels = build_processor(pretrained.model.config)(videos, return_tensors="pt")
    with torch.no_grad():
        tokens = pretrained.model(**pixels).last_hidden_state
        found = pretrained.clips(videos)
    torch.testing.assert_close(found, tokens[:, int(pretrained.model.config.use_cls_token) :].mean(dim=1))


def test_hears_validator_passes(source, monkeypatch, capsys):
    stand_in = ModuleType("tensorflow")  # the validator imports it, and asks for one of its classes
    stand_in.Module = type("Module", (), {})
    stand_in.__spec__ = SimpleNamespace(loader=None)
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    validate = pytest.importorskip("hearvalidator.validate")
    with pytest.warns(UserWarning, match="less than or equal to 50ms"):  # patches of 160 ms
        validate.ValidateModel("bridle_hf.evaluation.suites.hear", source, device="cpu")()
    assert "Interval between timestamps is 160.0ms" in capsys.readouterr().out


def test_xares_checker_passes(source, monkeypatch):
    checker = pytest.importorskip("xares.audio_encoder_checker")
    utils = pytest.importorskip("xares.utils")
    monkeypatch.setenv("BRIDLE_MODEL", source)
    encoder = utils.attr_from_py_path("bridle_hf.evaluation.suites.xares", endswith="Encoder")()
    assert checker.check_audio_encoder(encoder)
    with torch.inference_mode():
        assert encoder(torch.randn(1, 600 * RATE)).shape == (1, 3750, 24)  # ten minutes


@pytest.mark.parametrize("modality", ["audio", "image", "video"])
def test_mtebs_mock_run_passes(modality, request):
    mteb = pytest.importorskip("mteb")
    if modality != "image":
        try:
            import torchcodec.decoders  # noqa: F401
        except Exception as error:
            pytest.skip(f"torchcodec, which mteb decodes with, does not load: {str(error).splitlines()[0]}")
    name = {"audio": "source", "image": "image_source", "video": "video_source"}[modality]
    source = request.getfixturevalue(name)
    encoder = mteb_suite.model_meta(source, name=f"me/{modality}").load_model(device="cpu")
    results = mteb.mock_run(encoder)
    assert results.all_passed, results.to_markdown()
    assert sum(result is not None for _, result in results.items()) >= 3
