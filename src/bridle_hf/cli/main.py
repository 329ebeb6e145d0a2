"""The `bridle` command: runs the module of a subcommand with the remaining arguments.

It imports next to nothing, so that `bridle --help` takes no time and works without the extras.
"""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..extras import cure
from ..files import WriteError, end_with, is_of_a_full_disk

# Command -> its module, which is imported when it is called, and the line of `bridle --help`.
COMMANDS = {
    "check": (".check", "read a dataset as pretraining would, and say what is in it"),
    "pretrain": (".pretrain", "run a recipe's phases of pretraining"),
    "finetune": (".finetune", "fine-tune a pretrained encoder on a labelled set"),
    "probe": (".probe", "probe of a frozen encoder, or of a baseline"),
    "compare": (".compare", "two probes clip by clip, or what one of them gets wrong"),
    "classify": (".classify", "classify a dataset: one csv table of labels and scores"),
    "features": (".features", "embed a dataset: one parquet file of features"),
    "tokens": (".tokens", "tokenize a dataset: one parquet file of codes"),
    "report": (".report", "HTML page about the codebooks of a pretrained model"),
    "study": (".study", "pretrain over seeds, probe, fine-tune: one table"),
    "measure": (".measure", "mean and standard deviation of a dataset, for a recipe's processor"),
    "replay": (".replay", "repeat a step that held NaN or inf"),
    "convert": ("..hub.convert", "reference checkpoints into folders of from_pretrained, and back"),
    "export": (".export", "write a model as an ONNX file"),
    "release": ("..hub.release", "push a model to the Hub, with card, code and a check"),
    "autoencoding": (".autoencoding", "discrete autoencoding with each quantizer of a recipe"),
    "wav2vec2": (".wav2vec2", "wav2vec 2.0 pretraining with each quantizer of a recipe"),
}


GOES_ON = "; the same command goes on from what is written"
OF_ROWS = f"{GOES_ON}, whole recordings every 20 seconds"  # `row_files.SECONDS_PER_PART`
RESUMED = dict.fromkeys(("finetune", "study", "autoencoding", "wav2vec2"), GOES_ON)  # `pretrain` ends with a checkpoint
RESUMED |= dict.fromkeys(("features", "tokens"), OF_ROWS)


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
    if arguments is None and not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds between two lines of a progress bar in a log file
    try:
        import_module("..public", __package__)  # transformers' Auto classes know ours from here on
        import_module(COMMANDS[command][0], __package__).main(words[1:], f"bridle {command}")
    except KeyboardInterrupt:
        parser.exit(130, f"\nbridle {command}: stopped{RESUMED.get(command, '')}\n")
    except WriteError as error:  # it says how to go on
        parser.exit(1, f"\nbridle {command}: error: {error}\n")
    except ModuleNotFoundError as error:
        missing = cure(error, f"bridle {command}")
        if missing is None:
            raise
        missing += "\n"
        if {"-h", "--help"} & set(words):
            sys.stdout.write(f"{_explained(command).format_help()}\n{missing}")
        else:
            parser.exit(2, f"bridle {command}: error: {missing}")
    except Exception as error:
        if not is_of_a_full_disk(error):
            raise
        parser.prog = f"bridle {command}"
        end_with(parser, error)


def _explained(command: str) -> argparse.ArgumentParser:
    """The options of a command as its source says them, without importing it: what is no plain value there is left
    out, such as choices."""
    tree = _source(COMMANDS[command][0])
    parser = argparse.ArgumentParser(
        f"bridle {command}",
        description=ast.get_docstring(tree),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for call in _options(tree):
        plain = {key.arg: key.value.value for key in call.keywords if isinstance(key.value, ast.Constant)}
        parser.add_argument(*(name.value for name in call.args), **plain)
    return parser


def _options(tree: ast.AST) -> list[ast.Call]:
    """The calls of `add_argument` in a module or function, those in functions of the modules beside it first."""
    shared, own = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and find_spec(f".{node.module}", __package__):
            names = {name.name for name in node.names}
            beside = _source(f".{node.module}")
            functions = [each for each in beside.body if isinstance(each, ast.FunctionDef) and each.name in names]
            for function in functions:
                # a function that takes its own options from another module, as that of the tables of quantizers does
                shared += _options(ast.Module([each for each in beside.body if isinstance(each, ast.ImportFrom)], []))
                shared += _options(function)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            own.append(node)
    unique = {call.args[0].value: call for call in shared + own}
    return list(unique.values())


def _source(module: str) -> ast.Module:
    return ast.parse(Path(find_spec(module, __package__).origin).read_text(encoding="utf-8"))
