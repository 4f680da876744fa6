"""The YAML of recipes: a key may stand only once in a section, and 1e-5 is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = "tag:yaml.org,2002:float"
# YAML 1.1 requires a point and a signed exponent in such a number; people, and YAML 1.2, do not.
_NUMBER = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
# What PyYAML quotes of a text may be a piece of a password; single characters and <tokens> are its own.
_QUOTED = re.compile(r""" (?:'[^'<][^']+'|"[^"<][^"]+")""")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping and a value that contains itself; reads dates as text."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:
            raise yaml.MarkedYAMLError(None, None, "a value that contains itself", node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(None, None, f"no value of the type {kind}", node.start_mark) from None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                where = f"lines {lines[name]} and {line}" if line > lines[name] else f"line {line}"
                raise yaml.YAMLError(f"the key {name} stands twice, in {where}")
            lines[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would otherwise read as a number or as a line's end."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))
_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))


def load(text: str) -> Any:
    """The value of the YAML in `text`.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice in one mapping. The message names the line, or the key,
            and quotes no text, which may hold a password.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, _QUOTED.sub("", error.problem or "no YAML")
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise yaml.YAMLError(f"{problem}{where}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise yaml.YAMLError(f"a character that YAML does not allow in line {line}") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def dump(tree: Any) -> str:
    """`tree` as YAML that `load` reads back, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
