"""Composes a recipe's keys from the file, the recipes that it builds on, and the command line's overrides."""

from __future__ import annotations

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
        tree = _with_list(_merge(tree, own, f"{file}: "))
    said = []
    for override in overrides:
        key, value = _parse(override)
        _set(tree, key, value, override)
        said.append((f"override {'.'.join(key)}=...", _nested(key, value)))  # its value may hold a password
    return Composed(path, _with_list(tree), tuple(files), tuple(said))


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
        path = path.parent / base
        if path.resolve() in {file.resolve() for file, _ in files}:
            circle = " > ".join(str(file) for file in [*(file for file, _ in files), path])
            raise ConfigError(f"{files[-1][0]}: base: recipes build on one another in a circle: {circle}")


def _read(path: Path, above: Path | None) -> Tree:
    try:
        tree = load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{above}: base: {path}: no such file" if above else f"{path}: no such run config"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a run config is a mapping of keys, this holds {type(tree).__name__}")
    return tree


def _merge(base: Any, own: Any, where: str) -> Any:
    """`own` merged into `base`; `where` is the file and key of both."""
    if isinstance(base, dict) and isinstance(own, dict):
        return {**base, **{key: _merge(base.get(key), value, f"{where}{key}.") for key, value in own.items()}}
    if isinstance(own, dict) and _are_named(base):
        names = _names(base)
        for name, entry in own.items():
            if entry is None and name not in names:
                raise ConfigError(f"{where}{name}: null leaves out one of the base's, and it has {', '.join(names)}")
        return _listed(_merge(dict(zip(names, base, strict=True)), own, where))
    return own


def _are_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value)


def _names(entries: list[Any]) -> list[str]:
    return [str(entry["name"]) for entry in entries if isinstance(entry, dict) and "name" in entry]


def _with_list(tree: Tree) -> Tree:
    """`tree` with rewards.services as a list, even if it was written as a mapping."""
    rewards = tree.get("rewards")
    if not isinstance(rewards, dict) or not isinstance(rewards.get("services"), dict | list):
        return tree
    return {**tree, "rewards": {**rewards, "services": _listed(rewards["services"])}}


def _listed(entries: Tree | list[Any]) -> list[Any]:
    """Named items as a list, also from a mapping by name. Items that are null are left out."""
    if isinstance(entries, list):
        return [entry for entry in entries if entry is not None]
    return [
        {"name": name, **entry} if isinstance(entry, dict) else entry
        for name, entry in entries.items()
        if entry is not None
    ]


def _parse(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key.subkey=value")
    if key == "base":
        raise ConfigError(f"override {override!r}: base is a key of the file; give the other recipe to the command")
    try:
        return key.split("."), load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _set(tree: Tree, key: list[str], value: Any, override: str) -> None:
    """Put a value into `tree`; creates sections on the path that are absent or null."""
    *parents, last = key
    node: Any = tree
    for depth, part in enumerate(parents):
        place = _place(node, part, parents[:depth], override)
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node[place] = copy(node[place])  # a YAML anchor may share this section with others
        node = node[place]
    node[_place(node, last, parents, override)] = value


def _place(node: Any, part: str, parents: list[str], override: str) -> int | str:
    """The key of `part` in a mapping, or its position in a list, given by index or name."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value and has no keys")
    named = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if part in named:
        return named.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    names = f", nor one of its names ({', '.join(_names(node))})" if _names(node) else ""
    raise ConfigError(f"override {override!r}: {part!r} is no index of a list of {len(node)}{names}")


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
