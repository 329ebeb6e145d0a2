"""Model card of a release: a template from `cards/`, rendered with facts of the model, its recipe and its results."""

import json
from importlib.resources import files
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard
from markupsafe import Markup

from ..configuration_bridle import BridleConfig
from ..data.modalities import MODALITIES
from ..hub_connection import check_repo_id, is_repo_id
from ..markdown import card_environment
from ..modeling_bridle import BridleForClassification
from ..training.metrics import read_metrics

CARDS = Path(str(files("bridle_hf"))) / "cards"  # a card per modality, and what they extend
# What the cards tell of a run, and so a recipe.yaml or finetune.yaml has.
PRETRAINED, FINETUNED = ("seed", "data", "training", "phases"), ("seed", "data", "training", "model", "from_scratch")
CODEBOOK_COLUMNS = {"cur": "CUR", "ecu": "ECU", "perplexity": "perplexity", "residual": "energy left"}


def render_card(template, model, processor, repo_id, run=None, results=(), finetuning=None, license=None, folder=None):
    """Render a model card as text.

    Names of people's are escaped wherever they stand, and of what lies on this machine no path is shown.

    Args:
        template: path of a card, in Jinja; it may extend others of its folder or of `CARDS`. Its front matter is kept.
        model: of any BRIDLE class; processor: its front-end.
        repo_id (`str`): "org/name" on the Hub.
        run: folder of the pretraining run, for the recipe and the health of the codebooks; what is not there is left
            out.
        results: `EvalResult`s, for the table and the `model-index`.
        finetuning: of a classifier, what `read_finetuning` found.
        license: what the weights may be used under, as the Hub names it; the card says nothing about it without.
        folder: of the model; one that is called encoder-iterK went through the phases of its run up to there.

    Raises:
        ValueError: `repo_id` is of another form.
        jinja2.UndefinedError: the template asks for something that there is not.
    """
    check_repo_id(repo_id)
    template, config = Path(template), model.config
    environment = card_environment([template.parent, CARDS])
    places = [run, (finetuning or {}).get("folder")]
    environment.filters["public"] = lambda name: is_public(name, *filter(None, places))
    is_classifier = isinstance(model, BridleForClassification)
    task = MODALITIES[config.modality].task if is_classifier else "feature-extraction"
    has_tokenizer = hasattr(model, "tokenizer") or hasattr(model, "quantizer")
    recipe = _recipe(run)
    if recipe and folder:
        recipe["phases"] = _phases_until(Path(folder).resolve().name, recipe["phases"])
    text = environment.get_template(template.name).render(
        name=repo_id.split("/")[-1],
        repo_id=Markup(repo_id),  # also in code, where nothing may be escaped; nothing of it has to be
        config=config,
        processor=processor,
        is_classifier=is_classifier,
        task=task,
        parameters=sum(p.numel() for p in model.parameters()),
        encoder_parameters=sum(p.numel() for p in getattr(model, "bridle", model).parameters()),
        has_tokenizer=has_tokenizer,
        classes=len(config.id2label),
        recipe=recipe,
        finetuning=finetuning,
        codebooks=_codebooks(run) if has_tokenizer else None,
        results=results,
    )
    card = ModelCard(text)
    card.data.library_name, card.data.pipeline_tag = "transformers", task
    trained_on = recipe["data"]["dataset"] if recipe else None
    card.data.datasets = [name for name in card.data.datasets or () if name == trained_on] or None
    card.data.license = license
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), BridleConfig.model_type]))
    if results:
        card.data.model_name, card.data.eval_results = repo_id.split("/")[-1], list(results)
    return str(card)


def is_public(name, *places):
    """Whether the name of a dataset or model is one of the Hub, as far as can be told, and no path of this machine.

    Args:
        places: folders of the runs that it is of; paths may have been relative to a folder above them.
    """
    if not is_repo_id(name or ""):
        return False
    above = (folder for place in places for folder in Path(place).resolve().parents)
    return not any((folder / name).exists() for folder in (Path(), *above))


def read_results(path):
    """Read results from a YAML or JSON file: a list of mappings with the fields of `huggingface_hub.EvalResult`.

    Raises:
        ValueError: for a row that is no `EvalResult`; it needs `task_type`, `dataset_type`, `dataset_name`,
            `metric_type` and `metric_value`.
    """
    try:
        return [EvalResult(**row) for row in yaml.safe_load(Path(path).read_text())]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except TypeError as error:
        raise ValueError(f"{path}: a result has fields that are missing or unknown: {error}") from error


def find_run(model_dir):
    """The folder of the pretraining run that a model comes from: its own or the one above, whichever has a recipe.yaml.
    A classifier's is found by the model that its finetune.yaml names. None where there is none."""
    if run := next((place for place in _places(model_dir) if (place / "recipe.yaml").is_file()), None):
        return run
    recipe = next((_read(path, FINETUNED) for path in _finetune_files(model_dir)), None)
    before = recipe and not recipe["from_scratch"] and Path(recipe["model"]).resolve()
    return find_run(before) if before and before != Path(model_dir).resolve() else None


def read_finetuning(model_dir):
    """How a classifier was fine-tuned and tested, from the finetune.yaml and results.json beside it or above it.

    Returns:
        dict: `recipe`, as finetune.yaml has it, and its `folder`; `tested`, the fold that the model was tested on, or
        the split with `of_split`; `scores`, measure -> value of this model, empty where results.json does not tell.
        None without a finetune.yaml.
    """
    model_dir = Path(model_dir)
    for path in _finetune_files(model_dir):
        recipe, scores = _read(path, FINETUNED), {}
        fold = _fold_of(model_dir)
        found = path.with_name("results.json")
        results = _read(found, ()) if found.is_file() else {}
        folds = [str(each) for each in results.get("folds", ())]
        if fold in folds:
            main = next(iter(results))  # `per_fold` alone is of the first measure
            lists = {main: results["per_fold"]}
            lists |= {key.removeprefix("per_fold_"): values for key, values in results.items() if "per_fold_" in key}
            scores = {name: values[folds.index(fold)] for name, values in lists.items()}
        return {
            "recipe": recipe,
            "folder": path.parent,
            "tested": fold if scores else None,
            "of_split": fold == recipe["data"].get("test_split"),
            "scores": {name.replace("_", " "): value for name, value in scores.items() if value is not None},
        }
    return None


def _fold_of(model_dir):
    """The fold that a classifier was tested on, as text: its fold.json tells; otherwise the name of its folder."""
    record, name = model_dir / "fold.json", model_dir.resolve().name.removeprefix("fold-")
    return str(_read(record, ()).get("fold", name)) if record.is_file() else name


def _finetune_files(model_dir):
    paths = (place / "finetune.yaml" for place in _places(model_dir))
    return [path for path in paths if path.is_file()]


def _places(model_dir):
    """The folder of a model and the one above it, first as it is called and then where a link leads."""
    called, real = Path(model_dir).absolute(), Path(model_dir).resolve()
    return called, called.parent, real, real.parent


def _read(path, sections):
    """The mapping in a YAML or JSON file, in which there are these sections.

    Raises:
        ValueError: it is none, or lacks one.
    """
    try:
        found = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    lacking = ", ".join(name for name in sections if name not in (found if isinstance(found, dict) else {}))
    if not isinstance(found, dict) or lacking:
        raise ValueError(f"{path} holds no {lacking or 'mapping'}, and is of no run; move it away to release without.")
    return found


def _recipe(run):
    """What the run's recipe.yaml says, as nested dicts, or None."""
    path = Path(run or "") / "recipe.yaml"
    return _read(path, PRETRAINED) if run and path.is_file() else None


def _phases_until(name, phases):
    """The phases that a model in a folder of this name went through: up to iteration K for encoder-iterK, or all."""
    ends = [end for end, phase in enumerate(phases, start=1) if phase["kind"] != "tokenizer"]
    written = {f"encoder-iter{iteration}": end for iteration, end in enumerate(ends, start=1)}
    return phases[: written.get(name, len(phases))]


def _codebooks(run):
    """The last record of metrics.jsonl that measured codebooks: its `phase` and `step`, the columns and a row each."""
    found = None
    for record in read_metrics(Path(run) / "metrics.jsonl") if run else ():
        found = _measured(record) or found
    return found


def _measured(record):
    """What `_codebooks` returns for a record; None where it does not say it, as a line that somebody added."""
    try:
        measured = record["codebooks"]
        names = [name for name in CODEBOOK_COLUMNS if name in measured]
        rows = [[f"{value:.3g}" for value in row] for row in zip(*(measured[name] for name in names), strict=True)]
        columns = [CODEBOOK_COLUMNS[name] for name in names]
        return {"phase": record["phase"], "step": record["step"], "columns": columns, "rows": rows} if rows else None
    except (KeyError, TypeError, ValueError):
        return None
