"""ONNX files compute what the models do, and the constants of the front-end make its frames."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import tiny_config

import bridle_hf
from bridle_hf import BridleFeatureExtractor
from bridle_hf.cli.main import main
from bridle_hf.data.modalities import build_processor
from bridle_hf.feature_extraction_bridle import front_end

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SLOW = pytest.mark.slow
SIZES = {
    "audio": {"input_size": (32, 8), "patch_size": (4, 4)},
    "image": {"input_size": (12, 8), "patch_size": (4, 4)},
    "video": {"input_size": (4, 8, 8), "patch_size": (2, 4, 4)},
}


def saved(folder, name, modality, **options):
    torch.manual_seed(0)
    model = getattr(bridle_hf, name)(tiny_config(modality, cold_start=False, **SIZES[modality], **options)).eval()
    if name == "BridleForPreTraining":
        model.tokenizer.quantizer.initialize_(torch.randn(64, 8))
    model.save_pretrained(folder)
    build_processor(model.config).save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "modality", "part", "options"),
    [
        ("BridleModel", "audio", "encoder", {"position_layout": "wrapped"}),
        pytest.param("BridleModel", "audio", "encoder", {}, marks=SLOW),
        pytest.param("BridleModel", "audio", "encoder", {"position_layout": "table", "pooling": "cls"}, marks=SLOW),
        ("BridleForPreTraining", "audio", "tokenizer", {}),
        ("BridleForPreTraining", "image", "tokenizer", {}),
        pytest.param("BridleForPreTraining", "video", "tokenizer", {}, marks=SLOW),
        pytest.param("BridleForAudioClassification", "audio", "classifier", {}, marks=SLOW),
        ("BridleForImageClassification", "image", "classifier", {}),
        pytest.param("BridleModel", "video", "encoder", {}, marks=SLOW),
    ],
)
def test_a_file_computes_what_the_model_does(name, modality, part, options, tmp_path, capsys):
    model = saved(tmp_path / "model", name, modality, **options)
    main(["export", str(tmp_path / "model"), str(tmp_path / "out.onnx"), "--part", part])
    said = json.loads(capsys.readouterr().out)
    beside = [str(tmp_path / "out.npz")] if modality == "audio" else []
    assert said["written"] == [str(tmp_path / "out.onnx"), *beside] and said["largest_difference"] < 1e-5

    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    frames = {"audio": (12, 8), "image": (3, 12, 8), "video": (4, 3, 8, 8)}[modality]
    times = 60 if part == "tokenizer" else 1  # codes of more patches than are searched at once
    values = torch.randn(5 * times, *frames)
    inputs = {model.main_input_name: values}
    if modality == "audio":
        mask = (torch.arange(12) < torch.tensor([12, 12, 4, 5, 8])[:, None]).long()
        inputs["attention_mask"] = mask.repeat(times, 1)
    with torch.no_grad():
        if part == "tokenizer":
            _, valid = model.bridle.patch_layer.mask_padding(values, inputs.get("attention_mask"))
            valid = torch.ones(values.shape[0], model.config.num_patches).bool() if valid is None else valid
            expected = {"codes": model.tokenizer.encode(*inputs.values())[valid]}
        else:
            expected = model(**inputs)
    names = [each.name for each in session.get_outputs()]
    found = dict(zip(names, session.run(None, {k: v.numpy() for k, v in inputs.items()}), strict=True))
    assert names == {"encoder": ["last_hidden_state", "pooler_output"], "tokenizer": ["codes"]}.get(part, ["logits"])
    if part == "tokenizer":  # of padding the codes say nothing
        found["codes"] = found["codes"][valid.numpy()]
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key].numpy(), atol=1e-5)


def test_weights_in_a_second_file_are_called_as_the_first(tmp_path, monkeypatch, capsys):
    """As torch writes models of more than 1.5 GB."""
    saved(tmp_path / "model", "BridleModel", "image")
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, to: save(self, to, external_data=True))
    main(["export", str(tmp_path / "model"), str(tmp_path / "out" / "a.onnx")])
    written = json.loads(capsys.readouterr().out)["written"]
    assert [path.rpartition("/")[2] for path in written] == ["a.onnx", "a.onnx.data"]
    assert sorted(map(str, (tmp_path / "out").iterdir())) == written
    (tmp_path / "out").rename(tmp_path / "moved")
    onnxruntime.InferenceSession(str(tmp_path / "moved" / "a.onnx"))


@pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"sampling_rate": 32_000, "num_mel_bins": 64}])
def test_frames_made_with_numpy_are_the_extractors(options):
    """As docs/guide.md does it."""
    extractor = BridleFeatureExtractor(mean=-5.0, std=3.0, **options)
    given = front_end(extractor)
    clip = np.random.default_rng(0).normal(size=extractor.sampling_rate).astype(np.float32) / 10
    clip = clip - clip.mean()
    frames = np.lib.stride_tricks.sliding_window_view(clip, len(given["window"]))[:: given["hop"]]
    frames = frames - frames.mean(-1, keepdims=True)
    frames[:, 1:] = frames[:, 1:] - given["preemphasis"] * frames[:, :-1]
    power = np.abs(np.fft.rfft(frames * given["window"], 2 * (len(given["filters"]) - 1))) ** 2
    log_mel = np.log(np.maximum(power @ given["filters"], given["floor"]))
    expected = extractor(clip, sampling_rate=extractor.sampling_rate, padding=False).input_values[0]
    np.testing.assert_allclose((log_mel - given["mean"]) / (2 * given["std"]), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/none", "{tmp}/a.onnx"], "there is no such folder here"),
        (["{tmp}/model", "{tmp}/a.pt"], "output is '.*a.pt'; it takes the name of a file that ends in .onnx"),
        (["{tmp}/model", "{tmp}/a.onnx", "--part", "classifier"], "which holds no classifier"),
        (["{tmp}/model", "{tmp}/b.onnx"], "is '.*/b.npz', a folder; it takes the name of a file"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(words, message, tmp_path, capsys):
    saved(tmp_path / "model", "BridleModel", "audio")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(["export", *(word.format(tmp=tmp_path) for word in words)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bridle export: error: ")
    assert re.search(message, last)
