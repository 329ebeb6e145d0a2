"""The front page and docs say what is so: Python blocks run, commands exist with their options, and (slow) run too."""

import configparser
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from picture_files import counting_video, picture, png
from sound_files import clip, flac

from bridle_hf import (
    BridleConfig,
    BridleFeatureExtractor,
    BridleForAudioClassification,
    BridleForPreTraining,
    recipes,
)
from bridle_hf.cli.main import main as bridle
from bridle_hf.feature_extraction_bridle import front_end
from bridle_hf.finetuning.finetune import FinetuneRecipe
from bridle_hf.hub import key_maps, to_official
from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from bridle_hf.recipes import recipe_names
from bridle_hf.training import PretrainRecipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPES = {
    "pretrain": PretrainRecipe,
    "study": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "autoencoding": AutoencodingRecipe,
    "wav2vec2": Wav2Vec2Recipe,
}
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, language, text) for page in PAGES for language, text in BLOCK.findall((ROOT / page).read_text())]


def blocks(language: str) -> list:
    chosen = [(page, text) for page, found, text in BLOCKS if found == language]
    return [pytest.param(text, id=f"{page}-{number}") for number, (page, text) in enumerate(chosen)]


def commands(pages: list[str] = PAGES) -> list[str]:
    """Every command of the pages' shell blocks, lines joined where a backslash ends them."""
    texts = [text.replace("\\\n", " ") for page, language, text in BLOCKS if page in pages and language == "bash"]
    return [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]


def test_every_block_is_of_a_kind_that_is_checked_here():
    assert {language for _, language, _ in BLOCKS} <= {"bash", "python", "bibtex", "yaml"}
    assert all(yaml.safe_load(text) for _, language, text in BLOCKS if language == "yaml")
    assert len(commands()) >= 5 and len(blocks("python")) >= 2


def reference_checkpoint(sizes: dict) -> dict:
    """Weights of a tiny model, but for its 12 heads, which no shape would tell, under the reference's names."""
    model = BridleForPreTraining(BridleConfig(**sizes | {"hidden_size": 48, "num_attention_heads": 12}))
    for book in model.tokenizer.quantizer.codebooks:
        book.set_(book.embed.clone(), torch.ones(book.num_codes))
    return to_official(model)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs_as_written(text, tmp_path, monkeypatch):
    """In a folder that holds, tiny and untrained, the checkpoints which the block loads."""
    small = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "estimator_num_hidden_layers": 1, "estimator_num_attention_heads": 2,
        "quantizer_config": {"codebook_size": 8, "codebook_dim": 8},
    }  # fmt: skip
    model_class = BridleForAudioClassification if "pipeline(" in text else BridleForPreTraining
    made = set(re.findall(r'"(runs/[^"]+)"', text)) if "pretrain(" not in text else ()
    if "my_sounds" in text:
        for number in range(20):
            (tmp_path / "my_sounds").mkdir(exist_ok=True)
            (tmp_path / "my_sounds" / f"{number}.flac").write_bytes(flac(clip(number)))
    if "own_small" in text:
        shutil.copytree(recipes.FOLDER, tmp_path / "recipes")
        shrink(tmp_path / "recipes")
        monkeypatch.setattr(recipes, "FOLDER", tmp_path / "recipes")
    for folder in made:
        model_class(BridleConfig(modality="audio", **small)).save_pretrained(tmp_path / folder)
        BridleFeatureExtractor().save_pretrained(tmp_path / folder)
    if "checkpoint.pth" in text:
        torch.save({"model": reference_checkpoint(small)}, tmp_path / "checkpoint.pth")
    if "encoder.npz" in text:
        np.savez(tmp_path / "encoder.npz", **front_end(BridleFeatureExtractor()))
    if "windows.parquet" in text:
        rows = [{"clip_name": "a", "start": 5.0 * n, "end": 5.0 * n + 5, "last": [float(n), 1.0]} for n in range(12)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "windows.parquet")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README.md", "exec"), {})


def options_of(script: Path, monkeypatch, capsys) -> str:
    """What a script prints for `--help`."""
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)  # as Python does for a script
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    return capsys.readouterr().out


def check_script(words: list[str], monkeypatch, capsys) -> None:
    script, *arguments = words
    usage = options_of(ROOT / script, monkeypatch, capsys)
    for flag in (word for word in arguments if word.startswith("--")):
        assert re.search(rf"{flag}\b", usage), f"{script} has no {flag}"
    if "--recipe" in arguments:
        after_flags = zip(["", *arguments], arguments, strict=False)
        overrides = [word for before, word in after_flags if "=" in word and not before.startswith("--")]
        load_recipe(arguments[arguments.index("--recipe") + 1], overrides)


def check_command(words: list[str], _, capsys) -> None:
    command, *arguments = words
    with pytest.raises(SystemExit):
        bridle([command, "--help"])
    usage = capsys.readouterr().out
    assert all(re.search(rf"{flag}\b", usage) for flag in arguments if flag.startswith("--"))
    overrides = [word for word in arguments if "=" in word and not word.startswith("start_from=")]  # it is read at once
    if command == "convert":
        assert arguments[arguments.index("--source") + 1] in key_maps.SOURCES
        assert {word.partition("=")[0] for word in overrides} <= set(BridleConfig().to_dict()) | {"processor"}
    elif command in RECIPES:
        load_recipe(arguments[0], overrides, RECIPES[command])
        if "--finetune" in arguments:
            load_recipe(arguments[arguments.index("--finetune") + 1], cls=FinetuneRecipe)


def check_make(words: list[str], *_) -> None:
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_pip(words: list[str], *_) -> None:
    """The extras a page installs are extras of the package."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert words[:2] == ["install", "-e"]
    for extra in words[2].removeprefix(".").strip("[]").split(","):
        assert extra in setup["options.extras_require"]


def check_pytest(words: list[str], *_) -> None:
    assert set(words) <= {"-m", "slow"}


# the longest prefix first: what is left of a command goes to its check
CHECKS = {
    "python -m pytest": check_pytest,
    "bridle": check_command,
    "accelerate launch -m bridle_hf.cli": check_command,
    "accelerate launch": check_script,
    "python": check_script,
    "make": check_make,
    "pip": check_pip,
}


@pytest.mark.parametrize("command", commands())
def test_command_can_be_given_as_written(command, monkeypatch, capsys):
    for path in re.findall(r"--config_file (\S+)", command):
        assert (ROOT / path).is_file()
        command = command.replace(f"--config_file {path} ", "")
    prefix = next((prefix for prefix in CHECKS if f"{command} ".startswith(f"{prefix} ")), None) or command
    assert prefix in CHECKS, f"no check for `{command}`"
    CHECKS[prefix](shlex.split(command.removeprefix(prefix)), monkeypatch, capsys)


def test_the_table_of_recipes_is_complete_and_links_lead_somewhere():
    table = (ROOT / "docs" / "recipes.md").read_text().partition("## The recipes")[2].partition("\n## ")[0]
    rows = "".join(re.findall(r"^\| `.*", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+/\w+)`", rows)) == set(recipe_names())
    for page in PAGES:
        text, folder = (ROOT / page).read_text(), (ROOT / page).parent
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
            target = folder / path if path else ROOT / page
            assert target.exists(), f"{page}: {path}"
            assert not anchor or anchor in anchors(target), f"{page}: {path}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


MODEL = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "decoder_hidden_size": 48,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "estimator_num_hidden_layers": 1,
    "estimator_num_attention_heads": 2,
    "quantizer_config": {"codebook_size": 8, "codebook_dim": 8},
}
SMALLER = {
    "_finetune": {"training": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0}},
    "_probe": {"training": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0}},
    "": {"model": MODEL, "training": {"max_steps_per_phase": 2, "batch_size": 8}},
}
# what runs a command, and what of the page is not run here
PROGRAMS = {
    "bridle": [sys.executable, "-m", "bridle_hf.cli"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
}
ELSEWHERE = {
    "python -m pytest": "this is one of the tests",
    "python examples/space/app.py": "it serves until it is stopped: test_space.py",
    "pip": "the install of CI",
    "make": "pip and the commands beside it",
}


def merged(recipe: dict, changes: dict) -> dict:
    """A recipe with the changes in place of its own values, and of those it takes from its base."""
    inner = {key: merged(recipe.get(key) or {}, value) for key, value in changes.items() if isinstance(value, dict)}
    return recipe | changes | inner


def shrink(folder: Path) -> None:
    """Make the recipes in a folder small enough for a test."""
    for path in folder.glob("*/*.yaml"):
        changes = next(change for ending, change in SMALLER.items() if path.stem.endswith(ending))
        if path.parent.name in ("audio", "image", "video"):
            path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder like the repository, with datasets of the Hub's names in it, and recipes as small."""
    folder = tmp_path_factory.mktemp("beside") / "repository"
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shrink(folder / "src" / "bridle_hf" / "recipes")
    sounds = [{"audio": {"bytes": flac(clip(i)), "path": "a.flac"}} for i in range(20)]
    labels = [{"target": i % 2, "category": "ab"[i % 2], "fold": i // 2 % 5 + 1, "esc10": True} for i in range(20)]
    rows = [sound | label for sound, label in zip(sounds, labels, strict=True)]
    others = [row | {"target": 2, "category": "c", "esc10": False} for row in rows]
    write(folder / "ashraq" / "esc50", train=[row for pair in zip(rows, others, strict=True) for row in pair])
    for name in ("ESC50", "HALF"):
        write(folder / name, train=rows)
    for number in range(20):
        for place in ("my_sounds", "my_recordings", f"my_labelled/{'ab'[number % 2]}"):
            path = folder / place / f"{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(flac(clip(number)))
    rows = [{"img": {"bytes": png(picture(i, 32)), "path": "a.png"}, "label": i // 10} for i in range(20)]
    write(folder / "uoft-cs" / "cifar10", train=rows, test=rows[::4])
    for number in range(16):
        path = folder / "my_pictures" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number, 32)))
        path = folder / "my_videos" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        counting_video(path, frames=24)
    torch.save({"model": reference_checkpoint(MODEL)}, folder / "checkpoint.pth")
    return folder


def write(folder: Path, **splits: list[dict]) -> None:
    for split, rows in splits.items():
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_front_pages_commands_run_as_written(workplace):
    """Those of the pages that lead one through, one after the other, each with what those before it have left."""
    pages = ["README.md", "docs/guide.md", "docs/results.md"]
    chosen = [line for line in commands(pages) if not line.startswith(tuple(ELSEWHERE))]
    assert len(chosen) > 15
    chosen.insert(0, "bridle study audio/demo --finetune audio/demo_finetune")  # of `make demo`
    paths = os.environ | {"PYTHONPATH": str(workplace / "src"), "ACCELERATE_USE_CPU": "true"}
    for command in chosen:
        program, *arguments = shlex.split(command)
        done = subprocess.run(PROGRAMS[program] + arguments, cwd=workplace, env=paths, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
