"""Composes a recipe's keys from the file, the recipes that it builds on, and the command line's overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipe.errors import ConfigError
from recipe.yaml_text import load

Tree = dict[str, Any]
Location = tuple[int | str, ...]
"""Keys and list indices that lead to a value, as pydantic reports them."""


@dataclass(frozen=True)
class Composed:
    """All keys of a recipe, and the source of each."""

    path: Path
    tree: Tree
    files: tuple[tuple[Path, Tree], ...]
    overrides: tuple[tuple[str, Tree], ...] = ()

    def source(self, location: Location) -> str:
        """The override or the file that sets a key last; the recipe if none does."""
        said = [*reversed(self.overrides), *self.files]
        return str(next((who for who, tree in said if _says(tree, self.tree, location)), self.path))

    def key(self, location: Location) -> Location:
        """`location` up to its value, without the type that pydantic adds for a union."""
        node: Any = self.tree
        for depth, part in enumerate(location):
            if not isinstance(node, dict | list):
                return location[:depth]
            node = _get(node, part)
        return location


def compose(path: Path, overrides: Sequence[str] = ()) -> Composed:
    """Read a recipe and its bases, and apply overrides such as `rewards.services.hps.weight=0.5`.

    Mappings are merged key by key; a list or a value replaces the base's. A mapping instead of a list of named items
    changes the items by name; null leaves an item out.

    Raises:
        ConfigError: a file cannot be read, the `base` keys form a circle, or an override is malformed.
    """
    files = _chain(path)
    tree: Tree = {}
    for file, own in reversed(files):
        tree = _with_list(_merge(tree, own, f"{file}: "), f"{file}: ", nulls=False)
    said = []
    for override in overrides:
        key, value = _parse(override)
        _set(tree, key, value)
        said.append((_named(key), _nested(key, value)))
    of_rewards = [who for who, own in said if "rewards" in own]
    return Composed(path, _with_list(tree, f"{[path, *of_rewards][-1]}: "), tuple(files), tuple(said))


def _chain(path: Path) -> list[tuple[Path, Tree]]:
    """A recipe and all its bases, the lowest last, with the key `base` removed."""
    files: list[tuple[Path, Tree]] = []
    while True:
        tree = _read(path, files[-1][0] if files else None)
        base = tree.pop("base", None)
        files.append((path, tree))
        if base is None:
            return files
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: write the path of one recipe, relative to this file")
        if base.startswith("~"):
            raise ConfigError(f"{path}: base: {base}: a recipe does not expand ~; write the whole path")
        path = path.parent / base
        try:
            again = path.resolve() in {file.resolve() for file, _ in files}
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, characters that no path has
            raise ConfigError(f"{files[-1][0]}: base: {base!r}: {error}") from error
        if again:
            circle = " > ".join(str(file) for file in [*(file for file, _ in files), path])
            raise ConfigError(f"{files[-1][0]}: base: recipes build on one another in a circle: {circle}")


def _read(path: Path, above: Path | None) -> Tree:
    try:
        tree = load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{above}: base: {path}: no such file" if above else f"{path}: no such run config"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{f'{above}: base: ' if above else ''}{path}: cannot be read: {why}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a run config is a mapping of keys, this holds {type(tree).__name__}")
    return tree


def _merge(base: Any, own: Any, where: str) -> Any:
    """`own` merged into `base`; `where` is the file and key of both."""
    if isinstance(base, dict) and isinstance(own, dict):
        return {**base, **{key: _merge(base.get(key), value, f"{where}{key}.") for key, value in own.items()}}
    if isinstance(own, dict) and _are_named(base):
        names = _names(base)
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}{name}: the base has two of this name, so none can be changed by name")
        for name, entry in own.items():
            if entry is None and name not in names:
                raise ConfigError(f"{where}{name}: null leaves out one of the base's, and it has {', '.join(names)}")
        return _listed(_merge(dict(zip(names, base, strict=True)), own, where), where)
    return own


def _are_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value)


def _names(entries: list[Any]) -> list[str]:
    return [str(entry["name"]) for entry in entries if isinstance(entry, dict) and "name" in entry]


def _with_list(tree: Tree, where: str, nulls: bool = True) -> Tree:
    """`tree` with rewards.services as a list, even if it was written as a mapping.

    `nulls` false refuses services that are null: the merge has already removed those that leave out a base's service.
    """
    rewards = tree.get("rewards")
    if not isinstance(rewards, dict) or not isinstance(rewards.get("services"), dict | list):
        return tree
    services, where = rewards["services"], f"{where}rewards.services."
    for name, entry in enumerate(services) if isinstance(services, list) else services.items():
        if entry is None and not nulls:
            raise ConfigError(f"{where}{name}: null leaves out one of the base's by its name, and there is none here")
    return {**tree, "rewards": {**rewards, "services": _listed(services, where)}}


def _listed(entries: Tree | list[Any], where: str) -> list[Any]:
    """Named items as a list, also from a mapping by name. Items that are null are left out."""
    if isinstance(entries, list):
        return [entry for entry in entries if entry is not None]
    listed = []
    for name, entry in entries.items():
        if entry is not None and not isinstance(entry, dict):
            raise ConfigError(f"{where}{name}: is a section of keys, not a value")
        if entry is not None:
            listed.append({"name": name, **entry})
    return listed


def _parse(override: str) -> tuple[list[str], Any]:
    text, equals, value = override.partition("=")
    key = text.split(".")
    if not equals and not re.fullmatch(r"\w[\w.]*", text):
        raise ConfigError("an override without =: write key.subkey=value")  # it may be a value that a space cut off
    if not equals or "" in key:
        raise ConfigError(f"override {text}{'=...' if equals else ''}: write key.subkey=value")
    if key[0] == "base":
        raise ConfigError(f"{_named(key)}: base is a key of the file; give the other recipe to the command")
    try:
        return key, load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_named(key)}: the value is not valid YAML") from error


def _named(key: Sequence[str]) -> str:
    """An override in messages, without its value: that may hold a password."""
    return f"override {'.'.join(key)}=..."


def _set(tree: Tree, key: list[str], value: Any) -> None:
    """Put a value into `tree`; creates sections on the path that are absent or null."""
    parents = key[:-1]
    node: Any = tree
    for depth, part in enumerate(parents):
        place = _place(node, key, depth)
        if isinstance(node, dict) and node.get(part) is None:
            if _INDEX.fullmatch(key[depth + 1]):
                whole = ".".join(key[: depth + 1])
                raise ConfigError(f"{_named(key)}: the recipe has no {whole}; give the whole list, {whole}=[...]")
            node[part] = {}
        node[place] = copy(node[place])  # a YAML anchor may share this section with others
        node = node[place]
    node[_place(node, key, len(parents))] = value


def _place(node: Any, key: list[str], depth: int) -> int | str:
    """The part of `key` at `depth` in a mapping, or its position in a list, given by index or name."""
    part = key[depth]
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"{_named(key)}: {'.'.join(key[:depth])} is a value and has no keys")
    named = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if part in named:
        return named.index(part)
    if _INDEX.fullmatch(part) and int(part) < len(node):
        return int(part)
    names = f", nor one of its names ({', '.join(_names(node))})" if _names(node) else ""
    raise ConfigError(f"{_named(key)}: {part!r} is no index of a list of {len(node)}{names}")


def _nested(key: list[str], value: Any) -> Any:
    return {key[0]: _nested(key[1:], value)} if key else value


def _says(tree: Any, composed: Any, location: Location) -> bool:
    """Whether a file or an override has the key at `location`; it may use names instead of indices."""
    for part in location:
        entry = _get(composed, part)
        if isinstance(tree, dict) and isinstance(part, int):
            part = str(part) if str(part) in tree else str(_get(entry, "name"))
        tree, composed = _get(tree, part), entry
        if tree is _ABSENT:
            return False
    return True


def _get(node: Any, part: int | str) -> Any:
    try:
        return node[part]
    except (KeyError, IndexError, TypeError):
        return _ABSENT


_ABSENT = object()
_INDEX = re.compile(r"[0-9]{1,9}")
