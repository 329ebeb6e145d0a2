"""FSDP2: two processes that each hold a part of the parameters take the steps of one, and their checkpoints are whole
and go on bit for bit.

Accelerate shards on accelerators only. Here it is told that it may on CPUs too; what it then does, as
examples/accelerate/fsdp2.yaml says, is its own.
"""

import os
from math import isfinite

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from launching import environment_of
from runs import differing, fork, join, records, weights
from test_processes import JOINED, query_and_value, train_layout
from torch.distributed.tensor import DTensor

from bridle_hf.training.checkpoints import list_checkpoints, open_checkpoint


def train_sharded(recipe, folder, config, *overrides):
    prepare = Accelerator.prepare

    def shard(accelerator, model, optimizer):
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin = FullyShardedDataParallelPlugin()  # of the environment
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        assert accelerator.is_fsdp2
        model, optimizer = prepare(accelerator, model, optimizer)
        parameters = dict(model.named_parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
        return model, optimizer

    os.environ.update({name: value for name, value in environment_of(config).items() if "FSDP" in name})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "prepare", shard)
        patch.setattr("test_processes.save_file", lambda *_: None)  # of a state that is in shards
        train_layout(recipe, folder, [[5], [3]], overrides)


# Muon orthogonalises in bfloat16.
@pytest.mark.parametrize(
    ("optimizer", "tolerance"), [("adamw", 1e-5), pytest.param("muon", 1e-3, marks=pytest.mark.slow)]
)
def test_sharded_processes_take_the_steps_of_one(optimizer, tolerance, tmp_path, tiny_recipe):
    one, two, errors = tmp_path / "one", tmp_path / "two", tmp_path / "errors"
    chosen = f"training.optimizer={optimizer}"
    join(fork(train_layout, tiny_recipe, one, JOINED, [chosen], errors=errors), errors)
    join(fork(train_sharded, tiny_recipe, two, "fsdp2.yaml", chosen, errors=errors, ranks=2), errors)
    mine, theirs = (weights(folder / "run" / "final") for folder in (two, one))
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.endswith("qkv.bias"):
            mine[name], value = query_and_value(mine[name]), query_and_value(value)
        torch.testing.assert_close(mine[name], value, rtol=0, atol=tolerance, msg=name)
    newest = open_checkpoint(list_checkpoints(two / "run" / "checkpoints")[-1])
    assert {name: value.shape for name, value in newest.weights().items()} == {n: v.shape for n, v in theirs.items()}

    three, before = tmp_path / "three", list_checkpoints(two / "run" / "checkpoints")[-2]
    join(
        fork(train_sharded, tiny_recipe, three, "fsdp2.yaml", f"resume={before}", chosen, errors=errors, ranks=2),
        errors,
    )
    assert not differing(weights(three / "run" / "final"), weights(two / "run" / "final"))


@pytest.mark.parametrize("config", ["fsdp2.yaml", "zero2.yaml"])
@pytest.mark.slow
def test_configs_shard_in_mixed_precision(tmp_path, tiny_recipe, config):
    """Swin layers, which are no unit of their own, and parameters that stay whole after the forward pass."""
    errors = tmp_path / "errors"
    overrides = (
        "model.decoder_type=swin",
        "training.mixed_precision=bf16",
        "phases=[{kind: encoder, steps: 2}, {kind: tokenizer, steps: 2}, {kind: joint, steps: 2}]",
    )
    join(fork(train_sharded, tiny_recipe, tmp_path, config, *overrides, errors=errors, ranks=2), errors)
    losses = [record["loss"] for record in records(tmp_path / "run")]
    assert len(losses) == 6 and all(map(isfinite, losses))
    final = weights(tmp_path / "run" / "final")
    assert {value.dtype for value in final.values()} == {torch.float32}
