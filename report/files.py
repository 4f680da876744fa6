"""The files of a run folder as a report reads them: what else they hold than a run writes is told, not drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from recipe.errors import RunError
from recipe.run_folder import read_json_lines


def _with_all(values: dict[str, Any]) -> dict[str, Any]:
    if "all" not in values:
        raise ValueError("it has no 'all'")
    return values


class _File(BaseModel):
    """The keys that a report looks at; there may be more."""

    model_config = ConfigDict(strict=True)


class _HeldOutRow(_File):
    split: str
    scores: Annotated[dict[str, float], AfterValidator(_with_all)]
    pictures: Annotated[dict[str, int], AfterValidator(_with_all)] = {"all": 0}


class Summary(_File):
    """`summary.json`."""

    seconds: float
    resumed_at: int = 0


class Training(_File):
    """`training.json`."""

    prompts: dict[str, dict[str, int]] = {}
    rewards: dict[str, str] = {}


class _Machine(_File):
    memory_gb: float = 0.0
    gpus: list[str] = []


class _Node(_File):
    nodes: int
    cpus: float
    gpus: float


class Environment(_File):
    """`environment.json`."""

    packages: dict[str, str] = {}
    commit: str | None = None
    machine: _Machine = _Machine()
    nodes: list[_Node] = []


class _Sample(_File):
    prompt: str
    family: str
    cot: str
    rewards: dict[str, float | None]
    png: str


class Samples(_File):
    """A scoring's JSON file in `samples`."""

    step: int
    samples: list[_Sample]


class _HeldOut(_File):
    metric: str = ""
    dev_members: int = 1
    test_members: int = 1


class _Service(_File):
    name: str
    weight: float = 1.0


class _Rewards(_File):
    services: list[_Service] | None = None


class _Rollout(_File):
    groups_per_step: int = 0
    group_size: int = 0


class Config(_File):
    """`config.yaml`, of this version or an older one."""

    steps: int = 0
    held_out: _HeldOut | None = None
    rewards: _Rewards | None = None
    rollout: _Rollout = _Rollout()


_METRICS, _HELD_OUT = TypeAdapter(list[dict[str, float | None]]), TypeAdapter(list[_HeldOutRow])


def read_json(path: Path, shape: type[_File]) -> dict[str, Any] | None:
    """The mapping in a file of that shape; None where there is no file.

    Raises:
        RunError: it cannot be read, or is no such thing; names the file.
    """
    if not path.is_file():
        return None
    try:
        tree: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error}); mend it or move it away") from error
    check(path, TypeAdapter(shape), tree)
    return tree


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's steps, without the values that are null.

    Raises:
        RunError: a row is none; names the file.
    """
    rows = read_json_lines(path)
    check(path, _METRICS, rows)
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def read_held_out(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's held-out scores.

    Raises:
        RunError: a row is none; names the file.
    """
    rows = read_json_lines(path)
    check(path, _HELD_OUT, rows)
    return rows


def check(path: Path, shape: TypeAdapter[Any], tree: Any) -> None:
    """
    Raises:
        RunError: the tree that the file holds is not of that shape; names the file and the key, but no value.
    """
    try:
        shape.validate_python(tree, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "".join(f"row {at + 1}: " if isinstance(at, int) else f"{at}: " for at in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise RunError(f"{path} is not as a run writes it: {where}{said}") from error
