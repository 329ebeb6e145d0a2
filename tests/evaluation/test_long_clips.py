"""Sounds longer than the model's window: what happens late in them counts, in probes, tests and pipelines."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_config
from transformers import pipeline

from bridle_hf import BridleFeatureExtractor, BridleForAudioClassification, BridleModel
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.evaluation.baselines import baseline_features
from bridle_hf.evaluation.features import encoder_features
from bridle_hf.evaluation.probe import linear_probe
from bridle_hf.finetuning.trainer import predict

RATE, WINDOW = 16000, 496


def sound(label, seed, seconds=30, at=20):
    """Faint noise, and from `at` seconds on a second of a low or high tone."""
    rng = np.random.default_rng(seed)
    samples = 0.001 * rng.normal(size=seconds * RATE)
    pitch = (300, 3000)[label] * rng.uniform(0.8, 1.2)
    samples[at * RATE : (at + 1) * RATE] += 0.3 * np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE)
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    return BridleFeatureExtractor(max_length=WINDOW, num_mel_bins=64, mean=-7.0, std=4.0)


@pytest.fixture(scope="module")
def long_clips(to_wav):
    rows = [{"audio": to_wav(sound(i % 2, i)), "sound": ("low", "high")[i % 2], "fold": i // 4} for i in range(12)]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def classifier(extractor):
    """A random encoder, with a head that least squares fits to clips of one window: low, high, or neither."""
    torch.manual_seed(0)
    config = tiny_config(input_size=(WINDOW, 64), id2label={0: "low", 1: "high"})
    model = BridleForAudioClassification(config).eval()
    tones = [sound(i % 2, 100 + i, seconds=5, at=i % 4) for i in range(40)]
    clips, targets = [*tones, *(sound(0, 200 + i)[: 5 * RATE] for i in range(40))], [-1, 1] * 20 + [0] * 40
    inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        x = model.layernorm(model.bridle(**inputs).pooler_output).numpy()
        x = np.concatenate([x, np.ones((80, 1))], axis=1)
        head = np.linalg.solve(x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ targets)
        model.classifier.weight.copy_(torch.tensor(np.stack([-head[:-1], head[:-1]])))
        model.classifier.bias.copy_(torch.tensor([-head[-1], head[-1]]))
    return model


def test_a_probe_hears_what_comes_late(long_clips, extractor, classifier):
    accuracy = {}
    for windows in ("all", "first"):
        data = DataArguments(label_column="sound", fold_column="fold", test_windows=windows)
        examples = load_examples(data, extractor, long_clips)
        features = encoder_features(classifier.bridle, examples, poolings=("bands_std",), batch_size=5)
        accuracy[windows] = linear_probe(features[None, "bands_std"], examples.labels, examples.folds).accuracy
        describe = examples.modality.baselines["logmel"]
        accuracy["logmel", windows] = linear_probe(
            baseline_features(examples, describe), examples.labels, examples.folds
        ).accuracy
    assert accuracy["all"] == accuracy["logmel", "all"] == 1.0
    assert max(accuracy["first"], accuracy["logmel", "first"]) < 0.9  # noise alone


def test_the_first_window_alone_says_what_it_leaves_out(long_clips, extractor, caplog):
    load_examples(DataArguments(test_windows="first"), extractor, long_clips)
    assert "12 of 12 clips are longer than the window of 496 frames" in caplog.text


def test_a_pipeline_hears_what_comes_late(extractor, classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    classify = pipeline("long-audio-classification", model=str(tmp_path))
    clips, names = [sound(i % 2, 200 + i) for i in range(4)], ["low", "high"] * 2
    found = classify(clips, top_k=1)
    assert [each[0]["label"] for each in found] == names
    assert [each[0]["label"] for each in classify(clips, top_k=1, batch_size=4)] == names
    # logits are averaged, each window's weighted by its patches in time
    inputs = extractor(clips[0], sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt")
    mask, values, total, seen = inputs["attention_mask"], inputs["input_values"], 0.0, 0
    assert int(mask.sum()) == 2998
    for start in (0, 496, 992, 1488, 1984, 2480, 2512):
        part = slice(start, start + WINDOW)
        with torch.no_grad():
            logits = classifier(values[:, part], attention_mask=mask[:, part]).logits[0]
        steps = -(-int(mask[:, part].sum()) // 16)
        total, seen = total + steps * logits, seen + steps
    scores = (total / seen).softmax(0)
    assert found[0][0]["score"] == pytest.approx(scores[0].item(), abs=1e-5)
    # in the first window there is nothing; transformers' own pipeline hears no more
    first = classify(clips, windows="first", top_k=1)
    assert first == pipeline("audio-classification", model=str(tmp_path))(clips, top_k=1)
    assert [each[0]["label"] for each in first] != names
    features = pipeline("audio-feature-extraction", model=BridleModel(classifier.config), feature_extractor=extractor)
    assert len(features(clips[0])[0]) == 1 + 188 * 4


@pytest.mark.parametrize("samples", [10, 500, 2000])
def test_short_clips_are_padded_on_request(samples, extractor, classifier):
    clip = np.random.default_rng(0).normal(size=samples).astype(np.float32) / 10
    with pytest.raises(ValueError, match="takes at least 2800 samples .* pad_short=True pads it"):
        extractor(clip, sampling_rate=RATE)
    padding = BridleFeatureExtractor(**extractor.to_dict() | {"pad_short": True})
    inputs = padding(clip, sampling_rate=RATE, return_tensors="pt", padding="longest")
    frames = max(1, 1 + (samples - 400) // 160)
    assert inputs["input_values"].shape == (1, 16, 64) and inputs["attention_mask"].sum() == frames
    if samples < 400:  # padded to one window of 25 ms
        padded = np.concatenate([clip, np.zeros(2800 - samples, np.float32)])
        got = BridleFeatureExtractor(**extractor.to_dict() | {"pad_short": True, "pad_to_multiple_of": 1})
        window = got(padded[:400], sampling_rate=RATE, padding=False)["input_values"][0]
        assert window.shape == inputs["input_values"][0, :1].shape
        torch.testing.assert_close(torch.tensor(window), inputs["input_values"][0, :1])
    dataset = [clip, np.tile(clip, 2800)[:8000]]
    assert len(load_examples(DataArguments(min_seconds=0), padding, dataset)) == 2
    with torch.no_grad():
        assert classifier.bridle(**inputs).pooler_output.isfinite().all()


def test_the_test_of_fine_tuning_hears_what_comes_late(long_clips, extractor, classifier):
    """The logits of the test are those of the pipeline's windows, in batches of clips of several lengths."""

    class Alone:
        """What `predict` takes of a trainer, in one process."""

        model, accelerator = classifier, SimpleNamespace(prepare=iter, gather_for_metrics=lambda scores: scores)
        args = SimpleNamespace(
            dataloader_num_workers=0, per_device_eval_batch_size=4, dataloader_pin_memory=False, eval_batch_size=4
        )

        def prediction_step(self, model, batch, prediction_loss_only):
            with torch.no_grad():
                return None, model(**batch).logits, None

    clips = [sound(i % 2, 200 + i) for i in range(3)] + [sound(1, 203, seconds=4, at=2)]
    examples = load_examples(DataArguments(), extractor, clips)
    got = predict(Alone(), examples, [3, 2, 1, 0])[::-1]
    for samples, logits in zip(clips, got, strict=True):
        inputs = extractor(samples, sampling_rate=RATE, truncation=False, return_tensors="pt", padding="longest")
        starts = (0, 496, 992, 1488, 1984, 2480, 2512) if inputs["input_values"].shape[1] > WINDOW else (0,)
        parts = [{key: each[:, start : start + WINDOW] for key, each in inputs.items()} for start in starts]
        with torch.no_grad():
            windows = torch.cat([classifier(**part).logits for part in parts])  # of 31 patches in time each
        np.testing.assert_allclose(logits, windows.mean(dim=0), atol=1e-5)
    assert got.argmax(axis=1).tolist() == [0, 1, 0, 1]
