"""Check a dataset before pretraining: read it as a run would, and train nothing.

    bridle check my_sounds
    bridle check my_sounds --recipe audio/own_base data.files='**/*.flac'
    bridle check my_sounds --output clips.csv

It says how many clips there are, how long and of which rates, channels and sizes, what is left out and why, which
labels and folds were found, which clips are the same, how many windows the recipe makes of it and how often it would
see each clip. Without --recipe it is own_small of the modality that the dataset holds. The exit status is 1 where the
recipe could not train. --output receives a table of all clips, with the `problem` of those that are left out.
"""

import argparse
import logging
import sys
from collections import Counter

import numpy as np

from ..clip_features_bridle import window_starts
from ..configuration_bridle import BridleConfig
from ..data import source
from ..data.arguments import DataArguments
from ..data.bad_share import BadShareError, check_bad_shards, check_bad_share
from ..data.listing import name_some
from ..data.media import UnusableDataError
from ..data.modalities import MODALITIES, build_processor
from ..data.source import is_shard
from ..data.survey import Survey, survey
from ..evaluation.classes import csv_text, write_text
from ..training import PretrainRecipe, load_recipe
from .checks import check_data, check_output, modalities_of_files, setting_up
from .process import log_progress

BAR, ROWS, FEW, OFTEN = 40, 12, 200, 500  # width and number of bars; windows, and draws, that are few or many
EDGES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)  # seconds, of the bars
FACTS = ("seconds", "rate", "channels", "height", "width")  # of the table
COLUMN = 14  # width of the names of lines


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET", help="folder or Hub id")
    parser.add_argument("--recipe", help="of pretraining: name of a packaged one, such as audio/own_base, or a path")
    parser.add_argument("--output", help="csv file of all clips")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, such as data.split=dev")
    given = parser.parse_intermixed_args(arguments)
    log_progress()
    with setting_up(parser):
        if given.output:
            check_output(given.output, given.dataset, ".csv")
        words = [f"data.dataset={given.dataset}", *given.overrides]
        name = given.recipe or f"{modality_of_files(given.dataset)}/own_small"
        recipe = load_recipe(name, words)
        processor = recipe.build_processor()
        check_data(recipe.data, processor, "DATASET")
    found, refused = None, ""
    skips = logging.getLogger(source.__name__)
    level = skips.level
    skips.setLevel(logging.ERROR)  # what is skipped stands in the lines below
    try:
        found = survey(recipe.data, processor)
        judge(found, recipe.data)
    except UnusableDataError as error:
        refused = " ".join(str(error).split())
    finally:
        skips.setLevel(level)
    lines = [] if found is None else [*described(found), _line("recipe", name), *seen_by(found, recipe, processor)]
    if given.output and found is not None:
        write_text(given.output, csv_text(table(found)))
    verdict = f"the recipe could not train on it: {refused}" if refused else "the recipe can train on it"
    sys.stdout.write("\n".join([*lines, _line("verdict", verdict)]) + "\n")
    if refused:
        parser.exit(1)


def modality_of_files(dataset: str) -> str:
    """The modality of which a folder holds most files, or the only one that opens a dataset.

    Raises:
        ValueError: there is none, or several.
    """
    best = modalities_of_files(dataset)
    if not best:
        best, reason = _opening(dataset)
        if not best:
            raise ValueError(
                f"{reason.rstrip('.')}; name the recipe that is to read it, --recipe video/own_small, say."
            )
    if len(best) > 1:
        raise ValueError(
            f"DATASET is {dataset!r}, which {' and '.join(best)} recipes can read; it takes --recipe "
            f"{' or '.join(f'{name}/own_small' for name in best)}."
        )
    return best[0]


def _opening(dataset: str) -> tuple[list[str], str]:
    """The modalities of which the dataset has a column, and why the last one has none."""
    found, reason = [], ""
    for name in MODALITIES:
        try:
            check_data(DataArguments(dataset), build_processor(BridleConfig(modality=name)), "DATASET")
        except (ValueError, ModuleNotFoundError) as error:
            if isinstance(error.__cause__, OSError):  # there is no such dataset
                raise
            reason = str(error)
        else:
            found.append(name)
    return found, reason


def judge(found: Survey, data: DataArguments) -> None:
    """Raise the `UnusableDataError` that training would raise of what cannot be read."""
    shards = {mark: why for mark, why in found.skipped.items() if is_shard(mark)}
    if shards:
        check_bad_shards(len(shards), found.shards, data.max_bad_share, list(shards.values())[-1])
    if found.bad:
        name, reason = list(found.bad.items())[-1]
        try:
            check_bad_share(len(found.bad), found.read, data.max_bad_share, name, reason, found.hint)
        except BadShareError as error:
            raise UnusableDataError(str(error)) from error


def described(found: Survey) -> list[str]:
    """Lines about the clips."""
    lines = [_line("dataset", found.description), _line("clips", f"{len(found.facts)} can be used, of {found.read}")]
    if found.excluded:
        lines.append(_line("excluded", f"{found.excluded}, by data.exclude"))
    seconds = found.of("seconds")
    if len(seconds):
        lines.append(_line("in all", f"{seconds.sum() / 3600:.2f} hours"))
        lines.append(_line("lengths", f"{_spread(seconds)} s"))
        lines += histogram(seconds)
    rates = found.of("rate")
    if len(rates):
        lines.append(_line("rates", _counted(rates, "{:g} per second")))
    if len(found.of("channels")):
        lines.append(_line("channels", _counted(found.of("channels"), "{:g}")))
    if len(found.of("height")):
        sizes = np.stack([found.of("width"), found.of("height")], axis=1).tolist()
        lines.append(_line("sizes", _counted([f"{w:g} x {h:g}" for w, h in sizes], "{}")))
        lines.append(_line("shorter sides", f"{_spread(np.minimum(found.of('height'), found.of('width')))} pixels"))
    for column, counts in found.columns.items():
        each = name_some([f"{value} ({count})" for value, count in counts.most_common()], ROWS)
        lines.append(_line(column, f"{len(counts)} values: {each}"))
    lines += [_line(column, f"fine-tuning refuses it: {why}") for column, why in found.refused.items()]
    if found.why_no_label and "label" not in found.columns:
        lines.append(_line("label", f"none: {found.why_no_label}"))
    if found.duplicates:
        copies = sum(map(len, found.duplicates)) - len(found.duplicates)
        names = name_some([" = ".join(names[:2]) for names in found.duplicates], 3)
        lines.append(_line("duplicates", f"{copies} clips are copies of others: {names}"))
    reasons = Counter(reason.split(":")[0] for reason in found.skipped.values())
    for reason, count in reasons.most_common(ROWS):
        names = [name for name, why in found.skipped.items() if why.split(":")[0] == reason]
        lines.append(_line("left out", f"{count}, {reason}: {name_some(names, 3)}"))
    return lines


def table(found: Survey) -> list[list]:
    """A row for each clip, those that are left out last; the first row names the columns."""
    known = [fact for fact in FACTS if len(found.of(fact))]
    copies = {name: names[0] for names in found.duplicates for name in names[1:]}
    rows = [[each["name"], *(each.get(fact) for fact in known), copies.get(each["name"]), None] for each in found.facts]
    rows += [[name, *[None] * len(known), None, reason] for name, reason in found.skipped.items()]
    return [["name", *known, "copy_of", "problem"], *rows]


def histogram(seconds: np.ndarray) -> list[str]:
    """A bar for each range of lengths between the shortest and the longest."""
    counts = np.histogram(seconds, [0, *EDGES, np.inf])[0]
    filled = np.flatnonzero(counts)
    names = [f"< {EDGES[0]:g} s", *(f"{low:g} to {high:g} s" for low, high in zip(EDGES, EDGES[1:], strict=False))]
    names.append(f"> {EDGES[-1]:g} s")
    return [
        _line("", f"{names[row]:>14} {'#' * -(-BAR * int(counts[row]) // int(counts.max()))} {counts[row]}")
        for row in range(filled[0], filled[-1] + 1)
    ]


def seen_by(found: Survey, recipe: PretrainRecipe, processor) -> list[str]:
    """Lines about what a recipe makes of the clips."""
    training, config = recipe.training, recipe.config()
    modality, step = MODALITIES[config.modality], training.batch_size * training.gradient_accumulation_steps
    steps = sum(phase.steps for phase in recipe.build_tasks())
    window, windows, size = modality.window(recipe.data, processor), int(found.of("windows").sum()), ""
    if window is not None:
        frames = found.of("frames").tolist()
        windows = sum(len(window_starts(length, window, 0.0, config.patch_size[0])) for length in frames)
        size = f" of {window * modality.hop_seconds(processor):.2f} s"
    times = steps * step / len(found.facts)  # training draws one window of a clip at a time
    passes = f"{steps} steps of {step} draw each clip {times:.1f} times"
    beside = ", side by side" if window is not None or windows > len(found.facts) else ""
    lines = [_line("windows", f"{windows}{size}{beside}"), _line("the recipe", passes)]
    remarks = []
    if len(found.facts) < step:
        remarks.append(f"a step draws {step} clips, more than there are: some come twice into it")
    if times > OFTEN:
        remarks.append(f"{times:.0f} draws of a clip are many; a section evaluate shows when features stop to gain")
    if windows < FEW:
        remarks.append("below some hundred windows little is learned; begin with weights that there are (start_from)")
    if window is not None and (share := np.mean(found.of("frames") < window / 2)):
        remarks.append(f"{100 * share:.0f} % of the clips fill less than half of a window; the rest is padding")
    rate = getattr(processor, "sampling_rate", None)
    if rate and (share := np.mean(found.of("rate") < rate)):
        remarks.append(f"{100 * share:.0f} % of the clips have a lower rate than the {rate} Hz of the processor")
    if rate and processor.channel is None and (share := np.mean(found.of("channels") > processor.num_channels)):
        remarks.append(f"{100 * share:.0f} % of the clips have several channels, which are averaged")
    return lines + [_line("remark", each) for each in remarks]


def _spread(values: np.ndarray) -> str:
    return f"{values.min():.4g} to {values.max():.4g}, median {np.median(values):.4g}"


def _counted(values, form: str) -> str:
    return name_some([f"{form.format(value)} ({count})" for value, count in Counter(values).most_common()], ROWS)


def _line(name: str, text: str) -> str:
    return f"{name:<{COLUMN}}{text}"
