"""Commands without the packages that the extras bring, and what `bridle --help` imports."""

import configparser
import re
import subprocess
import sys
from unittest import mock

import pytest

import bridle_hf
from bridle_hf import cli, hub
from bridle_hf.cli import checks
from bridle_hf.cli.main import COMMANDS, main
from bridle_hf.extras import EXTRAS
from bridle_hf.training import load_recipe

HERE = ("cli.", "data", "demo_data", "evaluation", "finetuning", "hub.", "loading", "quantizer_experiments", "training")
NEEDED = [(module, extra) for extra in ("train", "report") for module in EXTRAS[extra] if module != "evaluate"]


@pytest.fixture
def hide():
    """Hides modules; those of the package that may import them are imported anew."""
    with mock.patch.dict(sys.modules):
        kept = [(package, dict(vars(package))) for package in (bridle_hf, cli, hub)]

        def begin(*names):
            again = tuple(f"bridle_hf.{part}" for part in HERE) + tuple(f"{name}." for name in names)
            for name in list(sys.modules):
                if name.startswith(again) and name != "bridle_hf.cli.main":
                    del sys.modules[name]
            sys.modules.update(dict.fromkeys(names))

        yield begin
        for package, attributes in kept:
            vars(package).update(attributes)


def ended(words, capsys, code):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == code
    return capsys.readouterr()


def test_every_module_of_an_extra_is_known(repository):
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    for extra, modules in EXTRAS.items():
        packages = [line.split(">")[0].split("[")[0] for line in setup["options.extras_require"][extra].split()]
        assert {{"scikit-learn": "sklearn"}.get(package, package) for package in packages} <= set(modules)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself_without_any_extra(command, hide, capsys):
    with_all = ended([command, "--help"], capsys, 0).out
    hide(*(module for modules in EXTRAS.values() for module in modules))
    main([command, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: bridle {command} [-h]") and f"\n\nbridle {command} " in said.replace("    ", "")
    assert said.endswith(f'is not installed; bridle {command} needs it: pip install "bridle-hf[train]"\n')
    options = [set(re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE)) for text in (said, with_all)]
    assert options[0] == options[1] and (len(options[0]) > 1 or command == "compare")  # which takes files alone
    assert ended(["--help"], capsys, 0).out.startswith("usage: bridle ")


@pytest.mark.parametrize(("module", "extra"), NEEDED)
def test_a_missing_module_is_one_line_with_its_cure(module, extra, hide, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = {"threadpoolctl": "probe", "sklearn": "probe", "scipy": "probe", "matplotlib": "report"}.get(module)
    hide(module)
    words = [command or "pretrain", "no/such/recipe"]
    bridle = f"bridle {words[0]}"
    cure = f'{module} is not installed; {bridle} needs it: pip install "bridle-hf[{extra}]"'
    assert ended(words, capsys, 2).err == f"{bridle}: error: {cure}\n"


def test_videos_without_pyav_are_refused_before_any_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("bridle_hf.video_decoding_bridle.is_av_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    words = ["pretrain", "video/demo", "data.dataset=set", "output_dir=out"]
    said = ended(words, capsys, 2).err.splitlines()[-1]
    assert said == 'bridle pretrain: error: av is not installed; bridle pretrain needs it: pip install "bridle-hf[av]"'
    assert not (tmp_path / "out").exists()


def test_a_run_whose_tracker_is_missing_says_so(tiny_recipe, monkeypatch):
    said = []
    monkeypatch.setattr(checks.logger, "warning", said.append)
    recipe = load_recipe(tiny_recipe, ["output_dir=x", "data.dataset=synthetic", "training.tracker=tensorboard"])
    checks.check_recipe(recipe)
    assert not said
    monkeypatch.setattr(checks, "get_available_trackers", lambda: [])
    checks.check_recipe(recipe)
    recipe.training.tracker = "comet_ml"
    checks.check_recipe(recipe)
    for line, package in zip(said, ('"bridle-hf[tracking]"', "comet-ml"), strict=True):
        assert f"pip install {package}," in line and "\n" not in line


def test_other_missing_modules_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise ModuleNotFoundError("No module named 'torch_of_mine'", name="torch_of_mine")

    monkeypatch.setattr("bridle_hf.cli.pretrain.main", fail)
    with pytest.raises(ModuleNotFoundError, match="torch_of_mine"):
        main(["pretrain", "--help"])


def test_the_help_imports_nothing_that_takes_time():
    program = [sys.executable, "-X", "importtime", "-m", "bridle_hf.cli", "--help"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: bridle ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"argparse", "bridle_hf"} <= imported
    assert not imported & {"torch", "transformers", "numpy", "torchvision", "huggingface_hub", "yaml", "datasets"}


def test_names_and_auto_classes_are_there_in_a_command_too():
    program = """
import sys
sys.argv[0] = "bridle"
import bridle_hf
assert "torch" not in sys.modules
assert "BridleModel" in bridle_hf.__all__
from bridle_hf import BridleConfig
from transformers import AutoConfig
assert type(AutoConfig.for_model("bridle")) is BridleConfig
try:
    bridle_hf.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
