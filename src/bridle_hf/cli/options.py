"""Options that several commands share: the recipe with its overrides, and the data to read."""

import argparse
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import yaml

from ..clip_features_bridle import choose_layers
from ..configuration_bridle import BridleConfig
from ..data.arguments import DataArguments
from ..data.modalities import MODALITIES
from ..recipe_reader import read_yaml

logger = logging.getLogger(__name__)

OVERRIDE = re.compile(r"[\w.]+=")


def add_recipe_options(parser: argparse.ArgumentParser, overrides: str) -> None:
    """Add the options of commands that run a recipe, for `parse_recipe_options`.

    Args:
        parser: the command's.
        overrides: the help of `key=value`.
    """
    parser.add_argument("--recipe", help="name of a packaged recipe, such as audio/demo, or path of a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="RECIPE key=value", help=f"the recipe, unless --recipe names it; {overrides}"
    )


def parse_recipe_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line whose recipe is either `--recipe` or the first word that is no `key=value`.

    Returns:
        What `argparse` found, with `recipe` (`str`) and `overrides` (list of `key=value`).
    """
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        keys = "; settings are key=value: data.dataset=DIR output_dir=DIR, see docs/recipes.md"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{keys}")
    if given.recipe is None:
        words = [word for word in given.overrides if not OVERRIDE.match(word)]
        if not words:
            parser.error("the recipe is missing; give the name of a packaged one, such as audio/demo, or a path")
        given.recipe = words[0]
        given.overrides.remove(words[0])
    return given


def add_data_options(parser: argparse.ArgumentParser, dataset: str = "folder, file or Hub id of a dataset") -> None:
    """Add the options that `given_data` reads.

    Args:
        parser: the command's.
        dataset: the help of `--dataset`.
    """
    parser.add_argument("--dataset", required=True, help=dataset)
    parser.add_argument("--files", help="pattern of the files to read, such as '**/*.flac', all as split train")
    parser.add_argument("--split", default="train")
    parser.add_argument("--input-column", help="by default the first column of the model's modality")
    parser.add_argument("--exclude", type=mapping, default={}, help="column: values to leave out, as '{fold: [1, 2]}'")


def add_max_bad_share(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that end where many clips cannot be used."""
    parser.add_argument(
        "--max-bad-share", type=number(float, 0, 1), default=0.05, help="of the clips that cannot be used; more end it"
    )


def number(kind: type[int] | type[float], low: float, high: float | None = None) -> Callable[[str], int | float]:
    """The `type` of an option that takes a number from `low` on, up to `high` if given."""
    takes = f"a {'whole ' if kind is int else ''}number of at least {low}" + (f" and at most {high}" if high else "")

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= (math.inf if high is None else high):
            raise argparse.ArgumentTypeError(f"{text!r}; it takes {takes}")
        return value

    return parse


def layer(text: str) -> int | str:
    """The `type` of `--layers`: a number, or "all".

    Raises:
        ValueError: it is something else.
    """
    return text if text == "all" else int(text)


def add_layers(parser: argparse.ArgumentParser, mixes: Sequence[str], default: str) -> None:
    """Add `--layers` and `--mix`, which `given_layers` reads.

    Args:
        parser: the command's.
        mixes: what `--mix` takes.
        default: what is done with several layers without it.
    """
    of_layers = "1..depth, 0 for the patch embeddings, or all; the final output by default"
    parser.add_argument("--layers", "--layer", nargs="+", type=layer, metavar="LAYER", help=of_layers)
    parser.add_argument("--mix", choices=mixes, help=f"of several layers; {default}")


def check_mix(given: Any) -> None:
    """Raise a `ValueError` for layers or a mix that are none, without looking at the model."""
    layers = given.layers or []
    if "all" in layers and len(layers) > 1:
        raise ValueError("--layers has all beside numbers; it takes one or the other.")
    if len(set(layers)) < len(layers):
        raise ValueError(f"--layers is {' '.join(map(str, layers))}; it takes each layer once.")
    if given.mix and len(layers) < 2 and "all" not in layers:
        raise ValueError(f"--mix is {given.mix!r}; it takes several --layers.")


def given_layers(given: Any, config: BridleConfig) -> tuple[int | None, ...]:
    """The layers of a model that are asked for; None is its final output.

    Raises:
        ValueError: the model lacks one.
    """
    return choose_layers(config, "all" if given.layers == ["all"] else given.layers)


def given_window(given: Any, processor: Any, config: BridleConfig) -> int | None:
    """The frames of `--window-seconds`, whole patches of the model; None where it is not given.

    Raises:
        ValueError: it is given for pictures, or for videos, whose frames have no fixed distance.
    """
    if given.window_seconds is None:
        return None
    seconds, unit = MODALITIES[config.modality].seconds_per_patch(config, processor), config.patch_size[0]
    if seconds is None:
        raise ValueError(
            f"--window-seconds is given; the model takes {config.modality} data, which has no such windows."
        )
    patches = max(1, round(given.window_seconds / seconds))
    if not math.isclose(patches * seconds, given.window_seconds):
        logger.info("windows are %.4g s long, %d whole patches of %.4g s", patches * seconds, patches, seconds)
    return patches * unit


def add_pad_short(parser: argparse.ArgumentParser) -> None:
    """Add `--pad-short`, which `given_data` and `padded_short` read."""
    parser.add_argument("--pad-short", action="store_true", help="take sounds shorter than a patch, too, padded")


def padded_short(given: Any, model: BridleConfig | str) -> dict[str, bool]:
    """Settings of the processor of a model, or of its folder, that follow from `--pad-short`.

    Raises:
        ValueError: it is given for pictures or videos.
    """
    if not given.pad_short:
        return {}
    config = BridleConfig.from_pretrained(model) if isinstance(model, str) else model
    if MODALITIES[config.modality].waveform is None:
        raise ValueError(f"--pad-short is given; the model takes {config.modality} data, none of it too short.")
    return {"pad_short": True}


def mapping(text: str) -> dict:
    """Parse a YAML mapping of columns to values; for the `type` of an argparse option."""
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}; it takes a mapping such as '{{fold: [1, 2]}}'")
    return value


def given_data(given: Any, **more) -> DataArguments:
    """The `DataArguments` of a parsed command line.

    Args:
        given: what `argparse` found; its options that are fields of `DataArguments` count.
        more: further fields.
    """
    named = {field.name: getattr(given, field.name) for field in fields(DataArguments) if hasattr(given, field.name)}
    if getattr(given, "pad_short", False):
        named["min_seconds"] = 0.0
    return DataArguments(**named, **more)
