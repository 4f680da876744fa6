"""Every key that a recipe may have, as the models describe it, and the keys nearest to an unknown one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

BASE: Schema = {
    "type": ["string", "null"],
    "description": "Path of the recipe that this one builds on, relative to this file. The keys of this file are "
    "merged into it; a resolved config has no base.",
}
"""The one key that belongs to the file and not to the run."""
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class Key:
    """One key, or a section of them. `path` is dotted, with N for an index of a list."""

    path: str
    type: str
    default: str
    unit: str
    meaning: str
    section: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


def documented(model: type[BaseModel]) -> list[Key]:
    """`base` and all keys of a config model, each section before its own keys."""
    schema = model.model_json_schema()
    return [Key("base", "text", "", "", BASE["description"]), *_walk(schema, schema.get("$defs", {}), "")]


def _walk(section: Schema, models: Schema, prefix: str) -> Iterator[Key]:
    """The keys of a section, plain ones first."""
    required = section.get("required", ())
    inner: list[tuple[Key, Schema, str]] = []
    for name, schema in section["properties"].items():
        path = prefix + name
        default = "required" if name in required else _default(schema)
        model, is_list = _model(schema, models)
        key = Key(path, _type(schema), default, _unit(schema), _meaning(schema, model), model is not None)
        if model is None:
            yield key
        else:
            inner.append((key, model, f"{path}.N." if is_list else f"{path}."))
    for key, model, below in inner:
        yield key
        yield from _walk(model, models, below)


def _unit(schema: Schema) -> str:
    """The unit of a number, also of one that may be null."""
    return next((one["unit"] for one in (schema, *schema.get("anyOf", ())) if "unit" in one), "")


def _default(schema: Schema) -> str:
    return json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else ""


def _model(schema: Schema, models: Schema) -> tuple[Schema | None, bool]:
    """The model of a section's keys, and whether the section is a list."""
    for one in schema.get("anyOf", [schema]):
        for part, is_list in ((one, False), (one.get("items", {}), True)):
            if "$ref" in part:
                return models[part["$ref"].rpartition("/")[2]], is_list
    return None, False


def _meaning(schema: Schema, model: Schema | None) -> str:
    said = [(model or {}).get("description", ""), schema.get("description", "")]
    return " ".join(" ".join(said).split())


def _type(schema: Schema) -> str:
    """A type with its bounds, in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "$ref" in schema:
        return "section"
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        kinds = list(dict.fromkeys(_type(one) for one in schema.get("prefixItems", [schema.get("items", {})])))
        count = f" of {schema['maxItems']}" if "maxItems" in schema and "prefixItems" in schema else ""
        return f"list{count}: {' and '.join(kinds)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of names to: {_type(values)}" if isinstance(values, dict) else "mapping"
    return {"string": "text", "boolean": "true or false"}.get(kind, kind) + _bounds(schema)


def _bounds(schema: Schema) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema)
    return f" {bounds}" if bounds else ""


def subtree(path: str, keys: Sequence[Key]) -> list[Key]:
    """The key at `path` and all keys below it; empty if the key is unknown. Any index matches N."""
    path = _numbered(path)
    return [key for key in keys if key.path == path or key.path.startswith(f"{path}.")]


def hint(path: str, keys: Sequence[Key]) -> str:
    """A hint: the keys to write instead of an unknown key."""
    near = nearest(path, keys)
    if not near:
        return "; `bicot config` lists all keys"
    return f"; did you mean {', '.join(near[:-1])}{' or ' if near[1:] else ''}{near[-1]}?"


def nearest(path: str, keys: Sequence[Key]) -> list[str]:
    """Up to three known keys, best first: a similar key of the same section, keys of the same name in other
    sections, similar keys anywhere; or else keys whose description has the same words.
    """
    wanted = _numbered(path)
    section, _, name = wanted.rpartition(".")
    siblings = {key.name: key.path for key in keys if key.path.rpartition(".")[0] == section}
    alike = set(get_close_matches(name, {key.name for key in keys}, n=5, cutoff=0.75))
    found = [
        *(siblings[one] for one in get_close_matches(name, siblings, n=2, cutoff=0.7)),
        *(key.path for key in keys if key.name == name),
        *get_close_matches(wanted, [key.path for key in keys], n=1, cutoff=0.8),
        *(key.path for key in keys if key.name in alike),
    ]
    if not found:
        words = set(name.lower().split("_"))
        plain = [key for key in keys if not key.section]
        found = [key.path for key in plain if words <= set(re.findall(r"\w+", key.meaning.lower()))]
    index = re.search(r"\.(\d+)(?=\.)", path)
    return [one.replace(".N.", f".{index[1]}.") if index else one for one in dict.fromkeys(found)][:_NEAREST]


def _numbered(path: str) -> str:
    """A path with N for indices; a reward service may go by its name, as on the command line."""
    path = re.sub(r"^rewards\.services\.[^.]+", "rewards.services.N", path)
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", path)
