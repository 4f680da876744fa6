"""A run's config without passwords and keys, for a report's readers or a tracker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from recipe.yaml_text import dump, load

# Of keys as `_words` writes them: what says it anywhere, and what says it at the end.
_SECRET = re.compile(
    r"(.*_)?[a-z0-9]*(password|passwd|passphrase|secret|credential|authorization|bearer|cookie|apikey)s?(_.*)?"
    r"|(.*_)?(api|access|private)_keys?(_.*)?"
    r"|(.*_)?([a-z0-9]*token|auth|pass|pwd)s?"
    r"|.+_keys?"
)
_COUNT = re.compile(r"(.*_)?tokens")
_IN_QUERIES = {"key", "sig", "signature"}
_URL = re.compile(r"([A-Za-z][\w+.-]*)://(\S*)")
_PLACE = re.compile(r"(\[[^\]]*\]|[^:@/\[\]]+)(:[0-9]*)?(?=[/?#]|$)")
"""A host, with a port or without."""
_QUERY_VALUE = re.compile(r"(?<=[?&;#])([^=&;#?]+)=[^&;#]+")
_BEARER = re.compile(r"(?i)(\bauthorization: *)[^\n]+|(\bbearer +)[\w.~+/=-]{8,}")
_HIDDEN = "***"


def public_config(text: str) -> dict[str, Any]:
    """A resolved config's YAML as a tree without secrets.

    Raises:
        yaml.YAMLError: it is no YAML.
        ValueError: it holds no mapping.
    """
    tree = load(text)
    if not isinstance(tree, dict):
        raise ValueError("it holds no mapping of keys")
    return dict(without_secrets(tree))


def without_secrets(tree: Any) -> Any:
    """The tree with *** in place of users and passwords in URLs, and of the values of secret-sounding keys."""
    if isinstance(tree, dict):
        return {
            key: _HIDDEN if value and _is_secret(key, value) else without_secrets(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [without_secrets(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    return _BEARER.sub(lambda found: (found[1] or found[2]) + _HIDDEN, _URL.sub(_public_url, tree))


def shown_value(keys: Sequence[int | str], value: Any) -> Any:
    """The value at a path of keys as an error may show it."""
    return _HIDDEN if any(_is_secret(key, value) for key in keys) else without_secrets(value)


def public_override(override: str) -> str:
    """An override KEY=VALUE, its value *** where any of it is secret."""
    key, _, text = override.partition("=")
    value = load(text)
    return override if shown_value(key.split("."), value) == value else f"{key}={_HIDDEN}"


def _is_secret(key: Any, value: Any) -> bool:
    """Whether a key names a secret. A number of tokens is none."""
    words = _words(str(key))
    is_number = isinstance(value, int | float)
    return bool(_SECRET.fullmatch(words)) and not (is_number and _COUNT.fullmatch(words))


def _words(key: str) -> str:
    """`openaiAPIKey`, `openai-api-key` and the like as openai_api_key."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")


def _public_url(found: re.Match[str]) -> str:
    """A URL without users and passwords, which may hold / and ? and @, and without the secret values behind its ?."""
    scheme, rest = found[1], found[2]
    of_redis = scheme.lower() in ("redis", "rediss", "unix")
    place = _PLACE.match(rest)
    if "@" in rest and (of_redis or not place):
        rest = f"{_HIDDEN}@{rest.rpartition('@')[2]}"

    def value(option: re.Match[str]) -> str:
        name = unquote(option[1])
        hidden = of_redis or _words(name) in _IN_QUERIES or _is_secret(name, "")
        return f"{option[1]}={_HIDDEN}" if hidden else option[0]

    return f"{scheme}://{_QUERY_VALUE.sub(value, rest)}"


def as_yaml(tree: dict[str, Any]) -> str:
    """The tree as YAML, formatted like a config."""
    return dump(tree)


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
