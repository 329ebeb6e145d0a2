import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_config

from bridle_hf import BridleForPreTraining
from bridle_hf.evaluation.quality import initialize_codebooks_, predictor_quality, tokenize, tokenizer_quality


def build(cold_start_positions=False, **quantizer):
    torch.manual_seed(0)
    quantizer = {"num_codebooks": 3, "codebook_size": 16, "codebook_dim": 8, **quantizer}
    more = {"decoder_type": "plain", "cold_start_positions": cold_start_positions, "quantizer_config": quantizer}
    return BridleForPreTraining(tiny_config(input_size=(64, 32), num_hidden_layers=1, **more))


@pytest.fixture(scope="module")
def clips(padded_examples):
    """Twenty clips of two classes that differ in level, half of them padded."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    features = rng.normal(size=(20, 64, 32)).astype(np.float32) + 3 * labels[:, None, None].astype(np.float32)
    frames = np.where(np.arange(20) < 10, 64, 32)
    return padded_examples(features, np.arange(64) < frames[:, None], labels, np.arange(20) // 4)


@pytest.fixture(scope="module")
def model(clips):
    model = build()
    initialize_codebooks_(model.tokenizer, clips)
    return model


def test_codes_are_the_tokenizers_and_padding_is_marked(model, clips):
    codes, valid = tokenize(model.tokenizer, clips, batch_size=7)
    with torch.no_grad():
        alone = model.tokenizer.encode(torch.tensor(clips.clips[12][None]))
    assert codes.shape == (20, 8, 3)
    np.testing.assert_array_equal(codes[12][valid[12]], alone[0])
    assert valid.sum() == 10 * 8 + 10 * 4


def test_quality_against_plain_loops(model, clips):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    quality = tokenizer_quality(model.tokenizer, clips, batch_size=6)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())  # nothing moved
    json.dumps(quality, allow_nan=False)

    left, total, used = np.zeros(3), 0.0, [set(), set(), set()]
    books = [book.embed.double().numpy() for book in model.tokenizer.quantizer.codebooks]
    for clip in clips.clips:
        with torch.no_grad():
            z = model.tokenizer.project(torch.tensor(clip[None]))[0].double().numpy()
        for vector in z:
            vector = vector / np.linalg.norm(vector)
            total += vector @ vector
            for stage, book in enumerate(books):
                nearest = np.square(book - vector).sum(axis=1).argmin()
                used[stage].add(nearest)
                vector = vector - book[nearest]
                left[stage] += vector @ vector
    assert quality["patches"] == 120
    assert quality["residual_energy"] == pytest.approx(left / total, abs=1e-5)
    assert quality["dead"] == [16 - len(codes) for codes in used]
    assert quality["first_code_information"][0] > quality["first_code_information"][1]
    assert quality["bag_of_codes"] == 1.0  # the two classes differ in level


def test_folds_are_drawn_where_there_are_none(model, clips):
    quality = tokenizer_quality(model.tokenizer, replace(clips, folds=None))
    assert list(quality["bag_of_codes_per_fold"]) == [1, 2, 3, 4, 5] and quality["bag_of_codes"] == 1.0


def test_positions_in_the_cold_start_show_as_position_information(clips):
    quiet = replace(clips, clips=[np.float32(0.05) * clip for clip in clips.clips])  # positions are louder
    told = {}
    for positions in (False, True):
        model = build(cold_start_positions=positions)
        initialize_codebooks_(model.tokenizer, quiet)
        told[positions] = tokenizer_quality(model.tokenizer, quiet)["position_information"][0]
    assert told[True] > 2 and told[False] < 0.7  # of log2 8 = 3 bits


def test_churn_is_zero_for_the_same_tokenizer_and_not_after_new_codebooks(model, clips):
    codes, _ = tokenize(model.tokenizer, clips)
    assert tokenizer_quality(model.tokenizer, clips, previous_codes=codes)["churn"] == [0.0] * 3
    other = build()
    initialize_codebooks_(other.tokenizer, clips, seed=1)
    assert min(tokenizer_quality(other.tokenizer, clips, previous_codes=codes)["churn"]) > 0.3


def test_quantizers_without_residuals_and_unlabelled_clips(clips):
    model = build(type="random_projection")
    unlabelled = replace(clips, labels=None)
    quality = tokenizer_quality(model.tokenizer, unlabelled)
    assert quality["residual_energy"] is None and quality["bag_of_codes"] is None
    assert len(quality["cur"]) == 3


def test_predictor_of_constant_logits_explains_nothing(model, clips):
    constant = build()
    constant.load_state_dict(model.state_dict())
    torch.nn.init.zeros_(constant.decoder.head.weight)
    quality = predictor_quality(constant, clips)
    assert quality["cross_entropy"] == pytest.approx([math.log2(16)] * 3, abs=1e-5)
    assert max(quality["explained"]) <= 0 < min(predictor_quality(model, clips)["cross_entropy"])


def test_predictor_that_knows_the_codes_explains_all(clips):
    # A codebook of which one code is ever chosen would have no entropy; a bias towards it is then a perfect guess.
    model = build(num_codebooks=1)
    with torch.no_grad():
        model.tokenizer.quantizer.codebooks[0].embed.fill_(10.0)
        model.tokenizer.quantizer.codebooks[0].embed[3] = 0.0
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.zero_()[3] = 50.0
    quality = predictor_quality(model, clips)
    assert quality["accuracy"] == [1.0] and quality["cross_entropy"][0] < 1e-6
    assert quality["explained"] == [None]
