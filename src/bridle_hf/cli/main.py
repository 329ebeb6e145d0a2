"""The `bridle` command: runs the module of a subcommand with the remaining arguments."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Command -> its module, which is imported when it is called, and the line of `bridle --help`.
COMMANDS = {
    "pretrain": (".pretrain", "run a recipe's phases of pretraining"),
    "finetune": (".finetune", "fine-tune a pretrained encoder on a labelled set"),
    "probe": (".probe", "linear probe of a frozen encoder, or of a baseline"),
    "features": (".features", "embed a dataset: one parquet file of features"),
    "tokens": (".tokens", "tokenize a dataset: one parquet file of codes"),
    "report": (".report", "HTML page about the codebooks of a pretrained model"),
    "study": (".study", "pretrain over seeds, probe, fine-tune: one table"),
    "measure": (".measure", "mean and standard deviation of a dataset's log-mel features"),
    "replay": (".replay", "repeat a step that held NaN or inf"),
    "convert": ("..hub.convert", "reference checkpoints into folders of from_pretrained, and back"),
    "release": ("..hub.release", "push a model to the Hub, with card, code and a check"),
    "autoencoding": (".autoencoding", "discrete autoencoding with each quantizer of a recipe"),
    "wav2vec2": (".wav2vec2", "wav2vec 2.0 pretraining with each quantizer of a recipe"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command.

    Args:
        arguments: the command and its own arguments; `sys.argv` by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "bridle",
        usage="bridle [-h] COMMAND ...",
        description="Self-supervised pretraining with residual quantization. `bridle COMMAND --help` lists options.",
        epilog="\n".join(["commands:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    command = parser.parse_args(words[:1]).command  # the rest is for the command's own parser
    import_module(COMMANDS[command][0], __package__).main(words[1:], f"bridle {command}")
