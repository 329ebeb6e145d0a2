"""A release: its card, its files, the reload in a clean process, and the push to a stand-in of the Hub."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from tiny import tiny_config

import bridle_hf
from bridle_hf.data import build_processor
from bridle_hf.hub import release
from bridle_hf.hub.card import CARDS, render_card
from bridle_hf.training import load_recipe

SIZES = {"audio": (32, 32), "image": (32, 32), "video": (4, 32, 32)}
RESULT = {
    "task_type": "audio-classification", "dataset_type": "ashraq/esc50", "dataset_name": "ESC-50",
    "metric_type": "accuracy", "metric_name": "accuracy, linear probe", "metric_value": 12.5,
}  # fmt: skip


def tiny(modality, name="BridleForPreTraining", **fields):
    config = tiny_config(modality, input_size=SIZES[modality], **fields)
    return getattr(bridle_hf, name)(config), build_processor(config)


def save(folder, *made):
    for part in made:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of pretraining: final/, recipe.yaml and metrics.jsonl."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save(folder / "final", *tiny("audio"))
    recipe = {"seed": 3, "data": {"dataset": "org/sounds"}, "training": {"batch_size": 7}}
    recipe["phases"] = [{"kind": "encoder"}, {"kind": "tokenizer"}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    records = [
        {"phase": "encoder-iter1", "phase_index": 0, "step": 1, "loss": 2.0},
        {"phase": "encoder-iter1", "phase_index": 0, "step": 2, "codebooks": {"cur": [0.5, 0.75], "ecu": [0.25, 0.5]}},
        {"phase": "encoder-iter1", "phase_index": 0, "step": 3, "loss": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def card_of(modality, repository, name="BridleForPreTraining", **given):
    made = tiny(modality, name)
    return render_card(repository / "model_cards" / f"bridle-{modality}.md", *made, f"org/bridle-{modality}", **given)


def test_a_card_says_what_the_model_and_its_run_know(run, repository):
    text = card_of("audio", repository, run=run, results=[EvalResult(**RESULT)])
    assert "16 kHz mono; 32 frames of 10 ms x 32 mel bins, mean -4.4446096, deviation 3.3216383" in text
    assert "2 codebooks of 8 codes of width 8" in text
    assert "encoder, tokenizer phases on `org/sounds`, batches of 7 a process, seed 3" in text
    assert "of encoder-iter1 that was logged, at step 2" in text
    assert "| codebook | CUR | ECU |\n|---|---|---|\n| 1 | 0.5 | 0.25 |\n| 2 | 0.75 | 0.5 |\n" in text
    assert "| ESC-50 | audio-classification | accuracy, linear probe | 12.5 |" in text
    data = ModelCard(text).data
    assert data.library_name == "transformers" and data.pipeline_tag == "feature-extraction" and "bridle" in data.tags
    assert data.license is None  # which one the weights have is for those to say who trained them
    assert data.eval_results[0].metric_value == 12.5 and data.to_dict()["model-index"][0]["name"] == "bridle-audio"


INPUTS = {
    "audio": "16 kHz mono",
    "image": "| 32 x 32, patches of 16 x 16 |",
    "video": "| 4 x 32 x 32, patches of 2 x 16",
}
UNITS = {
    "audio": "log-mel spectrogram",
    "image": "image into a vector per patch",
    "video": "clip into a vector per tubelet",
}


@pytest.mark.parametrize("modality", SIZES)
def test_a_card_speaks_of_its_modality_and_of_the_data_of_its_run(modality, repository, tmp_path):
    name = {"audio": "as2m", "image": "in1k", "video": "k400"}[modality]
    base = f"{modality}/{name}_base"
    papers = load_recipe(base, ["output_dir=x"]).data.dataset
    said = {
        papers: {"audio": "AudioSet, the unb", "image": "ImageNet-1K, the", "video": "Kinetics-400, the"}[modality],
        "synthetic": "Synthesized by `bridle_hf` before the run",
        "org/mine": "`org/mine`, without labels",
    }
    for dataset in said:
        recipe = {"seed": 3, "data": {"dataset": dataset}, "training": {"batch_size": 7}, "phases": []}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        text = card_of(modality, repository, run=tmp_path)
        assert [name for name, sentence in said.items() if sentence in text] == [dataset]
        listed = [dataset] if dataset == papers != "kinetics400" else []  # what is on the Hub
        assert (ModelCard(text).data.datasets or []) == listed
        assert INPUTS[modality] in text and UNITS[modality] in text
        assert not any(unit in text for other, unit in UNITS.items() if other != modality)
    assert "Not recorded with the weights." in card_of(modality, repository)


def test_a_card_without_results_says_so(repository):
    text = card_of("image", repository)
    assert "None is recorded with these weights." in text and "model-index" not in text and "Codebooks" not in text


@pytest.fixture
def classifier(run, tmp_path):
    """Folder of fold 2 of a fine-tuning of the model of `run`, with what fine-tuning writes above it."""
    folder = save(tmp_path / "classes" / "fold-2", *tiny("audio", "BridleForAudioClassification"))
    recipe = {"model": str(run / "final"), "from_scratch": False, "seed": 5, "training": {"epochs": 9, "batch_size": 3}}
    recipe["data"] = {"dataset": "my_labelled", "label_column": "kind", "test_split": None}
    results = {"accuracy": 0.5, "mean_average_precision": 0.7, "d_prime": None, "folds": [1, 2], "seed": 5}
    results |= {"per_fold": [0.25, 0.75], "per_fold_mean_average_precision": [0.6, 0.8], "per_fold_d_prime": [1, None]}
    (folder.parent / "finetune.yaml").write_text(yaml.safe_dump(recipe))
    (folder.parent / "results.json").write_text(json.dumps(results))
    return folder


def released(folder, repository, tmp_path, **changes):
    """The card of a classifier after changes to its finetune.yaml."""
    path = folder.parent / "finetune.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    release.stage(folder, tmp_path / "out", "org/x", repository / "model_cards" / "bridle-audio.md")
    return (tmp_path / "out" / "README.md").read_text()


def test_a_classifier_s_card_says_how_it_was_fine_tuned_and_tested(classifier, run, repository, tmp_path):
    text = released(classifier, repository, tmp_path)
    assert "a\nclassifier that turns a log-mel spectrogram into a score per class." in text and "an encoder" not in text
    assert "| Fine-tuning | of a model that is not on the Hub on `my_labelled`, 9 epochs, batches of 3 a" in text
    assert "Fine-tuned with the labels in column `kind` of `my_labelled`, without fold 2.\n" in text
    assert "`org/sounds`, without labels." in text  # what the encoder saw, from the run that finetune.yaml names
    assert "| `my_labelled`, fold 2 | audio-classification | accuracy | 0.750 |\n" in text
    assert "| mean average precision | 0.800 |" in text and "d prime" not in text
    assert not any(words in text for words in ("None is", "Not recorded", "Tokenizer |", "Codebooks", "Nothing was ev"))
    assert text.index("import numpy") < text.index("from transformers import pipeline")
    assert "\n\n\n" not in text and "Nothing came before" not in text


def test_a_classifier_s_card_does_not_say_more_than_is_known(classifier, repository, tmp_path):
    (classifier.parent / "results.json").unlink()
    text = released(classifier, repository, tmp_path, model="org/elsewhere")
    assert "What the encoder was pretrained on is said where `org/elsewhere` comes from." in text
    assert "of `my_labelled`.\n" in text and "None is recorded" in text
    text = released(classifier, repository, tmp_path, from_scratch=True)
    assert "| Fine-tuning | from random weights on `my_labelled`" in text and "Nothing came before." in text
    (classifier.parent / "finetune.yaml").unlink()
    release.stage(classifier, tmp_path / "more", "org/x", repository / "model_cards" / "bridle-audio.md")
    assert "Not recorded with the weights." in (tmp_path / "more" / "README.md").read_text()


def test_a_classifier_that_was_tested_on_a_split(classifier, repository, tmp_path):
    classifier = classifier.rename(classifier.with_name("fold-test"))
    results = {"accuracy": 0.5, "folds": ["test"], "per_fold": [0.5]}
    (classifier.parent / "results.json").write_text(json.dumps(results))
    data = {"dataset": "my_labelled", "label_column": "kind", "test_split": "test"}
    text = released(classifier, repository, tmp_path, data=data)
    assert "| `my_labelled`, split `test` | audio-classification | accuracy | 0.500 |" in text
    assert "of `my_labelled`.\n" in text


def test_only_a_model_with_a_tokenizer_has_one_in_its_card(repository):
    assert "| Tokenizer |" in card_of("audio", repository) and "| Tokenizer |" in card_of(
        "audio", repository, "BridleTokenizer"
    )
    assert "| Tokenizer |" not in card_of("audio", repository, "BridleModel")


def test_the_cards_are_the_package_s_and_one_of_your_own_extends_them(repository, tmp_path):
    names = {path.name for path in (repository / "model_cards").iterdir()}
    assert names == {f"bridle-{modality}.md" for modality in SIZES}
    assert all((repository / "model_cards" / name).samefile(CARDS / name) for name in names)
    own = tmp_path / "mine.md"
    own.write_text('{% extends "bridle-audio.md" %}{% block summary %}Mine.{% endblock %}')
    text = render_card(own, *tiny("audio"), "org/x")
    assert "Mine." in text and "16 kHz mono; 32 frames" in text and "## Citation" in text


def test_a_card_says_what_is_cut_off(repository):
    assert "use the first 32 frames (10 ms each)" in card_of("audio", repository)


@pytest.mark.parametrize("modality", SIZES)
@pytest.mark.parametrize("kind", ["BridleForPreTraining", "classifier"])
def test_the_card_s_code_runs(modality, kind, repository, tmp_path, monkeypatch):
    name = f"BridleFor{modality.title()}Classification" if kind == "classifier" else kind
    text = card_of(modality, repository, name)
    assert not re.search(r"{[{%]|[}%]}", text) and "\n\n\n" not in text
    save(tmp_path / "org" / f"bridle-{modality}", *tiny(modality, name))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, f"bridle-{modality}.md", "exec"), {})


def test_a_dry_run_keeps_a_whole_release_and_pushes_nothing(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "results.yaml").write_text(yaml.safe_dump([RESULT]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "push", lambda *_: pytest.fail("pushed"))
    arguments = [str(run / "final"), "--repo-id", "org/bridle-audio", "--results", str(tmp_path / "results.yaml")]
    release.main([*arguments, "--output", str(tmp_path / "out"), "--license", "cc-by-4.0", "--dry-run"])
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "cc-by-4.0"
    said = capsys.readouterr().out
    assert "not pushed to org/bridle-audio: --dry-run" in said
    assert (tmp_path / "out" / "README.md").read_text() in said
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "modeling_bridle.py"} <= files


@pytest.mark.parametrize("held", ["notes.txt", ".env", "sub/private.wav"])
def test_a_folder_that_holds_something_is_left_alone(held, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release, "push", lambda *_: pytest.fail("pushed"))
    other = tmp_path / "out" / held
    other.parent.mkdir(parents=True)
    other.write_text("secret")
    with pytest.raises(SystemExit):
        release.main([str(run / "final"), "--repo-id", "org/x", "--output", str(tmp_path / "out")])
    name = held.split("/")[0]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"error: --output is '{tmp_path}/out', which holds {name}; it takes a new or an empty folder.")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [other]
    with pytest.raises(ValueError, match="a file; it takes a new"):
        release.stage(run / "final", other, "org/x")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--license", "MIT", "--license is 'MIT'; it takes an identifier of https://huggingface.co/docs/hub/"),
        ("--license", "Apache 2.0", "or other; did you mean apache-2.0"),
        ("--license", "mine", "such as apache-2.0, or other"),
        ("--tag", "v 1", "--tag is 'v 1'; it takes letters and digits"),
        ("--tag", "../main", "--tag is '../main'"),
        ("--results", "{a", "is no YAML"),
        ("--card", "{% if %}", "Expected an expression"),
        ("--card", "{{ nothing.here }}", "'nothing' is undefined"),
    ],
)
def test_what_the_hub_or_the_card_does_not_take_is_one_line(option, value, message, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release, "check", lambda _: pytest.fail("checked"))
    if option in ("--results", "--card"):
        (tmp_path / "given").write_text(value)
        value = str(tmp_path / "given")
    with pytest.raises(SystemExit, match="2"):
        release.main([str(run / "final"), "--repo-id", "org/x", "--dry-run", option, value])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("tag", ["v1", "1.0.0", "2026-11-26", "v1.0+cpu", "paper/final", None])
def test_tags_that_do(tag):
    release.check_tag(tag)


class HubOfPublic:
    """A Hub with one public repository, which nobody writes to."""

    def repo_info(self, repo_id):
        return SimpleNamespace(private=False)

    def __getattr__(self, name):
        pytest.fail(f"{name} was called")


def test_private_is_refused_for_a_public_repository(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release, "HfApi", HubOfPublic)
    with pytest.raises(ValueError, match="^--private is given and org/x is public"):
        release.push(tmp_path, "org/x", private=True)
    monkeypatch.setattr(release, "stage", lambda *_, **__: pytest.fail("staged"))
    with pytest.raises(SystemExit):
        release.main([str(run / "final"), "--repo-id", "org/x", "--private"])
    assert "error: --private is given and org/x is public" in capsys.readouterr().err.splitlines()[-1]


def test_everything_is_printed_with_its_size_before_it_is_pushed(run, tmp_path, capsys, monkeypatch):
    pushed = []

    def push(folder, *_):
        printed = capsys.readouterr().out
        pushed.extend(path for path in folder.rglob("*") if path.is_file())
        for path in pushed:
            assert f"  {path.relative_to(folder)}: {path.stat().st_size:,} bytes\n" in printed
        return SimpleNamespace(commit_url="the commit")

    monkeypatch.setattr(release, "push", push)
    release.main([str(run / "final"), "--repo-id", "org/x", "--output", str(tmp_path / "out")])
    assert len(pushed) > 5 and capsys.readouterr().out == "the commit\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("500 Server Error\nRequest ID: 1"), "500 Server Error Request ID: 1"),
        (HTTPError("Connection refused"), "the Hub cannot be reached: Connection refused"),
    ],
)
def test_what_the_hub_answers_is_one_line(error, said, run, capsys, monkeypatch):
    def push(*_):
        raise error

    monkeypatch.setattr(release, "push", push)
    with pytest.raises(SystemExit):
        release.main([str(run / "final"), "--repo-id", "org/x"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


def test_weights_are_sharded_when_large(run, repository, tmp_path):
    card = repository / "model_cards" / "bridle-audio.md"
    release.stage(run / "final", tmp_path, "org/x", card, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = bridle_hf.BridleForPreTraining.from_pretrained(run / "final").state_dict()
    again = bridle_hf.BridleForPreTraining.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_release_that_lacks_a_file_or_differs_is_refused(tmp_path):
    save(tmp_path, *tiny("audio"))
    (tmp_path / "masking_bridle.py").unlink()
    with pytest.raises(RuntimeError, match="does not load without this package(.|\n)*masking_bridle"):
        release.check(tmp_path)
    save(tmp_path, *tiny("audio"))
    code = tmp_path / "feature_extraction_bridle.py"
    assert ".div_(2 * self.std)" in code.read_text()
    code.write_text(code.read_text().replace(".div_(2 * self.std)", ".div_(self.std)"))
    with pytest.raises(AssertionError, match="AutoModel.last_hidden_state"):
        release.check(tmp_path)


def with_weights(change):
    """A change of a saved model by a change of its dictionary of weights."""

    def changed(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights, "bridle.layers.0.mlp.fc1.weight")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_weights(lambda weights, name: weights.pop(name)), "are missing: bridle"),
        (with_weights(lambda weights, name: weights.pop("tokenizer.cold_start.projection")), "holds no tokenizer"),
        (with_weights(lambda weights, name: weights[name].fill_(torch.nan)), "whose weights hold NaN or inf"),
        (with_weights(lambda weights, name: weights.update({name: torch.ones(2)})), "fc1.weight is .2,., not"),
        (lambda folder: (folder / "config.json").write_text("[]"), "which cannot be read"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "whose processor cannot be read"),
        (lambda folder: (folder.parent / "recipe.yaml").write_text("{a"), "recipe.yaml cannot be read"),
        (lambda folder: (folder.parent / "recipe.yaml").write_text("name: x"), "recipe.yaml holds no seed, data"),
        (lambda folder: (folder.parent / "recipe.yaml").write_text("text"), "recipe.yaml holds no seed, data"),
    ],
)
def test_what_cannot_be_released_is_said_before_anything_is_written(change, message, tmp_path):
    model = save(tmp_path / "run" / "final", *tiny("audio"))
    change(model)
    with pytest.raises(ValueError, match=message):
        release.stage(model, tmp_path / "out", "org/x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["finetune.yaml", "results.json"])
def test_records_of_fine_tuning_that_are_none_are_named(name, classifier, tmp_path):
    (classifier.parent / name).write_text('{"folds": [')
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        release.stage(classifier, tmp_path / "out", "org/x")


def test_a_run_is_found_whatever_its_model_is_called(run, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(run / "final")
    monkeypatch.chdir(run / "final")
    for number, called in enumerate((".", "../final", tmp_path / "link")):
        release.stage(called, tmp_path / str(number), "org/x")
        assert "encoder, tokenizer phases on `org/sounds`" in (tmp_path / str(number) / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bridle"}'), "holds a None"),
    ],
)
def test_what_is_no_model_is_named(tmp_path, change, message, capsys):
    save(tmp_path, *tiny("audio"))
    change(tmp_path)
    with pytest.raises(SystemExit):
        release.main([str(tmp_path), "--repo-id", "org/x"])
    assert message in capsys.readouterr().err
