"""The floor plan: which way imports point, what may travel to the Hub, how long a file may be, what no file may hold.

Each rule is a function of source text, tried on text that breaks it and then on every file it binds.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "bridle_hf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRAVELLING = [path for path in SOURCES if path.parent == PACKAGE and path.stem.endswith("_bridle")]
PYTHON = sorted(p for folder in ("src", "examples", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
FRONT = [ROOT / name for name in ("README.md", "Makefile", "setup.cfg", "pyproject.toml", "CITATION.cff")]
TEXTS = (
    PYTHON
    + sorted(p for f in ("src", "docs", "examples", "model_cards", "benchmarks") for p in (ROOT / f).rglob("*.[ymj]*"))
    + FRONT
    + sorted((ROOT / ".ci").iterdir())
)

# Imports point from a higher floor to the same or a lower one.
FLOORS = [
    {
        "checks_bridle",
        "codebook_bridle",
        "codebook_metrics",
        "extras",
        "files",
        "hub_connection",
        "losses_bridle",
        "markdown",
        "masking_bridle",
        "outputs_bridle",
        "recipe_reader",
        "recipes",
        "video_decoding_bridle",
    },
    {"quantization_bridle", "layers_bridle"},
    {
        "clip_features_bridle",
        "codebook_training_bridle",
        "cold_start_bridle",
        "fixed_quantization_bridle",
        "learned_quantization_bridle",
        "swin_bridle",
    },
    {"configuration_bridle"},
    {
        "modeling_bridle",
        "filter_bank_bridle",
        "feature_extraction_bridle",
        "image_processing_bridle",
        "video_processing_bridle",
        "pipeline_bridle",
    },
    {"demo_data"},
    {"data"},
    {"saved_models"},
    {"evaluation"},
    {"training"},
    {"quantizer_experiments"},
    {"finetuning"},
    {"loading"},
    {"hub"},
    {"public"},  # the names that `import bridle_hf` gives
    {"cli"},
    {""},  # the front page, `bridle_hf/__init__.py`
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# huggingface_hub is a part of transformers; its strict dataclasses are what a v5 configuration is made of.
TRAVELLERS_MAY_IMPORT = {"torch", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names} - {"__future__"}


def module_name(path: Path) -> str:
    """`training/loop.py` -> `training.loop`, the package's own `__init__.py` -> the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> list[tuple[str, str]]:
    """All imports of a file, wherever they stand: (module, kind), kind being house, flat or outside.

    House modules are named below `bridle_hf`; flat ones are `from .sibling import name`.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "outside") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module, "outside"))
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".") if module else []
            above = above[: len(above) + is_package - node.level]
            if node.module is None:
                found += [(".".join([*above, alias.name]), "house") for alias in node.names]
            else:
                flat = node.level == 1 and "." not in node.module
                found.append((".".join([*above, node.module]), "flat" if flat else "house"))
    return [
        (name.removeprefix("bridle_hf").lstrip("."), "house") if name.split(".")[0] == "bridle_hf" else (name, kind)
        for name, kind in found
    ]


def upward_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    floor = FLOOR[module.split(".")[0]]
    names = [name for name, kind in imports(source, module, is_package) if kind != "outside"]
    return [name for name in names if FLOOR[name.split(".")[0]] > floor]


def guarded_imports(source: str) -> set[str]:
    """What a file imports only where it is installed (`try: ... except ImportError:`), which the Hub lets pass."""
    guards = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Try))
    guards = (node for node in guards if any("ImportError" in ast.unparse(h.type or h) for h in node.handlers))
    return {name for node in guards for line in node.body for name, _ in imports(ast.unparse(line), "")}


def untravellable_imports(source: str, module: str) -> list[str]:
    allowed = TRAVELLERS_MAY_IMPORT | {name.split(".")[0] for name in guarded_imports(source)}
    return [
        name
        for name, kind in imports(source, module)
        if kind == "house" or (kind == "outside" and name.split(".")[0] not in allowed)
    ]


def forbidden_calls(source: str) -> list[str]:
    """Calls of print and whatever can run code out of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name == "print" or keywords.get("allow_pickle") == "True":
                found.append(name)
            elif name == "torch.load" and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
    unpicklers = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    return found + [name for name, _ in imports(source, "") if name.split(".")[0] in unpicklers]


def absolute_paths(text: str) -> list[str]:
    return re.findall(r"(?<![\w.}/)-])/(?:work|home|root|tmp|opt|mnt|Users|farm|data)/[\w./-]*|[A-Z]:\\\\\w+", text)


MODALITY_NAMES = {"audio", "image", "video"}


def modality_tests(source: str) -> list[str]:
    """Decisions by the name of a modality or of a head: comparisons, tables and look-ups keyed by it, endings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        constants = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            constants = operands + [e for each in operands for e in getattr(each, "elts", ())]
        elif isinstance(node, ast.Dict):
            constants = node.keys
        elif isinstance(node, ast.Subscript):
            constants = [node.slice]
        elif isinstance(node, ast.match_case):
            constants = [each.value for each in ast.walk(node.pattern) if isinstance(each, ast.MatchValue)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "get":
                constants = node.args[:1]
            elif node.func.attr in ("endswith", "startswith"):
                found += [ast.unparse(node) for each in node.args if "Classification" in ast.unparse(each)]
        names = {each.value for each in constants if isinstance(each, ast.Constant) and isinstance(each.value, str)}
        if names & MODALITY_NAMES:
            found.append(ast.unparse(node))
    return found


def reachable(start: set[str], graph: dict[str, set[str]]) -> set[str]:
    """The modules that some import, directly or not."""
    found, new = set(), set(start)
    while new:
        found |= new
        new = {name for each in new for name in graph.get(each, ())} - found
    return found


def test_imports_are_read_in_every_form():
    source = (
        "import torch.nn\nfrom . import a\nfrom .b import c\nfrom ..d import e\ndef f():\n    from bridle_hf.g import h"
    )
    assert sorted(imports(source, "training.loop")) == [
        ("d", "house"), ("g", "house"), ("torch.nn", "outside"), ("training.a", "house"), ("training.b", "flat"),
    ]  # fmt: skip
    assert imports("from .b import c", "training", is_package=True) == [("training.b", "flat")]


def test_rules_catch_what_breaks_them():
    assert upward_imports("from .modeling_bridle import x", "layers_bridle") == ["modeling_bridle"]
    assert upward_imports("from ..hub.convert import x", "training.loop") == ["hub.convert"]
    assert not upward_imports("from ..data.streaming import x", "training.loop")
    broken = (
        "from __future__ import annotations\nimport tqdm\nfrom . import a\nfrom bridle_hf.b import c\nfrom ..d import e"
    )
    assert len(untravellable_imports(broken, "layers_bridle")) == 5
    assert not untravellable_imports("import math\nimport torch.nn.functional as F\nfrom .a import b", "layers_bridle")
    guarded = "try:\n    from tqdm import tqdm\nexcept ImportError:\n    tqdm = None"
    assert not untravellable_imports(guarded, "layers_bridle")
    assert untravellable_imports(guarded.replace("ImportError", "KeyError"), "layers_bridle") == ["tqdm"]
    assert len(forbidden_calls("print(1)\nimport pickle\ntorch.load(p)\nnp.load(p, allow_pickle=True)")) == 4
    assert not forbidden_calls("torch.load(path, weights_only=True)\nlogger.info('print')")
    assert absolute_paths("open('" + "/ho" + "me/me/x.wav')") and absolute_paths("cd " + "/tm" + "p/x")
    assert not absolute_paths("../shared/data/esc10 and audio/mnt/x, https://a.b/data/x")


def test_decisions_by_a_modalitys_name_are_found():
    decided = """
if config.modality == "audio": pass
if modality in ("image", "video"): pass
sizes = {"audio": 1}
row = TABLE["video"]
row = TABLE.get("image")
if name.endswith("Classification"): pass
match modality:
    case "audio" | "image": pass
"""
    assert len(modality_tests(decided)) == 7
    assert not modality_tests(
        'def f(modality="audio"): return MODALITIES[modality]\nFormat("video", names)\ntask == "audio-x"'
    )


def test_modules_are_followed_through_others():
    assert reachable({"a"}, {"a": {"b"}, "b": {"c", "a"}, "d": {"e"}}) == {"a", "b", "c"}


def offenders(paths: list[Path], rule) -> dict[str, list]:
    """What breaks a rule, by file."""
    found = {str(path.relative_to(ROOT)): rule(path) for path in paths}
    assert found, "the rule binds no file: the floor plan of this test is out of date"
    return {name: broken for name, broken in found.items() if broken}


def test_imports_point_down():
    assert not offenders(SOURCES, lambda p: upward_imports(p.read_text(), module_name(p), p.stem == "__init__"))


def import_graph() -> dict[str, set[str]]:
    """Module of the house -> those it imports; a package's `__init__` only gathers the names of its own files."""
    graph = {}
    for path in SOURCES:
        found = [] if path.stem == "__init__" else imports(path.read_text(), module_name(path))
        graph[module_name(path)] = {name for name, kind in found if kind != "outside"}
    return {name: targets & set(graph) for name, targets in graph.items()}


def test_imports_have_no_cycle():
    graph = import_graph()
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert not graph, f"these modules import each other: {sorted(graph)}"


def test_reading_data_imports_no_model():
    """Workers of a loader that are not forked import what `data` imports."""
    graph = import_graph()
    readers = {name for name in graph if name.split(".")[0] in ("data", "demo_data")}
    # Quantizers come with the config, whose choices are theirs.
    models = {name for name in graph if name in ("modeling_bridle", "layers_bridle", "swin_bridle")}
    assert readers and models and not reachable(readers, graph) & models


def test_only_the_table_of_modalities_knows_their_names():
    """Outside `data/` and the files that travel; two tables of the Hub are keyed by them, each in one place."""
    tables = {PACKAGE / "hub" / "key_maps.py", PACKAGE / "hub" / "reload.py"}
    free = {"data", "demo_data"}
    bound = [p for p in SOURCES if p not in {*TRAVELLING, *tables} and p.relative_to(PACKAGE).parts[0] not in free]
    assert not offenders(bound + sorted((ROOT / "examples").rglob("*.py")), lambda p: modality_tests(p.read_text()))
    assert all(len(modality_tests(path.read_text())) == 1 for path in tables)


def test_travelling_files_import_only_siblings_and_what_the_hub_has():
    assert not offenders(TRAVELLING, lambda p: untravellable_imports(p.read_text(), module_name(p)))


def test_files_can_be_read_in_one_sitting():
    ceilings = dict.fromkeys(TRAVELLING, 600) | {PACKAGE / "modeling_bridle.py": 700}
    lengths = {p: len(p.read_text().splitlines()) for p in PYTHON}
    assert not offenders(PYTHON, lambda p: [lengths[p]] if lengths[p] > ceilings.get(p, 400) else [])


def test_sources_neither_print_nor_unpickle():
    assert not offenders(SOURCES, lambda p: forbidden_calls(p.read_text()))


def test_no_absolute_paths():
    assert not offenders(TEXTS, lambda p: absolute_paths(p.read_text()))
