"""A run's config without passwords and keys, for a report's readers or a tracker."""

from __future__ import annotations

import re
from typing import Any

import yaml

_SECRET = re.compile(r"(?i)(\w+[_-])?(password|passwd|secret|token|credentials?|(api|access|private|secret)[_-]?key)")
_PASSWORD_IN_URL = re.compile(r"(\w://[^\s:/@]*:)[^\s/]+@")
_HIDDEN = "***"


def public_config(text: str) -> dict[str, Any]:
    """A resolved config's YAML as a tree without secrets.

    Raises:
        yaml.YAMLError: it is no YAML.
        ValueError: it holds no mapping.
    """
    tree = yaml.safe_load(text)
    if not isinstance(tree, dict):
        raise ValueError("it holds no mapping of keys")
    return dict(without_secrets(tree))


def without_secrets(tree: Any) -> Any:
    """The tree with *** in place of passwords in URLs, and of the values of keys with secret-sounding names."""
    if isinstance(tree, dict):
        return {
            key: _HIDDEN if value and _SECRET.fullmatch(str(key)) else without_secrets(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [without_secrets(value) for value in tree]
    return _PASSWORD_IN_URL.sub(rf"\1{_HIDDEN}@", tree) if isinstance(tree, str) else tree


def as_yaml(tree: dict[str, Any]) -> str:
    """The tree as YAML, formatted like a config."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def named(value: Any) -> Any:
    """A list of mappings that have names, as a mapping by name; anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {item["name"]: item for item in value}
    return value


def flat_keys(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, such as `rewards.services.detector.weight`; items of a list are named by their names."""
    tree = named(tree)
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        name: value
        for key, item in tree.items()
        for name, value in flat_keys(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }
