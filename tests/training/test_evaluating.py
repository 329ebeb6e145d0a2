"""A run that is evaluated takes the steps of one that is not; what it measures is right; and what cannot be measured is
said before the first step."""

import json
import logging
import random
import re
import shutil
import signal

import numpy as np
import pytest
from datasets import Dataset
from runs import differing, fork, join, records, stop_after, weights
from safetensors.torch import load_file

from bridle_hf import BridleModel
from bridle_hf.cli.checks import check_recipe
from bridle_hf.data import DataArguments, load_examples, load_processor
from bridle_hf.evaluation.features import encoder_features
from bridle_hf.evaluation.measures import knn_accuracy, rank_me, spread
from bridle_hf.evaluation.probe import linear_probe
from bridle_hf.training import RecipeError, evaluating, load_recipe, pretrain
from bridle_hf.training.checkpoints import list_checkpoints
from bridle_hf.training.evaluating import Evaluation, EvaluationError
from bridle_hf.training.metrics import MetricsFile

LABELLED = ("evaluate.label_column=label", "evaluate.fold_column=fold", "evaluate.every_steps=2")
BEST = (*LABELLED, "evaluate.keep_best=rankme")
PLACES = [(0, 0), (0, 2), (0, 4), (0, 5), (2, 2), (2, 4)]


def train_here(recipe, *overrides, stop=None):
    random.seed(0)  # a fork seeds it anew
    pretrain(load_recipe(recipe, overrides), stop=stop)


def measured(folder) -> dict:
    """(phase, step) -> what was measured there, but for the seconds."""
    found = {}
    for record in records(folder):
        if "evaluate" in record:
            place = record["phase_index"], record["step"]
            assert place not in found
            assert record["evaluate"].pop("seconds") > 0
            found[place] = record["evaluate"]
    return found


def steps(folder) -> list[dict]:
    return [record for record in records(folder) if "evaluate" not in record]


def assert_same_run(one, other):
    """Weights, moments, positions, random generators and records of the steps."""
    assert not differing(weights(one / "final"), weights(other / "final"))
    assert steps(one) == steps(other)
    mine, theirs = (list_checkpoints(each / "checkpoints") for each in (one, other))
    assert [path.name for path in mine] == [path.name for path in theirs]
    for here, there in zip(mine, theirs, strict=True):
        assert not differing(*(load_file(each / "optimizer.safetensors") for each in (here, there)))
        for rank in sorted(here.glob("rank-*.json")):
            assert rank.read_text() == (there / rank.name).read_text()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_recipe):
    """(ranks, whether evaluated) -> a run's folder."""
    folders = {}

    def get(ranks, evaluated):
        if (ranks, evaluated) not in folders:
            folder = tmp_path_factory.mktemp("run")
            overrides = (f"output_dir={folder / 'run'}", "training.deadline=60", *(BEST if evaluated else ()))
            join(fork(train_here, tiny_recipe, *overrides, errors=folder / "errors", ranks=ranks), folder / "errors")
            folders[ranks, evaluated] = folder / "run"
        return folders[ranks, evaluated]

    return get


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_evaluated_run_takes_the_same_steps(folders, ranks):
    assert_same_run(folders(ranks, True), folders(ranks, False))
    assert list(measured(folders(ranks, True))) == PLACES


def test_what_is_measured_is_what_the_encoder_gives(folders, sounds):
    """The last encoder of the run, loaded from its folder."""
    folder = folders(1, True)
    data = DataArguments(dataset=str(sounds), label_column="label", fold_column="fold")
    examples = load_examples(data, load_processor(str(folder / "final")), for_training=False)
    features = encoder_features(BridleModel.from_pretrained(folder / "final"), examples)[None, "mean"]
    last = measured(folder)[2, 4]
    assert last["clips"] == 24
    assert last["rankme"] == pytest.approx(rank_me(features), rel=1e-4)
    assert last["std"] == pytest.approx(spread(features), rel=1e-4)
    assert last["knn"] == pytest.approx(knn_accuracy(features, examples.labels, examples.folds))
    probed = linear_probe(features, examples.labels, examples.folds, grid=(0.1,))
    assert last["linear"] == pytest.approx(probed.accuracy)


def test_the_best_encoder_is_kept_and_says_what_it_was_chosen_on(folders, sounds):
    folder = folders(1, True)
    about = json.loads((folder / "best" / "best.json").read_text())
    trained = {place: found for place, found in measured(folder).items() if place[1]}
    best = max(trained, key=lambda place: trained[place]["rankme"])
    assert (about["phase_index"], about["step"]) == best
    assert about["measure"] == "rankme" and about["value"] == trained[best]["rankme"]
    assert about["chosen_on"] == str(sounds) and about["clips"] == 24 and "Test on others" in about["note"]
    examples = load_examples(DataArguments(dataset=str(sounds)), load_processor(str(folder / "best")))
    features = encoder_features(BridleModel.from_pretrained(folder / "best"), examples)[None, "mean"]
    assert rank_me(features) == pytest.approx(about["value"], rel=1e-4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_run_goes_on_without_a_record_twice(folders, tmp_path, tiny_recipe, ranks):
    errors, folder = tmp_path / "errors", tmp_path / "run"
    overrides = (f"output_dir={folder}", "training.deadline=60", *BEST)

    def stopped(recipe, *overrides):
        train_here(recipe, *overrides, stop=stop_after(folder, 7))

    join(fork(stopped, tiny_recipe, *overrides, errors=errors, ranks=ranks), errors)
    assert not (folder / "final").exists()
    join(fork(train_here, tiny_recipe, *overrides, errors=errors, ranks=ranks), errors)
    assert_same_run(folder, folders(ranks, True))
    assert measured(folder) == measured(folders(ranks, True))
    assert (folder / "best" / "best.json").read_text() == (folders(ranks, True) / "best" / "best.json").read_text()


@pytest.mark.parametrize("call", [5, 9])
def test_a_killed_run_takes_its_last_evaluations_again(folders, tmp_path, tiny_recipe, call):
    """Killed as a record is written, some of them later than the checkpoint."""
    errors, folder, append = tmp_path / "errors", tmp_path / "run", MetricsFile.append
    overrides = (f"output_dir={folder}", "training.checkpoint_steps=3", *BEST)

    def killed(recipe, *overrides):
        calls = []

        def counted(*arguments):
            append(*arguments)
            calls.append(arguments)
            if len(calls) == call:
                signal.raise_signal(signal.SIGKILL)

        MetricsFile.append = counted  # in this forked process alone
        train_here(recipe, *overrides)

    join(fork(killed, tiny_recipe, *overrides, errors=errors), errors, exitcode=-signal.SIGKILL)
    join(fork(train_here, tiny_recipe, *overrides, errors=errors), errors)
    assert measured(folder) == measured(folders(1, True))
    assert steps(folder) == steps(folders(1, False))
    assert not differing(weights(folder / "final"), weights(folders(1, False) / "final"))
    assert (folder / "best" / "best.json").read_text() == (folders(1, True) / "best" / "best.json").read_text()


def test_a_best_encoder_of_steps_that_are_taken_anew_is_forgotten(train, tmp_path):
    folder = tmp_path / "run"
    train(folder, *BEST, "phases=[{kind: encoder, steps: 2}]")
    about = folder / "best" / "best.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"step": 3, "value": 1000.0}))
    shutil.rmtree(folder / "final")  # as if it had been stopped there
    train(folder, *BEST, "phases=[{kind: encoder, steps: 4}]")
    assert json.loads(about.read_text())["value"] < 1000


def test_without_labels_nothing_is_asked_of_them(train, tmp_path):
    folder = tmp_path / "run"
    train(folder, "phases=[{kind: encoder, steps: 2}]", "evaluate.max_clips=10", "evaluate.pooling=mean_std")
    found = measured(folder)
    assert list(found) == [(0, 0), (0, 2)]
    assert all(each.keys() == {"rankme", "std", "clips"} and each["clips"] == 10 for each in found.values())
    assert not (folder / "best").exists()


def test_how_often_unless_it_is_said(train, tmp_path, caplog):
    """24 clips and 4 a step: 30 x 24 / 4."""
    with caplog.at_level(logging.INFO):
        train(tmp_path / "run", "phases=[{kind: encoder, steps: 1}]", "evaluate={}")
    assert "evaluating on 24 clips every 180 steps" in caplog.text


def test_a_set_in_hand_is_evaluated_on(tiny_recipe, tmp_path):
    rng = np.random.default_rng(0)
    given = Dataset.from_dict({"audio": [rng.normal(size=12000).tolist() for _ in range(12)], "kind": ["a", "b"] * 6})
    overrides = (f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 1}]", "data.dataset=''")
    settings = ("evaluate.label_column=kind", "evaluate.input_column=audio")
    with_labels = load_recipe(tiny_recipe, [*overrides, *settings])
    pretrain(with_labels, [rng.normal(size=12000) for _ in range(8)], evaluate_dataset=given)
    assert [each["clips"] for each in measured(tmp_path / "run").values()] == [12, 12]


def test_the_set_that_a_recipe_is_given_is_evaluated_on(tiny_recipe, tmp_path, sounds):
    """An `evaluate` section without a dataset uses the folder given to `pretrain`, also with a loaded recipe."""
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(sounds.rglob("*.flac"))[:10]:
        shutil.copy(path, few / path.name)
    overrides = [f"output_dir={tmp_path / 'run'}", "phases=[{kind: encoder, steps: 1}]", "evaluate.every_steps=1"]
    pretrain(load_recipe(tiny_recipe, overrides), few)
    assert [each["clips"] for each in measured(tmp_path / "run").values()] == [10, 10]


def test_an_evaluation_that_fails_is_a_warning(train, tmp_path, monkeypatch, caplog, folders):
    measure = Evaluation._measure

    def fail_once(evaluation, weights):
        if evaluation.taken == 1:
            raise OSError("no space left")
        return measure(evaluation, weights)

    monkeypatch.setattr(Evaluation, "_measure", fail_once)
    train(tmp_path / "run", *BEST)
    assert "the evaluation after step 2 of encoder-iter1 failed: no space left" in caplog.text
    expected = measured(folders(1, True))
    del expected[0, 2]
    assert measured(tmp_path / "run") == expected
    assert steps(tmp_path / "run") == steps(folders(1, False))


def test_evaluations_that_take_long_are_named(train, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(evaluating, "SHARE", 0.0001)
    train(tmp_path / "run", *LABELLED)
    assert len(re.findall("evaluations take .* % of the time", caplog.text)) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.label_column=nosuch"], "^evaluate.label_column: .* has no column 'nosuch'; its columns are"),
        (["evaluate.dataset=no/such/set"], "^evaluate.dataset is 'no/such/set'; there is no such folder here"),
        (["evaluate.split=test"], "^evaluate.dataset is '.*sounds' and evaluate.split 'test': Bad split: test"),
        (["evaluate.exclude={x: [1]}"], "^evaluate.exclude.x: .* has no column 'x'"),
    ],
)
def test_a_set_that_is_not_there_is_named_before_the_run(tiny_recipe, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(load_recipe(tiny_recipe, [f"output_dir={tmp_path / 'run'}", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.every_steps=0"], "`evaluate`: `every_steps` is 0; it takes a whole number of at least 1"),
        (["evaluate.max_clips=1"], "`evaluate`: `max_clips` is 1"),
        (["evaluate.linear_c=0"], "`evaluate`: `linear_c` is 0"),
        (["evaluate.pooling=max"], "`evaluate`: `pooling` is 'max'; it takes one of mean"),
        (["evaluate.keep_best=knn"], "`keep_best` is 'knn', which takes labels; name a `label_column`"),
        (["evaluate.keep_best=loss"], "`evaluate.keep_best` is 'loss'"),
        (["evaluate.max_bad_share=2"], "evaluate.max_bad_share must be between 0 and 1"),
        (["evaluate.every=5"], "unknown key `evaluate.every`"),
    ],
)
def test_settings_outside_their_range(tiny_recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe, ["output_dir=x", *overrides])


@pytest.mark.parametrize(("modality", "pooling"), [("image", "bands"), ("video", "bands_std")])
def test_a_pooling_that_the_modality_does_not_have(modality, pooling):
    with pytest.raises(RecipeError, match=f"`evaluate`: pooling: got '{pooling}', but patches of {modality} data have"):
        load_recipe(f"{modality}/demo", [f"evaluate={{pooling: {pooling}}}"])


def train_and_say(recipe, said, *overrides):
    try:
        train_here(recipe, *overrides)
    except EvaluationError as error:
        with said.open("a") as file:
            file.write(f"{error}\n")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluate.fold_column=label", "evaluate.exclude={label: [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}"],
            "all clips outside of fold [01] are of one class, '[01]', and nothing can be learned",
        ),
        (
            ["evaluate.fold_column=fold", "evaluate.exclude={label: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}"],
            "^`evaluate`: evaluate.label_column: all clips are of one class, '0'",
        ),
        ([], "the largest class has 2 clips, too few to draw 5 folds; .* by evaluate.fold_column or evaluate.test_spl"),
        (
            ["evaluate.fold_column=fold", "evaluate.min_seconds=9"],
            "^`evaluate`: no usable example in sounds .*too short: .*, at least 9.0 s are needed",
        ),
    ],
)
def test_labels_and_clips_that_do_not_do_end_the_run_before_it_begins(tiny_recipe, tmp_path, overrides, message):
    """In one sentence, and in both processes alike."""
    said, errors, folder = tmp_path / "said", tmp_path / "errors", tmp_path / "run"
    overrides = (f"output_dir={folder}", "training.deadline=60", "evaluate.label_column=label", *overrides)
    join(fork(train_and_say, tiny_recipe, said, *overrides, errors=errors, ranks=2), errors)
    one, other = said.read_text().splitlines()
    assert one == other and re.search(message, one), one
    assert not (folder / "metrics.jsonl").exists()


def test_a_section_without_a_set_is_laid_over_the_data(tiny_recipe, sounds):
    overrides = ["output_dir=x", "data.exclude={fold: [1]}", "evaluate.label_column=label"]
    settings = load_recipe(tiny_recipe, overrides).evaluate
    assert settings.dataset == str(sounds) and settings.exclude == {"fold": [1]} and settings.label_column == "label"
    other = load_recipe(tiny_recipe, [*overrides, "evaluate.dataset=2024"]).evaluate
    assert other.dataset == "2024" and other.exclude == {}
    assert load_recipe(tiny_recipe, overrides[:1]).evaluate is None
