"""Muon for matrices of hidden layers, AdamW for the rest: what each moves, by how much, and that nothing is lost."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from runs import differing, records, stop_after, weights
from torch import nn

from bridle_hf import BridleForPreTraining
from bridle_hf.training import load_recipe, pretrain
from bridle_hf.training.optimizers import build_optimizer
from bridle_hf.training.parameters import parameter_groups


class Network(nn.Module):
    """Two matrices of a hidden layer, one of a head, and vectors; the gradients are of a square."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6))])
        self.head = nn.Linear(6, 3)

    def backward(self, x):
        for layer in self.body.layers:
            x = layer(x)
        self.head(x).square().mean().backward()


def moved(name, rate=1e-2, decay=0.1):
    """The network after one step, that before it, and its gradients."""
    network = Network()
    before = deepcopy(network)
    optimizer = build_optimizer(name, parameter_groups(network, rate, decay), (0.9, 0.95))
    network.backward(torch.randn(16, 6, generator=torch.Generator().manual_seed(1)))
    optimizer.step()
    return dict(network.named_parameters()), dict(before.named_parameters())


def test_matrices_of_hidden_layers_move_along_an_orthogonal_matrix():
    """Singular vectors of the step are those of the gradient in float64, singular values all near one size."""
    after, before = moved("muon")
    for name in ("body.layers.0.0.weight", "body.layers.0.1.weight"):
        old, gradient = before[name].detach().double(), after[name].grad.double()
        step = (old * (1 - 1e-2 * 0.1) - after[name].detach().double()) / (1e-2 * 0.2 * 10**0.5)
        u, values, vt = torch.linalg.svd(gradient, full_matrices=False)
        rank = int((values > 1e-3 * values[0]).sum())  # the head has three outputs: the gradient has rank three
        within = u.T[:rank] @ step @ vt.T[:, :rank]
        assert rank >= 3 and within.diag().min() > 0.5 and within.diag().max() < 1.4
        assert (within - within.diag().diag()).abs().max() < 0.05


def test_everything_else_moves_as_by_adamw():
    (muon, _), (adamw, _) = moved("muon"), moved("adamw")
    for name, parameter in muon.items():
        hidden = name.startswith("body.layers.") and name.endswith("weight")
        assert torch.equal(parameter, adamw[name]) != hidden, name


def test_heads_embeddings_and_tokens_are_left_to_adamw(tiny_recipe):
    model = BridleForPreTraining(load_recipe(tiny_recipe, ["output_dir=unused"]).config())
    optimizer = build_optimizer("muon", parameter_groups(model, 1e-3, 0.1), (0.9, 0.95))
    names = {name for group in optimizer.muon.param_groups for name in group["names"]}
    assert "bridle.layers.0.attention.qkv.weight" in names and "decoder.layers.0.mlp.fc2.weight" in names
    others = [name for group in optimizer.adamw.param_groups for name in group["names"]]
    assert names.isdisjoint(others)
    assert names.union(others) == {name for name, each in model.named_parameters() if each.requires_grad}
    for part in ("cls_token", "patch_embeddings", "mask_token", "head", "embed", "norm", "bias"):
        assert not [name for name in names if part in name], part


@pytest.mark.parametrize("step", [2, 5])
def test_a_stopped_run_goes_on_bit_for_bit(step, tiny_recipe, tmp_path):
    settings = ["training.optimizer=muon", "training.weight_decay=0.05"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(load_recipe(tiny_recipe, [*settings, f"output_dir={whole}"]))
    recipe = load_recipe(tiny_recipe, [*settings, f"output_dir={stopped}"])
    assert not pretrain(recipe, stop=stop_after(stopped, step))
    assert pretrain(recipe)
    assert not differing(weights(whole / "final"), weights(stopped / "final"))
    assert records(whole) == records(stopped)
    assert np.isfinite([record["loss"] for record in records(whole)]).all()


def test_an_optimizer_that_is_not_known_is_refused(tiny_recipe):
    with pytest.raises(ValueError, match="training.optimizer.*adamw.*muon"):
        load_recipe(tiny_recipe, ["output_dir=unused", "training.optimizer=sgd"])
