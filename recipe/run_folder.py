"""The folder of a run: resolved config, one log per process, metrics, checkpoints, samples, report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from recipe.config import RunConfig, differing_keys, dump_config, load_config
from recipe.errors import RunError

_MAY_CHANGE = {"folder", "steps", "ray", "metrics", "checkpoint", "held_out", "rollout.keep_groups"}


class RunFolder:
    """The paths of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.config = self.path / "config.yaml"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.groups = self.path / "groups"
        self.tensorboard = self.path / "tensorboard"
        self.redis = self.path / "redis"
        self.metrics = self.path / "metrics.jsonl"
        self.held_out = self.path / "held_out.jsonl"
        self.summary = self.path / "summary.json"
        self.environment = self.path / "environment.json"
        self.training = self.path / "training.json"
        self.report = self.path / "report.html"
        self.policy = self.path / "policy"
        self.targets = self.path / "targets.json"

    def create(self, config: RunConfig, resume: bool, fresh: bool) -> None:
        """Make the folder and write the resolved config.

        Raises:
            RunError: the folder already holds a run and neither `resume` nor `fresh` was given, or it holds no run to
                resume, or a run with another config.
        """
        if resume and not self.config.is_file():
            raise RunError(f"{self.path} holds no run to resume; leave --resume out to start one")
        if resume:
            self._check_same_run(config)
        if self.config.is_file() and not resume:
            if not fresh:
                raise RunError(
                    f"{self.path} already holds a run; --resume goes on with it, --fresh moves it aside, "
                    "folder=PATH takes another folder"
                )
            self._move_aside()
        for folder in (self.path, self.logs, self.checkpoints, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        # The keys that a resumed run may change apply from now on.
        self.config.write_text(dump_config(config), encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Drop the rows of steps after `step`; a resumed run takes these steps again."""
        for path in (self.metrics, self.held_out):
            rows = [row for row in read_json_lines(path) if row["step"] <= step]
            if path.is_file():
                write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _check_same_run(self, config: RunConfig) -> None:
        """A resumed run may be longer or use another cluster, but must otherwise have the same config."""
        changed = differing_keys(load_config(self.config), config)
        wrong = [key for key in changed if not {key, key.split(".")[0]} & _MAY_CHANGE]
        if wrong:
            raise RunError(
                f"{self.path} was run with another {', '.join(wrong[:5])}; resume with its own values "
                f"(see {self.config.name}), or start a new run in another folder"
            )

    def _move_aside(self) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.config.stat().st_mtime))
        target = self.path.with_name(f"{self.path.name}-{stamp}")
        number = 1
        while target.exists():
            number += 1
            target = self.path.with_name(f"{self.path.name}-{stamp}-{number}")
        self.path.rename(target)


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file; empty if it is absent. An incomplete last line (after a kill) is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader sees half of it."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105
