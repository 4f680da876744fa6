"""The documentation of all keys: docs/config.md (`python -m recipe.key_docs`) and the output of `bicot config`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from recipe.config import RunConfig
from recipe.errors import ConfigError
from recipe.keys import Key, documented, hint, subtree

_INTRO = """\
# The keys of a recipe

`make config-docs` generates this page from the config models of all rooms. `bicot config KEY` prints the same text
for one key or section, `bicot config` for all keys.

A recipe is a YAML file of these keys. An unknown key is an error that names the nearest known ones. A key that stands
twice in one section is an error that names both lines. `1e-5` is a number, `2026-11-26` a text. Paths are relative to
the working directory, except for `base`.

**On the command line** write a key with dots, and its value in YAML: `learner.optimizer.lr=1e-5`,
`held_out=null`, `'prompts.exclude=[data/test.jsonl]'`. Name an item of a list by its index, which starts at 0; a
reward service also by its name: `rewards.services.1.weight=0`, `rewards.services.vqa.weight=0`.

**A recipe can build on another recipe**, which can build on a third:

    # my_run.yaml
    base: ../deploy/runs/t2i_r1_7b.yaml   # relative to this file
    folder: runs/mine
    learner: {optimizer: {lr: 5.0e-6}}    # sections are merged key by key
    rewards:
      services:                           # a mapping changes the base's list by name:
        hps: {weight: 0.5}                #   only this key differs
        vqa: null                         #   this reward is left out
        brightness: {target: "my_rewards:Brightness"}   # and this one is added at the end

Any other value or list replaces the base's value as a whole. So `services`, written as a list, is the whole list.
`config.yaml` in the run's folder is complete: it has every key, and no `base`.

**In an editor** the YAML language server (VS Code's YAML extension, Neovim, Emacs and others) completes and checks
keys. Write the schema beside your recipes, and name it in each recipe's first line:

    bicot config --schema > recipe.schema.json

    # yaml-language-server: $schema=recipe.schema.json

A number without a unit is dimensionless. `N` stands for an index of a list."""


_TABLE = "| key | type | default | unit | meaning |\n| --- | --- | --- | --- | --- |"


def markdown() -> str:
    """The text of docs/config.md."""
    parts = [_INTRO]
    for key in documented(RunConfig):
        if key.section:
            parts += [f"## `{key.path}`", _section(key)]
            continue
        if not parts[-1].startswith(_TABLE):
            parts.append(_TABLE)
        parts[-1] += f"\n| {' | '.join(_cells(key))} |"
    return "\n\n".join(parts) + "\n"


def _cells(key: Key) -> list[str]:
    default = key.default if key.default in ("", "required") else f"`{key.default}`"
    return [cell.replace("|", "\\|") for cell in (f"`{key.path}`", key.type, default, key.unit, key.meaning)]


def _section(key: Key) -> str:
    kind = {"section": "", "section or null": "A section, or null. "}.get(key.type, "A list of sections. ")
    default = {"required": "Required. ", "null": "null by default. "}.get(key.default, "")
    return textwrap.fill(f"{kind}{default}{key.meaning}", 118, break_long_words=False, break_on_hyphens=False)


def terminal(path: str | None, width: int) -> str:
    """The text of `bicot config` for one key, a section or all keys. Lines have at most `width` characters if words
    allow.

    Raises:
        ConfigError: the key is unknown; the message names the nearest ones.
    """
    keys = documented(RunConfig)
    found = keys if path is None else subtree(path, keys)
    if not found:
        raise ConfigError(f"{path or repr('')}: unknown key{hint(path or '', keys)}")
    return "\n".join(line for key in found for line in _lines(key, width))


def _lines(key: Key, width: int) -> Sequence[str]:
    default = key.default if key.default in ("", "required") else f"default {key.default}"
    facts = [key.type, key.unit and f"in {key.unit}", "" if key.section and default != "required" else default]
    texts = ["; ".join(filter(None, facts)), key.meaning]
    indent = " " * 4
    wrapped = [
        line
        for text in texts
        for line in textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
    ]
    return [key.path, *wrapped]


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - the file itself
