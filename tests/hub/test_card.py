"""Cards made of hostile names and odd records: nothing of them is markup, and nothing tells where data lies."""

import json
from html.parser import HTMLParser

import jinja2
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from markupsafe import Markup
from tiny import tiny_config

import bridle_hf
from bridle_hf.data import build_processor
from bridle_hf.evaluation.tables import markdown
from bridle_hf.hub.card import CARDS, is_public, read_finetuning, read_results, render_card
from bridle_hf.markdown import code, escape

HOSTILE = [
    "a|b",
    "two\nlines",
    "x`\n---\nlicense: mit\n---\n<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "`code`",
    "{{ 7*7 }}{% raw %}",
    "[a link](https://example.org)",
    "**bold** __strong__ ~~gone~~ $$x$$",
    "\x00\x1b[31m\u202e\u2028end",
    "# heading",
    "&lt;b&gt; \\| \\",
]


class Tags(HTMLParser):
    """The tags of a text, and the text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.shown += data


@pytest.fixture(scope="module")
def made():
    config = tiny_config("audio", input_size=(32, 32))
    return bridle_hf.BridleForPreTraining(config), build_processor(config)


@pytest.fixture(scope="module")
def classifier():
    config = tiny_config("audio", input_size=(32, 32))
    return bridle_hf.BridleForAudioClassification(config), build_processor(config)


def recipe_in(folder, dataset):
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"seed": 3, "data": {"dataset": dataset}, "training": {"batch_size": 7}, "phases": [{"kind": "encoder"}]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def card(made, **given):
    return render_card(CARDS / "bridle-audio.md", *made, "org/bridle-audio", **given)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_escaped_shows_as_it_is_and_is_no_markup(name):
    shown = " ".join(name.split())
    shown = "".join(char if char.isprintable() else "\ufffd" for char in shown)
    for text, wrapped in ((escape(name), []), (code(name), ["code"])):
        parsed = Tags(text)
        assert parsed.tags in ([], wrapped) and "\n" not in text and "|" not in text
        assert parsed.shown == (f"`{shown}`" if text.startswith("`") else shown)
    assert not set("`<[*~${") & set(escape(name)) and "__" not in escape(name)


def test_plain_names_numbers_and_markup_stay_as_they_are():
    for plain in ("org/my_data-2.1", "accuracy, linear probe (top 1)", "x'y", 3, 0.5, Markup("<b>")):
        assert escape(plain) == plain
    assert code("org/my_data") == "`org/my_data`"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_leave_a_card_whole(name, made, classifier, tmp_path):
    harmless = card(made, run=recipe_in(tmp_path / "harmless", "x"))
    text = card(made, run=recipe_in(tmp_path / "run", name))
    assert text.count("\n") == harmless.count("\n") and len(Tags(text).tags) == len(Tags(harmless).tags)
    assert ModelCard(text).data.to_dict() == ModelCard(harmless).data.to_dict()

    def labelled(name):
        folder = tmp_path / "classes" / "fold-1"
        folder.mkdir(parents=True, exist_ok=True)
        recipe = {"model": name, "from_scratch": False, "seed": 5, "training": {"epochs": 9, "batch_size": 3}}
        recipe["data"] = {"dataset": name, "label_column": name, "test_split": None}
        (folder.parent / "finetune.yaml").write_text(yaml.safe_dump(recipe))
        results = {name: 0.5, "folds": ["1"], "per_fold": [0.5]}
        (folder.parent / "results.json").write_text(json.dumps(results))
        fields = ("task_type", "dataset_type", "dataset_name", "metric_type", "metric_value")
        results = [EvalResult(**dict.fromkeys(fields, name))]
        finetuning = read_finetuning(folder) | {"tested": name, "of_split": True}
        return card(classifier, results=results, finetuning=finetuning, license=name)

    text, harmless = labelled(name), labelled("x")
    assert set(Tags(ModelCard(text).text).tags) <= {"code"}
    assert len(ModelCard(text).text.splitlines()) == len(ModelCard(harmless).text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.count("|") for row in rows] == [row.count("|") for row in harmless.splitlines() if row.startswith("| ")]
    assert ModelCard(text).data.license == name
    assert ModelCard(text).data.eval_results[0].dataset_name == name


@pytest.mark.parametrize(
    "path",
    ["/srv/alice/patients of dr bob", "~/sounds", "../sounds", "a/b/c", "C:" + "\\sounds", "data/here", "data/above"],
)
def test_a_local_path_is_never_shown(path, made, classifier, tmp_path, monkeypatch):
    (tmp_path / "project" / "data" / "above").mkdir(parents=True)
    (tmp_path / "elsewhere" / "data" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = recipe_in(tmp_path / "project" / "runs" / "mine", path)
    text = card(made, run=run)
    assert path not in text and "alice" not in text and "bob" not in text
    assert "on a dataset that is not on the Hub, batches of 7" in text
    assert "A dataset that is not on the Hub, without labels" in text
    recipe = {"model": path, "from_scratch": False, "seed": 5, "training": {"epochs": 9, "batch_size": 3}}
    recipe["data"] = {"dataset": path, "label_column": "kind", "test_split": None}
    found = {"recipe": recipe, "folder": run, "tested": "1", "of_split": False, "scores": {"accuracy": 0.5}}
    text = card(classifier, finetuning=found)
    assert path not in text
    assert "of a model that is not on the Hub on a dataset that is not" in text


def test_names_of_the_hub_are_shown(made, tmp_path):
    assert is_public("org/sounds") and is_public("mnist") and not is_public("") and not is_public(None)
    assert "on `org/sounds`, batches of 7" in card(made, run=recipe_in(tmp_path, "org/sounds"))


@pytest.mark.parametrize(
    ("folder", "phases"),
    [
        ("encoder-iter1", "encoder"),
        ("encoder-iter2", "encoder, tokenizer, joint"),
        ("encoder-iter4", "encoder, tokenizer, joint, encoder, tokenizer"),  # of another run
        ("final", "encoder, tokenizer, joint, encoder, tokenizer"),
    ],
)
def test_an_encoder_went_through_the_phases_up_to_its_own(made, tmp_path, folder, phases):
    run, kinds = recipe_in(tmp_path, "org/sounds"), ("encoder", "tokenizer", "joint", "encoder", "tokenizer")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"phases": [{"kind": kind} for kind in kinds]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert f"| Pretraining | {phases} phases on" in card(made, run=run, folder=run / folder)


@pytest.mark.parametrize(("most", "first"), [(None, 2000), (60, 60)])
def test_phases_are_told_with_their_lengths(made, tmp_path, most, first):
    run = recipe_in(tmp_path, "org/sounds")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["phases"] = [{"kind": "encoder", "steps": 2000}, {"kind": "tokenizer", "steps": 30, "epochs": None}]
    recipe["training"]["max_steps_per_phase"] = most
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = card(made, run=run)
    assert f"| Pretraining | encoder ({first} steps), tokenizer (30 steps) phases on `org/sounds`" in text
    assert "| Tokenizer | frozen random projection, then residual quantization:" in text


def test_an_encoder_alone_has_no_codebooks_to_tell_of(made, tmp_path):
    run = recipe_in(tmp_path, "org/sounds")
    (run / "metrics.jsonl").write_text(json.dumps(GOOD) + "\n")
    assert "## Codebooks" in card(made, run=run)
    model, processor = made
    assert "## Codebooks" not in card((model.bridle, processor), run=run)


GOOD = {"phase": "encoder-iter1", "phase_index": 0, "step": 2, "codebooks": {"cur": [0.5, 0.25], "ecu": [0.1, 0.2]}}


@pytest.mark.parametrize(
    "odd",
    [
        '{"codebooks": {}}',
        '{"codebooks": {"cur": [0.5]}}',
        '{"codebooks": {"cur": 0.5}, "phase": "x", "step": 1}',
        '{"codebooks": {"cur": ["<b>"]}, "phase": "x", "step": 1}',
        '{"codebooks": {"cur": [0.5], "ecu": [0.5, 0.5]}, "phase": "x", "step": 1}',
        '{"note": "by hand"}',
        "123",
        "null",
        '["codebooks"]',
        '"codebooks"',
        '{"phase": "x", "codebooks"',
        "\x00\x00",
        b"\xff\xfe",
    ],
)
def test_odd_records_do_not_break_a_card(odd, made, tmp_path):
    run = recipe_in(tmp_path, "org/sounds")
    good = json.dumps(GOOD).encode() + b"\n"
    odd = odd if isinstance(odd, bytes) else odd.encode()
    (run / "metrics.jsonl").write_bytes(odd + b"\n")
    assert "## Codebooks" not in card(made, run=run)
    (run / "metrics.jsonl").write_bytes(good + odd + b"\n")
    assert "| 1 | 0.5 | 0.1 |\n| 2 | 0.25 | 0.2 |" in card(made, run=run)


def test_the_phase_of_a_record_is_escaped(made, tmp_path):
    run = recipe_in(tmp_path, "org/sounds")
    (run / "metrics.jsonl").write_text(json.dumps(GOOD | {"phase": "<script>|", "step": "<b>"}) + "\n")
    assert not {"script", "b"} & set(Tags(card(made, run=run)).tags)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b/c", "org/", "x", "org/" + "a" * 200, 'org/x"', "org/a b", ""]
)
def test_what_no_repository_can_be_called_is_refused(name, made):
    with pytest.raises(ValueError, match="^--repo-id is .*; it takes ORG/NAME"):
        render_card(CARDS / "bridle-audio.md", *made, name)


def test_what_a_template_asks_for_has_to_be_there(made, tmp_path):
    (tmp_path / "mine.md").write_text("{{ nothing }}")
    with pytest.raises(jinja2.UndefinedError):
        render_card(tmp_path / "mine.md", *made, "org/x")


def test_a_table_of_hostile_cells_has_its_rows_and_columns():
    lines = markdown([{"a": "x|y", "b": "two\nlines"}]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y | two lines |"]


def test_a_result_with_missing_fields_is_named(tmp_path):
    (tmp_path / "r.json").write_text('[{"task_type": "audio-classification"}]')
    with pytest.raises(ValueError, match="r.json: a result has fields that are missing or unknown.*metric_value"):
        read_results(tmp_path / "r.json")
