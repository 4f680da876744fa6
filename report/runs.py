"""The data of a report: runs read from their folders; runs that differ only in the seed form one group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from pydantic import TypeAdapter

from recipe.errors import RunError
from recipe.public_config import as_yaml, named, public_config
from recipe.run_folder import RunFolder
from report.files import Config, Environment, Summary, Training, check, read_held_out, read_json, read_metrics

_NOT_THE_METHOD = ("folder", "seed", "metrics")
"""Keys in which two runs of one config may differ."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and range of one value over the runs of a group."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """None if no run has the value."""
        given = [value for value in values if value is not None]
        return cls(fmean(given), min(given), max(given), len(given)) if given else None


@dataclass(frozen=True, slots=True)
class ReportRun:
    """One run, finished or not."""

    name: str
    folder: RunFolder
    config: dict[str, Any]
    config_text: str
    rows: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    environment: dict[str, Any] | None
    summary: dict[str, Any] | None
    training: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps taken."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def finished(self) -> bool:
        """Whether the run is finished. After a resume with more steps, an earlier summary does not count."""
        return self.summary is not None and self.step >= int(self.config.get("steps", 0))

    @property
    def seconds(self) -> float:
        """Seconds in training steps."""
        return sum(row.get("seconds/step", 0.0) for row in self.rows)

    @property
    def pictures_per_s(self) -> float | None:
        """Pictures per second of training steps, without scoring and checkpoints between them."""
        timed = [row for row in self.rows if {"pictures_per_s", "seconds/step"} <= row.keys()]
        seconds = sum(row["seconds/step"] for row in timed)
        return sum(row["pictures_per_s"] * row["seconds/step"] for row in timed) / seconds if seconds else None

    @property
    def seconds_in_all(self) -> float | None:
        """Seconds from start to end, with scoring and checkpoints; None for an unfinished or resumed run."""
        if not self.summary or not self.finished or self.summary.get("resumed_at"):
            return None
        return float(self.summary["seconds"])

    @property
    def metric(self) -> str:
        """Name of the held-out metric."""
        return str((self.config.get("held_out") or {}).get("metric", "score"))

    def scorings(self, split: str) -> list[dict[str, Any]]:
        """Rows of held-out scores, in order of steps."""
        return sorted((row for row in self.held_out if row["split"] == split), key=lambda row: row["step"])


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs of one config, usually of different seeds."""

    runs: tuple[ReportRun, ...]

    @property
    def label(self) -> str:
        """The first run's name, and the number of runs if there are several."""
        return self.runs[0].name + (f" ({len(self.runs)} runs)" if len(self.runs) > 1 else "")


def duration(seconds: float) -> str:
    """Such as "45 s", "7.1 min" or "3.5 h"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def read_runs(folders: Sequence[RunFolder]) -> list[ReportRun]:
    """
    Raises:
        RunError: a folder holds no run, the same one is given twice, or a file is not as a run writes it.
    """
    paths = [folder.path for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise RunError(f"{path} is given twice; name every run once")
    return [_read(folder, name) for folder, name in zip(folders, _names(paths), strict=True)]


def group_runs(runs: Sequence[ReportRun]) -> list[RunGroup]:
    """Runs whose configs differ in the seed only, together; groups in order of their first run."""
    groups: dict[str, list[ReportRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_method(run), sort_keys=True, default=str), []).append(run)
    return [RunGroup(tuple(group)) for group in groups.values()]


def differences(groups: Sequence[RunGroup]) -> list[tuple[str, list[Any]]]:
    """Dotted config keys in which groups differ, with each group's value; None if a group lacks the key.

    A list item with a name is keyed by that name. A mapping that another group lacks is listed key by key.
    """
    return _differences([_method(group.runs[0]) for group in groups], "")


def _method(run: ReportRun) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in _NOT_THE_METHOD}


def _differences(values: Sequence[Any], key: str) -> list[tuple[str, list[Any]]]:
    if all(value == values[0] for value in values):
        return []
    trees = [named(value) for value in values]
    if not all(isinstance(tree, dict) for tree in trees):
        return [(key, list(values))]
    names = dict.fromkeys(name for tree in trees for name in tree)
    return [
        found for name in names
        for found in _differences([tree.get(name) for tree in trees], f"{key}.{name}" if key else str(name))
    ]  # fmt: skip


def _read(folder: RunFolder, name: str) -> ReportRun:
    if not folder.config.is_file():
        raise RunError(f"{folder.path} holds no run (no {folder.config.name})")
    try:
        config = public_config(folder.config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{folder.config} cannot be read as YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise RunError(f"{folder.config} is no run config: {error}") from error
    check(folder.config, TypeAdapter(Config), config)
    return ReportRun(
        name, folder, config, as_yaml(config), read_metrics(folder.metrics), read_held_out(folder.held_out),
        read_json(folder.environment, Environment), read_json(folder.summary, Summary),
        read_json(folder.training, Training) or {},
    )  # fmt: skip


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as needed to distinguish them."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
