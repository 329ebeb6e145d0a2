"""Private names of other libraries that cannot be avoided: docs/architecture.md lists them, and each exists."""

import pkgutil
import re

import pytest


def listed(repository) -> list[str]:
    page = (repository / "docs" / "architecture.md").read_text()
    table = page[page.index("## Names of other libraries that are not public") :]
    return [
        name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    ]


def test_names_that_the_package_relies_on_are_there(repository):
    names = listed(repository)
    assert len(names) > 20
    missing = []
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing, f"another version of a library lacks {', '.join(missing)}: see docs/architecture.md"


@pytest.mark.parametrize("library", ["transformers", "datasets", "accelerate", "torchdata"])
def test_private_imports_are_listed(repository, library):
    """Whatever is imported from a private module or under a private name of these libraries stands in the table."""
    names, found = listed(repository), set()
    for path in (repository / "src").rglob("*.py"):
        for module, imported in re.findall(rf"^\s*from ({library}[\w.]*) import (.+)$", path.read_text(), re.MULTILINE):
            for name in re.findall(r"\b\w+\b", imported.split("#")[0]):
                if name.startswith("_") or any(part.startswith("_") for part in module.split(".")):
                    found.add(f"{module}.{name}")
    assert found <= set(names)
