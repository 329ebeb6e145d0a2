"""FSDP2: two processes that each hold a part of the parameters take the steps of one, and their checkpoints are whole
and go on bit for bit.

Accelerate shards on accelerators only, so its `prepare` is stood in for by `fully_shard` on two CPU processes: what is
tried is the loop, codebooks and checkpoints on sharded parameters, not Accelerate's own wrapping.
"""

import pytest
import torch
from accelerate import Accelerator
from runs import differing, fork, join, weights
from test_processes import JOINED, query_and_value, train_layout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bridle_hf.layers_bridle import BridleLayer
from bridle_hf.training.checkpoints import list_checkpoints, open_checkpoint


def shard(accelerator, model, optimizer):
    """What `Accelerator.prepare` does under FSDP2."""
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for module in model.modules():
        if isinstance(module, BridleLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parameters = dict(model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["names"]]
    return model, accelerator.prepare_optimizer(optimizer)


def train_sharded(recipe, folder, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "prepare", shard)
        patch.setattr("test_processes.save_file", lambda *_: None)  # of a state that is in shards
        train_layout(recipe, folder, [[5], [3]], overrides)


def test_sharded_processes_take_the_steps_of_one(tmp_path, tiny_recipe):
    one, two, errors = tmp_path / "one", tmp_path / "two", tmp_path / "errors"
    join(fork(train_layout, tiny_recipe, one, JOINED, errors=errors), errors)
    join(fork(train_sharded, tiny_recipe, two, errors=errors, ranks=2), errors)
    mine, theirs = (weights(folder / "run" / "final") for folder in (two, one))
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.endswith("qkv.bias"):
            mine[name], value = query_and_value(mine[name]), query_and_value(value)
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-5, msg=name)
    newest = open_checkpoint(list_checkpoints(two / "run" / "checkpoints")[-1])
    assert {name: value.shape for name, value in newest.weights().items()} == {n: v.shape for n, v in theirs.items()}

    three, before = tmp_path / "three", list_checkpoints(two / "run" / "checkpoints")[-2]
    join(fork(train_sharded, tiny_recipe, three, f"resume={before}", errors=errors, ranks=2), errors)
    assert not differing(weights(three / "run" / "final"), weights(two / "run" / "final"))
