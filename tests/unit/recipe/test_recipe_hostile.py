"""Recipes, overrides and folders that are wrong in unlikely ways: one sentence each, and none shows a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from cluster.cli import main
from cluster.replay import replay_config
from recipe.check import check
from recipe.config import dump_config, load_config
from recipe.errors import ConfigError, RunError
from recipe.run_folder import RunFolder

SHAPES = ROOT / "deploy" / "runs" / "shapes.yaml"
HUSH = "sk-hush"
LINK = "loop/x.yaml"
ON_SHAPES = f"base: {SHAPES}\n"
DETECTOR = "{name: detector, target: 'shapes.rewards:Strict'}"


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    """The sentence about a recipe."""
    own = tmp_path / "own.yaml"
    own.write_text(text, encoding="utf-8")
    loop = tmp_path / "loop"
    if not loop.is_symlink():
        loop.symlink_to("loop")
    (tmp_path / "twice.yaml").write_text(ON_SHAPES + f"rewards: {{services: [{DETECTOR}, {DETECTOR}]}}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(own, overrides)
    told = str(raised.value)
    assert "\n" not in told and "hush" not in told
    return told


@pytest.mark.parametrize(
    "value",
    [
        "0x_", "!!int abc", "9" * 5000, "!!timestamp 2026-99-99", "!!bool abc", "!!int ''", "!!timestamp abc",
        "{a: " * 400 + "1" + "}" * 400, "&a {x: *a}", "!!float x", "{? [a, {b: 1}] : 2}", "*sk-hush", "!sk-hush x",
        "\"sk-hush\\q\"", "'sk-hush", "[sk-hush", "\x07",
    ],
)  # fmt: skip
def test_what_yaml_cannot_build_is_told_without_its_text(tmp_path: Path, value: str) -> None:
    assert refused(tmp_path, f"steps: 5\nseed: {value}\n").startswith(
        f"{tmp_path}/own.yaml: cannot be read as YAML: "
    )
    assert refused(tmp_path, ON_SHAPES, f"rewards.x={value}") == "override rewards.x=...: the value is not valid YAML"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base: "a\\0b"', "own.yaml: base: 'a\\x00b': "),
        ('base: "\\ud800"', "own.yaml: base: '\\ud800': "),
        (f"base: {LINK}", f"own.yaml: base: '{LINK}': "),
        ("base: /tmp", "own.yaml: base: /tmp: cannot be read: Is a directory"),
        ("base: ''", "own.yaml: base: "),
        ("base: ~/x.yaml", "own.yaml: base: ~/x.yaml: a recipe does not expand ~"),
        (ON_SHAPES + 'policy: {templates: {instruction: {file: "a\\0b"}}}', "instruction.file: neither a\0b nor"),
        (ON_SHAPES + "policy: {templates: {instruction: {file: loop}}}", "instruction.file: neither loop nor"),
        (ON_SHAPES + "folder: ''", "own.yaml: folder: "),
        (ON_SHAPES + "folder: ~/x", "folder: ~ is not expanded"),
        (ON_SHAPES + "yes: 2", "write the key in quotes"),
        (ON_SHAPES + "steps: true", "own.yaml: steps: write a number, not True"),
        (ON_SHAPES + "held_out: {every: false}", "own.yaml: held_out.every: write a number, not False"),
        (ON_SHAPES + "semantic: {resources: {a: true}}", "semantic.resources: write a number"),
        (ON_SHAPES + "learner: {ranks: 'redis://:sk-hush@h'}", "not 'redis://***@h'"),
        (ON_SHAPES + "rewards: {services: {detector: 5}}", "own.yaml: rewards.services.detector: is a section"),
        (ON_SHAPES + "rewards: {services: {new: null}}", "own.yaml: rewards.services.new: null leaves out"),
        (f"rewards: {{services: {{new: null, old: {DETECTOR}}}}}", "own.yaml: rewards.services.new: null leaves out"),
        (f"rewards: {{services: [null, {DETECTOR}]}}", "own.yaml: rewards.services.0: null leaves out"),
        ("base: twice.yaml\nrewards: {services: {detector: {weight: 2}}}", "services.detector: the base has two"),
        (ON_SHAPES + "rewards: {services: {detector: {options: {a: !!binary /w==}}}}", "cannot be written as YAML"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards.services.².weight=1", "override rewards.services.².weight=...: '²' is no index"),
        (f"rewards.services.9.options.api_key={HUSH}", "override rewards.services.9.options.api_key=...: '9' is no"),
        (f"steps.more={HUSH}", "override steps.more=...: steps is a value"),
        (HUSH, "an override without =: write key.subkey=value"),
        ("resume", "override resume: write key.subkey=value"),
        (f".={HUSH}", "override .=...: write key.subkey=value"),
        (f"base.x={HUSH}", "override base.x=...: base is a key of the file"),
        ("prompts.exclude.0=a.txt", "the recipe has no prompts.exclude; give the whole list, prompts.exclude=[...]"),
        (f"buffer.capacity=redis://:{HUSH}@h", "not 'redis://***@h'"),
        (f"metrics.wandb={{project: a, api_key: {HUSH}}}", "metrics.wandb.api_key: unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_sentence_without_its_value(tmp_path: Path, override: str, message: str) -> None:
    assert message in refused(tmp_path, ON_SHAPES, override)


def test_a_replay_tells_no_value_of_an_override(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(load_config(SHAPES)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^override buffer\.url=\.\.\.: the groups are drawn already"):
        replay_config(tmp_path, [f"buffer.url=redis://:{HUSH}@h"])


@pytest.mark.parametrize("name", ["file", "file/below", "loop", "x" * 300, "a\0b", "\ud800", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_found_and_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    config = load_config(SHAPES).model_copy(update={"folder": str(tmp_path / name)})
    with pytest.raises(RunError, match=r"^folder: .* cannot be made: .*; folder=PATH takes another$"):
        RunFolder(config.folder).create(config, resume=False, fresh=False)
    found = next(finding for finding in check(config) if finding.subject == "folder")
    assert not found.ok and "cannot be made" in found.text
    found.text.encode("utf-8")


def test_a_folder_that_can_be_made_stays_unmade(tmp_path: Path) -> None:
    RunFolder(tmp_path / "runs" / "mine").check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [".", ".."])
def test_the_working_directory_is_never_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    below = tmp_path / "project" / "below"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    config = load_config(SHAPES, [f"folder={folder}"])
    (Path(folder) / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    with pytest.raises(RunError, match="is the working directory or above it"):
        RunFolder(folder).create(config, resume=False, fresh=True)
    assert below.is_dir() and len(list(tmp_path.iterdir())) == 1


def test_a_working_directory_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    command = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m cluster config steps"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (
        1, "bicot: the working directory is gone; start bicot from a folder that is there\n"
    )  # fmt: skip


def test_bicot_config_of_an_empty_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", ""]) == 1
    assert capsys.readouterr().err == "bicot: '': unknown key; `bicot config` lists all keys\n"
