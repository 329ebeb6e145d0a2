"""Parameter groups against the rule written out for a small model."""

import pytest
from torch import nn

from bridle_hf import BridleConfig, BridleForAudioClassification
from bridle_hf.training.parameters import layer_id, parameter_groups


@pytest.fixture(scope="module")
def classifier():
    config = BridleConfig(
        input_size=(32, 16), patch_size=(16, 16), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        decoder_hidden_size=8, decoder_num_attention_heads=2, num_labels=3,
    )  # fmt: skip
    return BridleForAudioClassification(config)


def settings(groups):
    return {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_vectors_and_scalars_do_not_decay(classifier):
    found = settings(parameter_groups(classifier, learning_rate=0.5, weight_decay=0.1))
    for name, parameter in classifier.named_parameters():
        vector = name.endswith("bias") or "norm" in name
        assert found[id(parameter)] == (0.5, 0.0 if vector else 0.1), name
    module = nn.Linear(2, 2)
    module.log_t = nn.Parameter(module.weight.new_zeros(()))
    assert settings(parameter_groups(module, 1.0, 0.1))[id(module.log_t)] == (1.0, 0.0)


def test_frozen_parameters_are_left_out(classifier):
    classifier.bridle.requires_grad_(False)
    found = settings(parameter_groups(classifier, 1.0, 0.1))
    classifier.bridle.requires_grad_(True)
    wanted = [p for n, p in classifier.named_parameters() if not n.startswith("bridle.")]
    assert set(found) == {id(p) for p in wanted}


def test_layers_learn_more_slowly_the_deeper_they_lie(classifier):
    found = settings(parameter_groups(classifier, 1.0, 0.1, layer_decay=0.5))
    rates = {
        "bridle.embeddings.patch_embeddings.projection.weight": 0.125,
        "bridle.embeddings.cls_token": 0.125,
        "bridle.layers.0.mlp.fc1.weight": 0.25,
        "bridle.layers.1.mlp.fc1.weight": 0.5,
        "layernorm.weight": 1.0,
        "classifier.weight": 1.0,
        "classifier.bias": 1.0,
    }
    parameters = dict(classifier.named_parameters())
    assert {name: found[id(parameters[name])][0] for name in rates} == rates


def test_every_parameter_has_a_depth(classifier):
    ids = {layer_id(name, 2) for name, _ in classifier.named_parameters()}
    assert ids == {0, 1, 2, 3}
