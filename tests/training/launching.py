"""What `accelerate launch` makes of the configs in examples/accelerate."""

import argparse
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


def arguments_of(config: str, *flags: str) -> argparse.Namespace:
    """The arguments with which the launcher starts a script under a config."""
    command = ["--config_file", str(CONFIGS / config), *flags, "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def environment_of(config: str, *flags: str) -> dict[str, str]:
    """The environment that the processes of the script find."""
    arguments = arguments_of(config, "--main_process_port", "0", *flags)
    if arguments.num_processes == 1:
        return prepare_simple_launcher_cmd_env(arguments)[1]
    return prepare_multi_gpu_env(arguments)
