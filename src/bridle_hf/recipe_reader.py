"""Recipes: typed dataclasses filled from YAML files, overlays and `key=value` overrides. An unknown key is an error."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from .files import at_home


class RecipeError(ValueError):
    """A recipe that cannot be read: names the key, what it got, what it takes and where it was written."""


class Loader(yaml.SafeLoader):
    """A YAML loader that reads `1e-5` as a number, as in YAML 1.2. In YAML 1.1 it is text, because it has no point.

    `12e4` stays text: identifiers look like that.
    """


class Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes text which `Loader` would read as a number."""


WITHOUT_POINT = "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+][0-9]+$"), list("-+0123456789")
Loader.add_implicit_resolver(*WITHOUT_POINT)
Dumper.add_implicit_resolver(*WITHOUT_POINT)


def read_yaml(text: str) -> Any:
    """The value of a YAML text. `yaml.YAMLError` where it is none."""
    return yaml.load(text, Loader)  # noqa: S506 (a loader of plain values alone)


Find = Callable[[str | Path, Path], Path]  # what a recipe calls another, the folder it is in -> the file
Overrides = Sequence[str] | Mapping[str, Any]


def _in_folder(name: str | Path, folder: Path) -> Path:
    return folder / name


def read_recipe(cls: type, path: str | Path, overrides: Overrides = (), find: Find = _in_folder) -> Any:
    """Reads a recipe file into `cls`.

    Args:
        cls: dataclass to fill.
        path: YAML file. Its key `base` names another file, relative to this one, that it is laid over: sections are
            merged, lists and values replaced.
        overrides: `key=value` with a dotted key (`training.batch_size=8`, `phases.0.steps=10`) and a YAML value. Where
            the key takes text, the value is that text as it is (`data.dataset=2024`, `output_dir=run #2`), unless it is
            in quotes; where it takes text or nothing, `null` is nothing. Or a mapping of dotted keys to values as they
            are; a mapping among these is laid over the section (`{"training": {"batch_size": 8}}`). Text that begins
            with `~/`, here and in files, is a path in the home folder.
        find: gives the file of `path` and of `base`, which may then be names that are no path.

    Raises:
        RecipeError: unknown key, wrong type or missing value, named with the file or override it came from.
    """
    values, origins = _read(find(path, Path()), (), find)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(values, origins, str(key), _plain(value), f"{key}={value!r}", over=True)
    else:
        for override in overrides:
            _override(cls, values, origins, override)
    return _build(cls, values, "", Origins(origins, str(path), partial(_keys_below, cls, values)))


def recipe_to_yaml(recipe: Any) -> str:
    """The recipe as YAML that `read_recipe` reads back: defaults and overrides included, nothing left to look up."""
    return yaml.dump(_plain(dataclasses.asdict(recipe)), Dumper=Dumper, sort_keys=False)


def config_keys(cls: type) -> dict:
    """Field names of a transformers config class, each with the names below it where it is a config of its own.

    A config takes unknown keys silently (they become attributes), so recipes check them against these names.
    """
    below = cls.sub_configs
    return {f.name: config_keys(below[f.name]) if f.name in below else None for f in fields(cls)}


def changed_keys(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two recipes as plain mappings. Lists of equally many sections are
    compared section by section, with keys such as `phases.0.steps`."""
    if _are_sections(before) and _are_sections(now) and len(before) == len(now):
        before, now = _numbered(before), _numbered(now)
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [prefix.rstrip(".")]
    keys = [*before, *(key for key in now if key not in before)]
    return [found for key in keys for found in changed_keys(before.get(key), now.get(key), f"{prefix}{key}.")]


def value_at(recipe: Any, key: str, most: int = 60) -> str:
    """The value at a dotted key of a recipe (a plain mapping) as text, cut to at most `most` characters. A list of
    sections is shown by their kinds."""
    for part in key.split("."):
        recipe = _numbered(recipe) if _are_sections(recipe) else recipe
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    text = ", ".join(str(section.get("kind")) for section in recipe) if _are_sections(recipe) else str(recipe)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(each, dict) for each in value)


def _numbered(sections: list[dict]) -> dict[str, dict]:
    return {str(number): section for number, section in enumerate(sections)}


def _read(path: Path, children: tuple[Path, ...], find: Find) -> tuple[dict, dict]:
    """Values of a file laid over its base, and for every dotted key the file that said it."""
    path = path.resolve()
    if path in children:
        raise RecipeError(f"{path}: `base` leads back to the file itself.")
    if not path.is_file():
        raise RecipeError(f"no recipe file at {path}" + (f" (base of {children[-1]})" if children else ""))
    try:
        values = read_yaml(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {type(values).__name__}; a recipe is a mapping of keys to values.")
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise RecipeError(_mismatch("base", base, "the path of another recipe", str(path)))
    merged, origins = {}, {}
    if base:
        try:
            below = find(base, path.parent)
        except RecipeError as error:
            raise RecipeError(f"{error} (base of {path})") from error
        merged, origins = _read(below, (*children, path), find)
    _merge(merged, values, origins, str(path), "")
    return merged, origins


def _merge(target: dict, update: dict, origins: dict, origin: str, prefix: str) -> None:
    for key, value in update.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value, origins, origin, f"{dotted}.")
        else:
            target[key] = value
            origins[dotted] = origin


def _override(cls: type, values: dict, origins: dict, override: str) -> None:
    """Set a key by `key=value`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value, such as training.batch_size=8.")
    hint = _type_of(cls, key)
    nothing = ("", "null", "~") if hint == str | None else ("",)
    quoted = re.fullmatch(r"""'.*'|".*\"""", text, re.DOTALL)
    if hint in (str, str | None) and text not in nothing and not quoted:
        value = text
    else:
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"the value of override {override!r} is not YAML: {error}") from error
    _set(values, origins, key, value, override)


def _set(values: dict, origins: dict, key: str, value: Any, override: str, over: bool = False) -> None:
    """Put a value at a dotted key; `over`, a mapping is laid over the section that is there."""
    *parents, last = key.split(".")
    target = values
    for parent in parents:
        if isinstance(target, list):
            target = target[_index(target, parent, override)]
        else:
            if not isinstance(target.get(parent), dict | list):
                target[parent] = {}
            target = target[parent]
    place = _index(target, last, override) if isinstance(target, list) else last
    origin = f"override {override!r}"
    if over and isinstance(value, dict) and isinstance(target, dict) and isinstance(target.get(place), dict):
        _merge(target[place], value, origins, origin, f"{key}.")
    else:
        target[place] = value
        origins[key] = origin


def _type_of(cls: type, key: str) -> Any:
    """The type of the field at a dotted key; None for what is no field of a dataclass, such as entries of a list."""
    hint = cls
    for name in key.split("."):
        hint = _section(typing.get_type_hints(hint).get(name)) if is_dataclass(hint) else None
    return hint


def _section(hint: Any) -> Any:
    """The dataclass of a section that may be left out; any other type as it is."""
    sections = [each for each in typing.get_args(hint) if is_dataclass(each)]
    return sections[0] if len(sections) == 1 else hint


def _keys_below(cls: type, values: Mapping, prefix: str = "") -> Iterator[str]:
    """All dotted keys that a recipe may have, except those of list entries."""
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        key = f"{prefix}{f.name}"
        yield key
        section, names = _section(hints[f.name]), f.metadata.get("keys")
        if typing.get_origin(hints[f.name]) is not list and is_dataclass(section):
            yield from _keys_below(section, values, f"{key}.")
        elif names is not None:
            yield from _config_keys_below(names(values), f"{key}.")


def _config_keys_below(keys: Mapping, prefix: str) -> Iterator[str]:
    for name, below in keys.items():
        yield f"{prefix}{name}"
        yield from _config_keys_below(below or {}, f"{prefix}{name}.")


def _index(target: list, text: str, override: str) -> int:
    if not text.isdigit() or int(text) >= len(target):
        raise RecipeError(f"override {override!r}: {text!r} is no place in a list of {len(target)} entries.")
    return int(text)


class Origins:
    """Where the keys of a recipe were written: dotted key -> file or override; `path` for what none of them says.
    `keys` returns all keys that the recipe may have, for suggestions."""

    def __init__(self, origins: dict[str, str], path: str, keys: Callable[[], Iterable[str]]):
        self.origins, self.path, self.keys = origins, path, keys

    def __call__(self, key: str) -> str:
        """Of a key, or else of the section around it."""
        parts = key.split(".")
        candidates = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((self.origins[c] for c in candidates if c in self.origins), self.path)

    def of(self, message: str, prefix: str) -> str:
        """Of the keys that an error message names, wherever they stand below `prefix`; else of the section."""
        words = set(re.findall(r"\w+", message))
        named = [key for key in self.origins if key.startswith(prefix) and key.split(".")[-1] in words]
        depth = max((key.count(".") for key in named), default=0)  # `model` stands in the messages of its keys, too
        found = dict.fromkeys(self.origins[key] for key in named if key.count(".") == depth)
        return " or ".join(found) or self(prefix.rstrip("."))


def _build(cls: type, values: Any, prefix: str, origin: Origins) -> Any:
    """An instance of dataclass `cls` from a mapping, each value converted to its field's type."""
    where = prefix.rstrip(".")
    if not isinstance(values, dict):
        raise RecipeError(_mismatch(where, values, "a mapping of keys to values", origin(where)))
    if hasattr(cls, "prepare"):  # sections that stand for parts of others
        values = cls.prepare(values)
    known = {f.name: f for f in fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in known:
            raise RecipeError(_unknown(dotted, str(key), known, origin))
        if (keys := known[key].metadata.get("keys")) is not None:
            _check_keys(value, keys(values), dotted, origin)
        arguments[key] = _convert(hints[key], value, dotted, origin)
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if name not in arguments and required:
            raise RecipeError(f"`{prefix}{name}` is missing from the recipe; it has no default ({origin(where)}).")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise RecipeError(f"{f'`{where}`: ' if where else ''}{error} ({origin.of(str(error), prefix)})") from error


def _check_keys(value: Any, keys: dict, dotted: str, origin: Origins) -> None:
    for key, below in (value or {}).items() if isinstance(value, dict) else ():
        if key not in keys:
            raise RecipeError(_unknown(f"{dotted}.{key}", str(key), keys, origin))
        if keys[key] is not None:
            _check_keys(below, keys[key], f"{dotted}.{key}", origin)


def _convert(hint: Any, value: Any, key: str, origin: Origins) -> Any:
    """`value` as `hint` wants it, or a RecipeError."""
    kind, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if kind in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        if len(options) > 1 and all(is_dataclass(option) for option in options):
            return _build(_of_kind(options, value, key, origin), value, f"{key}.", origin)
        for option in options:
            try:
                return _convert(option, value, key, origin)
            except RecipeError:
                if option is options[-1] and len(options) == 1:
                    raise
        lists = any(typing.get_origin(option) is list for option in options) and not isinstance(value, list | dict)
        wanted = f"a list, such as [{value}], or null" if lists else " or ".join(_name(a) for a in args)
        raise RecipeError(_mismatch(key, value, wanted, origin(key)))
    if kind is Literal:
        # YAML reads the bare word `no` as false.
        value = "no" if value is False and "no" in args else value
        if value in args:
            return value
        raise RecipeError(_mismatch(key, value, "one of " + ", ".join(map(repr, args)), origin(key)))
    if is_dataclass(hint):
        return _build(hint, {} if value is None else value, f"{key}.", origin)
    if kind in (list, tuple) and isinstance(value, list | tuple):
        variable = kind is list or args[-1] is Ellipsis
        if variable or len(args) == len(value):
            each = [args[0]] * len(value) if variable else args
            pairs = zip(each, value, strict=True)
            return kind(_convert(a, v, f"{key}.{i}", origin) for i, (a, v) in enumerate(pairs))
    if (kind or hint) is dict and (value is None or isinstance(value, dict)):
        return value or {}
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if hint is str and isinstance(value, str):
        return at_home(value)  # of a path
    wanted = "str, which YAML wants in quotes here" if hint is str else _name(hint)
    if kind is list and not isinstance(value, list | dict):
        wanted = f"a list, such as [{value}]"
    raise RecipeError(_mismatch(key, value, wanted, origin(key)))


def _of_kind(classes: list[type], value: Any, key: str, origin: Origins) -> type:
    """The dataclass whose field `kind` has the default that a mapping says; the first where it says none."""
    kinds = {next(f.default for f in fields(cls) if f.name == "kind"): cls for cls in classes}
    kind = value.get("kind", next(iter(kinds))) if isinstance(value, dict) else next(iter(kinds))
    if kind not in kinds:
        takes = "one of " + ", ".join(map(repr, kinds))
        raise RecipeError(_mismatch(f"{key}.kind", kind, takes, origin(f"{key}.kind")))
    return kinds[kind]


def _name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _mismatch(key: str, value: Any, wanted: str, origin: str) -> str:
    return f"`{key}` is {value!r} ({type(value).__name__}); it takes {wanted} ({origin})."


def _unknown(dotted: str, key: str, known: Iterable[str], origin: Origins) -> str:
    """The error message for an unknown key. It suggests the same key in another section, or keys with similar names."""
    keys = list(origin.keys())
    every = {each.split(".")[-1] for each in keys}

    def elsewhere(names: list[str]) -> list[str]:
        return [each for each in keys if each.split(".")[-1] in names]

    found = (
        elsewhere([key])
        or [dotted.removesuffix(key) + each for each in difflib.get_close_matches(key, list(known))]
        or elsewhere(difflib.get_close_matches(key, every, n=1, cutoff=0.8))
    )
    hint = f"did you mean {' or '.join(found)}?" if found else f"known keys here: {', '.join(sorted(known))}."
    return f"unknown key `{dotted}` ({origin(dotted)}); {hint}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, PathLike):
        return fspath(value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
