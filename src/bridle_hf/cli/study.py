"""Study of a recipe in one table: pretraining over seeds, linear probes of the frozen encoders, fine-tuning.

    bridle study audio/demo
    bridle study audio/own_small data.dataset=my_labelled --finetune audio/own_finetune
    bridle study audio/esc10_tiny --label-column target --seeds 0 1 2 --finetune audio/esc10_finetune
    bridle study image/cifar10_tiny --test-split test
    bridle study audio/demo --inductive      # one pretraining per fold, without the clips of that fold

Beside each pretrained encoder stand the same architecture with random weights and baselines without an encoder, all
under one protocol: frozen features, logistic regression, folds as given or one test split, C searched inside the
training part.
Then the tokens of the first run are measured, at the cold start and trained. `output_dir` receives a folder per run,
results.json, results.md and report.html; an interrupted study goes on where it was. The tables are printed at the end.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..clip_features_bridle import poolings_of
from ..configuration_bridle import BridleConfig
from ..data import LabelError, UnusableDataError, load_examples
from ..evaluation.baselines import baseline_features
from ..evaluation.cross_validation import check_probe, outer_folds
from ..evaluation.features import encoder_features
from ..evaluation.probe import linear_probe
from ..evaluation.report import codebook_report
from ..evaluation.tables import markdown
from ..files import FolderError, FolderLock
from ..finetuning.recipe import FinetuneRecipe
from ..modeling_bridle import BridleForPreTraining, BridleModel
from ..training import load_recipe
from ..training.auto import STATISTICS
from ..training.locking import sole_writer
from ..training.metrics import read_metrics
from .checks import check_data, check_recipe, has_column, setting_up
from .options import OVERRIDE, add_recipe_options, number, parse_recipe_options
from .process import log_progress

FOLD = "fold"  # the column that is taken for folds where it is there


def parse_arguments(arguments, prog):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_options(parser, "of pretraining, such as training.batch_size=8")
    parser.add_argument("--label-column", default="label", help="of the class of each clip; label without")
    parser.add_argument(
        "--fold-column", help="without it the column fold; five stratified folds are drawn where there is none"
    )
    parser.add_argument("--test-split", help="train on the recipe's split and test on this one, instead of on folds")
    parser.add_argument("--seeds", nargs="+", type=number(int, 0), default=[0])
    parser.add_argument("--inductive", action="store_true", help="pretrain for each fold without its clips")
    parser.add_argument("--finetune", metavar="RECIPE", help="of `bridle finetune`; also without pretraining")
    parser.add_argument("--jobs", type=number(int, 1), default=1, help="runs at a time; they share the cores")
    # `--seeds 0 1 key=value` would hand key=value to --seeds, which takes all words that follow.
    words = sys.argv[1:] if arguments is None else arguments
    overrides = [word for word in words if OVERRIDE.match(word)]
    given = parse_recipe_options(parser, [word for word in words if word not in overrides])
    given.overrides += overrides
    return parser, given


def main(arguments=None, prog=None):
    parser, given = parse_arguments(arguments, prog)
    log_progress()
    with setting_up(parser):
        recipe = load_recipe(given.recipe, given.overrides)
        check_recipe(recipe)
        recipe.data = recipe.open_data()
        if given.fold_column is None and has_column(recipe.data, recipe.build_processor(), FOLD):
            given.fold_column = FOLD
        if given.inductive and not given.fold_column:
            raise ValueError("--inductive is given; it takes a --fold-column, since pretraining leaves out each fold.")
        tested = {"test_split": given.test_split} if given.test_split else {"fold_column": given.fold_column}
        check_data(replace(recipe.data, label_column=given.label_column, **tested), recipe.build_processor())
        recipe.processor = recipe.measured()  # once for all seeds, and for what is compared with them
        # folds that pretraining does not see are tested all the same; what else it leaves out is not in the study
        recipe.data.exclude.pop(given.fold_column, None)
        data, processor = replace(recipe.data, label_column=given.label_column, **tested), recipe.build_processor()
        for *_, overrides in finetune_commands(given, recipe) if given.finetune else ():
            load_recipe(given.finetune, overrides, FinetuneRecipe)  # it is run last, after hours
    lock = FolderLock(Path(recipe.output_dir) / ".lock")
    with setting_up(parser, (FolderError,)), sole_writer(lock, is_main_process=True):
        try:
            study(parser, given, recipe, data, processor)
        except subprocess.CalledProcessError as error:  # which has said why
            parser.exit(1, f"{parser.prog}: error: bridle {' '.join(error.cmd[3:6])} ended with {error.returncode}\n")


def study(parser, given, recipe, data, processor):
    """Trains what is not trained yet, measures all of it, and writes and prints the tables."""
    folder = Path(recipe.output_dir)
    with setting_up(parser, (LabelError, UnusableDataError)):
        examples = load_examples(data, processor, check=check_probe, for_training=False)
    examples.folds = outer_folds(examples.labels, examples.folds)  # the same ones for all encoders

    runs = list_runs(given, folder, examples.test_folds or np.unique(examples.folds).tolist())
    run_all(given.jobs, [pretrain_command(given, recipe, run) for run in runs], [run["folder"] for run in runs])
    if stopped := [str(run["folder"]) for run in runs if not (run["folder"] / "final").is_dir()]:
        parser.exit(1, f"{', '.join(stopped)} stopped before the end; the same command goes on\n")
    rows = baseline_rows(examples) + encoder_rows(runs, examples)
    if given.finetune:
        rows += finetune_rows(given, recipe)
    summary = summarise(rows)
    tokens = report_page(folder / "report.html", runs[0], examples, summary)
    tables = markdown(summary) + "\n" + markdown(token_rows(tokens))
    (folder / "results.json").write_text(json.dumps({"encoders": rows, "tokens": tokens}, indent=1) + "\n")
    (folder / "results.md").write_text(tables)
    sys.stdout.write(tables)


def list_runs(given, folder, folds):
    """One pretraining per seed, or per seed and fold: folder, the clips it must not see, the folds it is tested on."""
    runs = []
    for seed in given.seeds:
        if given.inductive:
            runs += [{"seed": seed, "folder": folder / f"seed-{seed}-fold-{f}", "test_folds": [f]} for f in folds]
        else:
            runs.append({"seed": seed, "folder": folder / f"seed-{seed}", "test_folds": folds})
    return runs


def pretrain_command(given, recipe, run):
    command = ["pretrain", "--recipe", given.recipe, *given.overrides]
    command += [f"data.dataset={recipe.data.dataset}", f"output_dir={run['folder']}", f"seed={run['seed']}"]
    command += [f"processor.{key}={recipe.processor[key]}" for key in STATISTICS if key in recipe.processor]
    if given.inductive:
        exclude = recipe.data.exclude | {given.fold_column: run["test_folds"]}
        command.append(f"data.exclude={json.dumps(exclude)}")
    return command


def run_all(jobs, commands, folders):
    """Runs commands, `jobs` at a time. One alone shows progress bars; several write to log.txt in their folders."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))

    def run(command, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a") as log:
            output = log if jobs > 1 else None
            environment = os.environ | {"OMP_NUM_THREADS": threads}
            words = [sys.executable, "-m", "bridle_hf.cli", *command]
            subprocess.run(words, check=True, stdout=output, stderr=output, env=environment)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands, folders))


def baseline_rows(examples):
    rows = []
    for name, describe in examples.modality.baselines.items():
        features = baseline_features(examples, describe)
        result = linear_probe(features, examples.labels, examples.folds, test_folds=examples.test_folds)
        rows.append(row(name, "", None, [result]))
    return rows


def encoder_rows(runs, examples):
    """A probe of the random weights and of the encoder after each iteration, for every seed and pooling."""
    results = defaultdict(list)
    for run in runs:
        exported = exported_encoders(run["folder"])
        torch.manual_seed(run["seed"])
        models = {"random weights": BridleModel(BridleConfig.from_pretrained(exported[0]))}
        models |= {f"iteration {number}": BridleModel.from_pretrained(p) for number, p in enumerate(exported, start=1)}
        for name, model in models.items():
            poolings = [name for name in poolings_of(model.config) if name != "cls"]  # which pretraining leaves alone
            features = encoder_features(model, examples, poolings=poolings)
            for pooling in poolings:
                x = features[None, pooling]
                probe = linear_probe(x, examples.labels, examples.folds, test_folds=run["test_folds"])
                results[name, pooling, run["seed"]].append(probe)
    return [row(*key, probes) for key, probes in results.items()]


def exported_encoders(folder):
    """The encoders of a run's iterations, the first iteration first."""
    return sorted(folder.glob("encoder-iter*"), key=lambda path: int(path.name.removeprefix("encoder-iter")))


def row(name, pooling, seed, probes):
    """One line of results.json; the probes of single folds are merged."""
    per_fold = {fold: accuracy for probe in probes for fold, accuracy in probe.per_fold.items()}
    correct = sum(probe.correct.astype(int) for probe in probes)
    accuracy = float(np.mean(list(per_fold.values())))
    return {"encoder": name, "pooling": pooling, "seed": seed, "accuracy": accuracy, "per_fold": per_fold,
            "correct": correct.tolist()}  # fmt: skip


def finetune_commands(given, recipe):
    """Fine-tuning from the last encoder and from random weights, every seed; see `FinetuneRecipe.from_scratch`.

    Returns:
        rows of a name, the seed, the output folder, and the overrides of the recipe.
    """
    scratch = ["from_scratch=true", "training.layer_decay=null"]
    commands = []
    for seed in given.seeds:
        model = f"{recipe.output_dir}/seed-{seed}" + ("-fold-{fold}" if given.inductive else "") + "/final"
        for name, suffix, changes in (("fine-tuned", "", []), ("fine-tuned from random weights", "-scratch", scratch)):
            target = Path(recipe.output_dir) / f"finetune-seed-{seed}{suffix}"
            overrides = [f"model={model}", f"seed={seed}", f"output_dir={target}"]
            overrides += [f"data.dataset={recipe.data.dataset}", f"data.exclude={json.dumps(recipe.data.exclude)}"]
            commands.append((name, seed, target, overrides + changes))
    return commands


def finetune_rows(given, recipe):
    """What `finetune_commands` score, as lines of results.json."""
    rows = []
    for name, seed, target, overrides in finetune_commands(given, recipe):
        run_all(1, [["finetune", "--recipe", given.finetune, *overrides]], [target])  # what is done it passes over
        results = json.loads((target / "results.json").read_text())
        per_fold = dict(zip(map(str, results["folds"]), results["per_fold"], strict=True))
        scores = {score: results[score] for score in ("accuracy", "top_5_accuracy", "mean_average_precision")}
        rows.append({"encoder": name, "pooling": "", "seed": seed, **scores, "per_fold": per_fold})
    return rows


def summarise(rows):
    """Mean over seeds, in percent, with the standard deviation over seeds where there are several."""
    groups = defaultdict(list)
    for each in rows:
        groups[each["encoder"], each["pooling"]].append(100 * each["accuracy"])
    return [
        {
            "encoder": name,
            "pooling": pooling.replace("_", " + "),
            "accuracy %": f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""),
            "seeds": len(values),
        }
        for (name, pooling), values in groups.items()
    ]


def report_page(path, run, examples, summary):
    """Writes report.html about a run and returns the measures of its tokens, at the cold start and trained."""
    return codebook_report(
        path,
        BridleForPreTraining.from_pretrained(run["folder"] / "final"),
        examples,
        name=path.parent.name,
        records=list(read_metrics(run["folder"] / "metrics.jsonl")),
        results=summary,
    )


def token_rows(tokens):
    """Token quality, one line per measure; lists have one entry per codebook."""

    def several(values, form):
        return " ".join(format(value, form) for value in values) if values else "-"

    return [
        {
            "tokenizer": name,
            "bag of codes %": f"{100 * quality['bag_of_codes']:.1f}",
            "energy left": several(quality["residual_energy"], ".2f"),
            "bits of position": several(quality["position_information"], ".2f"),
            "bits shared with code 1": several(quality["first_code_information"][1:], ".2f"),
            "perplexity": several(quality["perplexity"], ".0f"),
            "ECU": several(quality["ecu"], ".2f"),
        }
        for name, quality in tokens.items()
    ]
