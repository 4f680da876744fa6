"""The folder of a run: resolved config, one log per process, metrics, checkpoints, samples, report."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from recipe.config import RunConfig, differing_keys, dump_config, load_config
from recipe.errors import RunError

_MAY_CHANGE = {"folder", "steps", "ray", "metrics", "checkpoint", "held_out", "rollout.keep_groups"}


class RunFolder:
    """The paths of a run."""

    def __init__(self, path: str | Path) -> None:
        try:
            self.path = Path(path).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, characters that no path has
            raise _not_made(path, error) from error
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

    def create(self, config: RunConfig, resume: bool, fresh: bool) -> Path | None:
        """Make the folder and write the resolved config; the path of an earlier run that was moved aside, if any.

        Raises:
            RunError: the folder already holds a run and neither `resume` nor `fresh` was given, or it holds no run to
                resume, or a run with another config; or it cannot be made.
        """
        self.check()
        if resume and not self.config.is_file():
            raise RunError(f"{self.path} holds no run to resume; leave --resume out to start one")
        if resume:
            self._check_same_run(config)
        aside = None
        if self.config.is_file() and not resume:
            if not fresh:
                raise RunError(
                    f"{self.path} already holds a run; --resume goes on with it, --fresh moves it aside, "
                    "folder=PATH takes another folder"
                )
            aside = self._move_aside()
        try:
            for folder in (self.path, self.logs, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
            # The keys that a resumed run may change apply from now on.
            self.config.write_text(dump_config(config), encoding="utf-8")
        except OSError as error:
            raise _not_made(self.path, error) from error
        return aside

    def check(self) -> None:
        """Check that the folder can be written, or made; leaves nothing behind.

        Raises:
            RunError: it cannot be made, or nothing can be written into it.
        """
        try:
            there = next(path for path in (self.path, *self.path.parents) if path.exists())
            with tempfile.TemporaryDirectory(prefix=".bicot-", dir=there):
                pass
        except OSError as error:
            raise _not_made(self.path, error) from error

    def rewind(self, step: int) -> None:
        """Drop the rows of steps after `step`; a resumed run takes these steps again.

        Raises:
            RunError: a file holds a line that is no row; both are then as they were.
        """
        kept = {path: read_json_lines(path) for path in (self.metrics, self.held_out) if path.is_file()}
        for path, rows in kept.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] <= step]
            write_atomically(path, "".join(lines))

    def _check_same_run(self, config: RunConfig) -> None:
        """A resumed run may be longer or use another cluster, but must otherwise have the same config."""
        changed = differing_keys(load_config(self.config), config)
        wrong = [key for key in changed if not {key, key.split(".")[0]} & _MAY_CHANGE]
        if wrong:
            raise RunError(
                f"{self.path} was run with another {', '.join(wrong[:5])}; resume with its own values "
                f"(see {self.config.name}), or start a new run in another folder"
            )

    def _move_aside(self) -> Path:
        if Path.cwd().is_relative_to(self.path):
            raise RunError(f"{self.path} is the working directory or above it; folder=PATH takes another folder")
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.config.stat().st_mtime))
        target = self.path.with_name(f"{self.path.name}-{stamp}")
        number = 1
        while target.exists():
            number += 1
            target = self.path.with_name(f"{self.path.name}-{stamp}-{number}")
        try:
            self.path.rename(target)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be moved aside: {error.strerror}; folder=PATH takes another"
            ) from error
        return target


def _not_made(path: str | Path, error: Exception) -> RunError:
    why = error.strerror if isinstance(error, OSError) else error
    shown = str(path).encode("utf-8", "backslashreplace").decode()
    return RunError(f"folder: {shown} cannot be made: {why}; folder=PATH takes another")


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file, each with an int `step`; empty if it is absent.

    An incomplete last line (after a kill) is left out.

    Raises:
        RunError: names the file and the first line that holds no such row.
    """
    if not path.is_file():
        return []
    try:
        *lines, cut = path.read_bytes().split(b"\n")  # and at nothing else: texts may hold other ends of lines
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    with contextlib.suppress(RunError):
        rows.append(_row(cut, f"{path}"))
    return rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not valid JSON ({error}); mend or remove that line") from error
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise RunError(f"{where} is no row of a step: it needs a whole number `step`; mend or remove that line")
    return row


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader sees half of it."""
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)  # noqa: PTH105
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
