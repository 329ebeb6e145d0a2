"""Release a trained model on the Hub: card, code, weights and processor, reloaded in a clean process before the push.

    bridle release runs/as2m_base/final --repo-id ORG/bridle-audio --dry-run
    bridle release runs/as2m_base/final --repo-id ORG/bridle-audio --results results.yaml --tag v1

The card is that of the modality in bridle_hf/cards, or --card.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from glob import escape
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import modeling_bridle, pipeline_bridle
from ..configuration_bridle import AUTO_MAP
from ..data.modalities import MODALITIES, load_processor
from ..files import end_with, final_of, share_files
from ..hub_connection import check_repo_id
from ..loading import open_model, saved_class
from . import reload
from .card import CARDS, find_run, read_finetuning, read_results, render_card
from .licenses import check_license

OURS = (".py", ".json", ".safetensors")  # what an earlier release may have left behind


def stage(model_dir, folder, repo_id, card=None, results=(), max_shard_size="5GB", license=None):
    """Write everything that a release holds into `folder`.

    Args:
        model_dir: folder of a trained model with its processor. A recipe.yaml and a metrics.jsonl in it or above it
            tell the card about the run; of a classifier finetune.yaml and results.json do.
        folder: receives the files; new or empty, so that a push of it holds nothing else.
        repo_id (`str`): "org/name".
        card: the card's template; `bridle-MODALITY.md` of `CARDS` by default.
        results: `EvalResult`s.
        max_shard_size: of a file of weights.
        license: of the weights, as the Hub names it.

    Raises:
        ValueError: `model_dir` holds no BRIDLE model, or one that lacks weights or holds NaN; what lies beside it says
            nothing of a run; `folder` holds something; `repo_id` or `license` is none; or there is no card.
    """
    check_repo_id(repo_id)
    check_license(license)
    model_dir, folder = Path(model_dir), Path(folder)
    if held := sorted(path.name for path in folder.iterdir()) if folder.is_dir() else folder.exists():
        what = "a file" if held is True else f"which holds {', '.join(held[:3])}{', ...' if held[3:] else ''}"
        raise ValueError(f"--output is {str(folder)!r}, {what}; it takes a new or an empty folder.")
    if not (model_dir / "config.json").is_file():
        raise ValueError(f"MODEL_DIR is {str(model_dir)!r}, which holds no config.json; it takes a saved model.")
    model = open_model(saved_class(model_dir, "MODEL_DIR"), model_dir, "MODEL_DIR")
    config = model.config
    card = Path(card or CARDS / f"bridle-{config.modality}.md")
    if not card.is_file():
        raise ValueError(f"--card is {str(card)!r}, which is no file; it takes a template such as those in {CARDS}.")
    try:
        processor = load_processor(model_dir)
    except OSError as error:
        raise ValueError(f"MODEL_DIR is {str(model_dir)!r}, whose processor cannot be read: {error}") from error
    is_classifier = isinstance(model, modeling_bridle.BridleForClassification)
    finetuning = read_finetuning(model_dir) if is_classifier else None
    text = render_card(card, model, processor, repo_id, find_run(model_dir), results, finetuning, license, model_dir)

    folder.mkdir(parents=True, exist_ok=True)
    config.auto_map = AUTO_MAP  # the code beside the weights, whatever repository the model's config named
    pipeline = MODALITIES[config.modality].feature_pipeline
    if pipeline is not None and not is_classifier:
        task = {"impl": f"pipeline_bridle.{pipeline}", "pt": ["AutoModel"]}
        model.config.custom_pipelines = {f"{config.modality}-feature-extraction": task}
        shutil.copy(pipeline_bridle.__file__, folder)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    share_files(folder)


def check(folder):
    """Load a staged folder in a process without this package and compare all outputs with ours, bit for bit.

    Returns:
        names of the outputs compared.

    Raises:
        RuntimeError: the folder does not load there.
        AssertionError: an output differs.
    """
    with tempfile.TemporaryDirectory() as beside:
        kept = Path(beside) / "outputs.safetensors"
        command = [sys.executable, "-I", reload.__file__, str(folder), str(kept)]
        clean = subprocess.run(command, capture_output=True, text=True)
        if clean.returncode:
            raise RuntimeError(f"{folder} does not load without this package:\n{clean.stderr}")
        there, here = load_file(kept), reload.outputs(folder)
    torch.testing.assert_close(there, here, rtol=0, atol=0)
    return sorted(here)


def push(folder, repo_id, private=False, tag=None):
    """Upload a staged folder as one commit; files of an earlier release that it does not have are deleted, and nothing
    in a folder of the repository.

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        ValueError: `private`, and there is a public repository of this name; or it has the tag.
    """
    api = HfApi()
    if private:
        refuse_public(repo_id)
    if tag:
        refuse_tag(repo_id, tag)
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    old = [escape(name) for name in api.list_repo_files(repo_id) if name.endswith(OURS) and "/" not in name]
    message = f"Release {tag}" if tag else "Release"
    commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=old)
    if tag:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def check_tag(tag):
    """Raise a `ValueError` for a name that no tag can have, which the Hub would refuse after the push alone."""
    if tag is not None and not re.fullmatch(r"\w+([.+/-]\w+)*", tag, re.ASCII):
        raise ValueError(
            f"--tag is {tag!r}; it takes letters and digits, with single '.', '-', '+' or '/' between them."
        )


def refuse_public(repo_id):
    """Raise a `ValueError` if there is a public repository of this name."""
    try:
        private = HfApi().repo_info(repo_id).private
    except RepositoryNotFoundError:
        return
    if not private:
        raise ValueError(f"--private is given and {repo_id} is public; make it private on the Hub, or name another.")


def refuse_tag(repo_id, tag):
    """Raise a `ValueError` if there is a repository of this name and it has the tag."""
    try:
        tags = HfApi().list_repo_refs(repo_id).tags
    except RepositoryNotFoundError:
        return
    if tag in [each.name for each in tags]:
        raise ValueError(f"--tag is {tag!r}, which {repo_id} has already; it takes a new name.")


def main(arguments=None, prog="python -m bridle_hf.hub.release"):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", metavar="MODEL_DIR", type=final_of, help="run, or folder of a trained model")
    parser.add_argument("--repo-id", required=True, help="ORG/NAME on the Hub")
    parser.add_argument("--card", help="the card's template; the one of the modality in bridle_hf/cards by default")
    parser.add_argument("--results", help="YAML or JSON: a list of fields of huggingface_hub.EvalResult")
    parser.add_argument("--license", help="of the weights, as the Hub names it, such as cc-by-4.0; none by default")
    parser.add_argument("--output", help="keep the release in this new or empty folder; by default it is temporary")
    parser.add_argument("--tag", help="name of this revision")
    parser.add_argument("--private", action="store_true", help="make a new repository private; a public one is refused")
    parser.add_argument("--dry-run", action="store_true", help="print the card, and do everything but the push")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.output or temporary)
        try:
            check_tag(given.tag)
            results = read_results(given.results) if given.results else ()
            if given.private and not given.dry_run:
                refuse_public(given.repo_id)
            if given.tag and not given.dry_run:
                refuse_tag(given.repo_id, given.tag)
            stage(given.model_dir, folder, given.repo_id, given.card, results, license=given.license)
        except (ValueError, OSError, StrictDataclassError, SafetensorError, TemplateError) as error:
            end_with(parser, error)
        except HTTPError as error:
            parser.error(f"the Hub cannot be reached: {error}")
        compared = check(folder)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        lines = [f"  {path.relative_to(folder)}: {path.stat().st_size:,} bytes\n" for path in files]
        sys.stdout.write(f"{''.join(lines)}{len(compared)} outputs are the same in a clean process\n")
        if given.dry_run:
            sys.stdout.write(f"README.md:\n\n{(folder / 'README.md').read_text(encoding='utf-8')}\n")
            sys.stdout.write(f"not pushed to {given.repo_id}: --dry-run\n")
            return
        try:
            commit = push(folder, given.repo_id, given.private, given.tag)
        except (ValueError, OSError) as error:  # of the Hub
            end_with(parser, error)
        except HTTPError as error:
            parser.error(f"the Hub cannot be reached: {error}")
        sys.stdout.write(f"{commit.commit_url}\n")


if __name__ == "__main__":
    main()
