"""Keys that can be found: docs/config.md, `bicot config`, the schema for editors, and the nearest to a wrong key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from paths import ROOT
from pydantic import BaseModel

from cluster.cli import main
from cluster.shadowed import ROOMS, shadowed
from policy.settings import Settings
from recipe.config import RunConfig
from recipe.key_docs import markdown
from recipe.keys import documented, nearest

KEYS = documented(RunConfig)
RECIPES = sorted((ROOT / "deploy" / "runs").glob("*.yaml"))


def models(of: type[BaseModel]) -> set[type[BaseModel]]:
    """A config model and all that stand in it."""
    found = {of}
    for field in of.model_fields.values():
        parts: list[Any] = [field.annotation]
        while parts:
            part = parts.pop()
            parts += get_args(part)
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= models(part)
    return found


def test_docs_config_md_is_made_from_the_models() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == markdown(), "run `make config-docs`"


def test_every_key_has_a_type_a_default_and_a_meaning() -> None:
    by_path = {key.path: key for key in KEYS}
    fields = sum(len(model.model_fields) for model in models(RunConfig))
    assert len(KEYS) == len(by_path) == fields + 1 > 130  # and base
    for key in KEYS:
        assert key.type and key.meaning.endswith(".") and not key.meaning[0].isspace(), key
        assert key.section or key.path == "base" or key.default, key
    lr = by_path["learner.optimizer.lr"]
    assert (lr.type, lr.default, lr.meaning) == ("number > 0", "1e-06", "Peak learning rate.")
    assert by_path["rewards.services.N.weight"].type == "number >= 0"
    assert by_path["held_out"].type == "section or null" and by_path["held_out"].section
    assert by_path["policy.dtype"].type == "float32 or bfloat16"


@pytest.mark.parametrize(
    ("ending", "unit"), [("_s", "s"), ("_mb", "MiB"), ("_gb", "GiB"), ("_tokens", "tokens"), ("_tflops", "TFLOP/s")]
)
def test_names_and_units_agree(ending: str, unit: str) -> None:
    named = [key for key in KEYS if key.name.endswith(ending)]
    assert named
    assert [key.path for key in named if key.unit != unit] == [], (
        f"give them the type of {unit} in policy/settings.py"
    )


def test_one_base_for_all_config_models() -> None:
    for model in models(RunConfig):
        assert issubclass(model, Settings)
        assert model.model_config == Settings.model_config


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("lr", ["learner.optimizer.lr"]),
        ("optimizer.lr", ["learner.optimizer.lr"]),
        ("learner.optimiser", ["learner.optimizer"]),
        ("learner.grad_norm", ["learner.optimizer.grad_norm"]),
        ("image.temprature", ["image.temperature", "semantic.temperature"]),
        ("rewards.services.2.wait", ["rewards.services.2.weight"]),
        ("rewards.services.0.gpu", ["rewards.services.0.gpus"]),
        ("learning_rate", ["learner.optimizer.lr"]),
        ("xyzzy", []),
    ],
)
def test_the_nearest_keys(wrong: str, near: list[str]) -> None:
    found = nearest(wrong, KEYS)
    assert found[: len(near)] == near and len(found) <= 3
    assert near or not found


def test_bicot_config_prints_a_key_a_section_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> str:
        assert main(["config", *arguments]) == 0
        return capsys.readouterr().out

    assert (
        printed("learner.optimizer.lr")
        == "learner.optimizer.lr\n    number > 0; default 1e-06\n    Peak learning rate.\n"
    )
    of_one = printed("rewards.services.0.deadline_s")
    assert of_one.splitlines()[0] == "rewards.services.N.deadline_s" and "number > 0; in s; default 60.0" in of_one
    section = [line for line in printed("learner.objective").splitlines() if not line.startswith(" ")]
    assert section[0] == "learner.objective" and "learner.objective.beta" in section
    assert all(path.startswith("learner.objective") for path in section)
    everything = printed()
    assert [line for line in everything.splitlines() if not line.startswith(" ")] == [key.path for key in KEYS]


def test_bicot_config_is_legible_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["config"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_bicot_config_names_the_nearest_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "learner.std"]) == 1
    assert capsys.readouterr().err == "bicot: learner.std: unknown key; did you mean learner.objective.std?\n"
    assert main(["config", "xyzzy"]) == 1
    assert capsys.readouterr().err == "bicot: xyzzy: unknown key; `bicot config` lists all keys\n"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "config", "--schema"],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=True,
    )
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_recipes(recipe: Path, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(recipe.read_text(encoding="utf-8")))


STANDING = "base: other.yaml\n"
SHAPES = (ROOT / "deploy" / "runs" / "shapes.yaml").read_text(encoding="utf-8") + "\n"


@pytest.mark.parametrize(
    "text",
    [
        STANDING,
        STANDING + "rewards: {services: {hps: {weight: 0.5}, vqa: null}}",
        STANDING + "policy: {templates: {instruction: {file: words.txt}}}\nheld_out: null",
        SHAPES + "base: null",
        STANDING + "rewards: {services: [{name: a, target: 'my:Own', options: {gain: 2}}]}",
    ],
)
def test_the_schema_accepts_what_recipes_may_say(text: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3", "required"),
        ("base: null", "required"),
        (STANDING + "learner: {lr: 1.0}", "'lr' was unexpected"),
        (STANDING + "steps: 0", "less than the minimum"),
        (STANDING + "policy: {dtype: int4}", "not one of"),
        (STANDING + "rewards: {services: [{name: a}]}", "not valid under any"),
        (STANDING + "rewards: {services: {hps: {wait: 1}}}", "not valid under any"),
        (STANDING + "policy: {templates: {instruction: {flie: x}}}", "not valid under any"),
    ],
)
def test_the_schema_refuses_what_is_wrong(
    text: str, message: str, validator: jsonschema.Draft202012Validator
) -> None:
    with pytest.raises(jsonschema.ValidationError, match=message):
        validator.validate(yaml.safe_load(text))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert capsys.readouterr().out == f"bicot {project['version']}\n"


def test_all_rooms_are_looked_at_for_modules_of_the_same_name() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert set(ROOMS) == set(contracts["root_packages"]) - {"benchmarks"}


@pytest.mark.parametrize("name", ["yaml.py", "redis/__init__.py", "ray/notes.txt"])
def test_a_module_with_the_name_of_a_used_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    told = shadowed()
    if name == "ray/notes.txt":  # which hides nothing
        assert told is None
    else:
        first = Path(name).parts[0]
        assert told and told.startswith(f"{tmp_path / first} has the name of the package {first.partition('.')[0]!r}")


@pytest.mark.parametrize("command", [("bicot",), ("python", "-m", "cluster")], ids=" ".join)
@pytest.mark.parametrize("name", ["rewards.py", "recipe/__init__.py", "report/picture.txt"])
def test_a_module_with_a_rooms_name_is_refused(tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    """Run as a user runs it: the installed command, in a folder of the user's own."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("class Mine: ...\n", encoding="utf-8")
    shutil.copy(ROOT / "deploy" / "runs" / "shapes.yaml", tmp_path / "run.yaml")
    program = Path(sys.executable).with_name(command[0])
    if not program.exists():
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [program, *command[1:], "train", "run.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    first = tmp_path / Path(name).parts[0]
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.startswith(f"bicot: {first} has the name of bicot's own package") and "rename it" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
