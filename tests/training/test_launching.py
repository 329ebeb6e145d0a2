"""The configs in examples/accelerate: what the launcher makes of each, and a run that it starts."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from launching import CONFIGS, arguments_of, environment_of
from runs import records, unused_port

from bridle_hf import BridleForPreTraining
from bridle_hf.training import load_recipe
from bridle_hf.training.run import check_processes

# processes, of them on this machine, and whether parameters are sharded
EXPECTED = {
    "one_gpu.yaml": (1, 1, False),
    "four_gpus.yaml": (4, 4, False),
    "eight_gpus.yaml": (8, 8, False),
    "fsdp2.yaml": (8, 8, True),
    "zero2.yaml": (8, 8, True),
    "two_nodes.yaml": (16, 8, False),
}


def test_every_config_is_listed():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_launcher_takes_every_key(name):
    processes, here, sharded = EXPECTED[name]
    arguments = arguments_of(name)
    assert arguments.num_processes == processes and arguments.num_processes // arguments.num_machines == here
    assert bool(arguments.use_fsdp) is sharded and bool(arguments.multi_gpu) is (processes > 1 and not sharded)
    assert f"examples/accelerate/{name}" in (CONFIGS / name).read_text()  # the command at its head names it
    assert "mixed_precision" not in yaml.safe_load((CONFIGS / name).read_text())  # the recipe says that


def test_two_machines_find_each_other():
    first, second = (
        arguments_of("two_nodes.yaml", "--machine_rank", rank, "--main_process_ip", "10.0.0.1") for rank in "01"
    )
    assert (first.machine_rank, second.machine_rank) == (0, 1)
    assert first.main_process_ip == second.main_process_ip == "10.0.0.1"
    assert first.main_process_port == second.main_process_port == 29500
    assert first.num_machines == 2 and first.rdzv_backend == "static"


@pytest.mark.parametrize(("name", "reshard"), [("fsdp2.yaml", True), ("zero2.yaml", False)])
def test_sharding_configs_name_layers_that_every_model_has(name, reshard, monkeypatch, tiny_recipe):
    for variable, value in environment_of(name).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is reshard
    assert not plugin.cpu_ram_efficient_loading
    for decoder in ("plain", "swin"):
        model = BridleForPreTraining(
            load_recipe(tiny_recipe, ["output_dir=x", f"model.decoder_type={decoder}"]).config()
        )
        plugin.set_auto_wrap_policy(model)


def test_the_slurm_script_gives_each_task_its_place(tmp_path):
    """With stand-ins for SLURM's commands: srun starts its command as the second task on the second node."""
    asked = tmp_path / "asked"
    for name, body in {
        "scontrol": f'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> {asked}; fi',
        "srun": 'shift; SLURM_PROCID=9 SLURM_LOCALID=1 "$@"',
        "python": f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >> {asked}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "7"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(CONFIGS / "slurm.sh"), "some recipe.yaml", f"output_dir={tmp_path / 'run'}", "seed=1"]
    subprocess.run(command, env=environment, check=True)
    script = f"examples/pretrain.py --recipe some recipe.yaml output_dir={tmp_path / 'run'} seed=1"
    assert asked.read_text().splitlines() == [f"9 1 16 8 node1 29500 {script}", "requeue 7"]
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "config.json").touch()
    subprocess.run(command, env=environment, check=True)
    assert asked.read_text().count("requeue") == 1  # the run is finished
    refused = subprocess.run([*command[:3], "seed=1"], env=environment, capture_output=True, text=True)
    assert refused.returncode != 0 and "give output_dir=" in refused.stderr
    assert asked.read_text().count("requeue") == 1


def test_deepspeed_is_refused():
    with pytest.raises(ValueError, match="DEEPSPEED.*examples/accelerate/zero2.yaml"):
        check_processes(SimpleNamespace(num_processes=1, distributed_type=DistributedType.DEEPSPEED))


def launcher(name: str) -> tuple[list[str], int]:
    """The command at the head of a config, or the guide's, on at most two CPU processes; and how many these are."""
    port = str(unused_port())
    if name == "guide.md":
        return ["-m", "torch.distributed.run", "--master_port", port, "--nproc_per_node", "2"], 2
    processes = min(EXPECTED[name][0], 2)
    sizes = ["--num_processes", str(processes), "--num_machines", "1", "--main_process_port", port]
    return ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / name), *sizes], processes


def test_the_guide_starts_two_processes(repository):
    command = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/pretrain.py --recipe"
    assert command in " ".join((repository / "docs" / "guide.md").read_text().split())


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts on a machine without an accelerator")
@pytest.mark.parametrize("name", [*EXPECTED, "guide.md"])
def test_a_run_is_launched(tmp_path, tiny_recipe, repository, name):
    """On CPUs Accelerate does not shard: all of them are DDP here, or one process."""
    command, processes = launcher(name)
    script = [str(repository / "examples" / "pretrain.py"), "--recipe", str(tiny_recipe), f"output_dir={tmp_path}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *command, *script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(records(tmp_path)) == 12
    assert len(list((tmp_path / "checkpoints" / "phase-02-step-00000004").glob("rank-*.json"))) == processes
