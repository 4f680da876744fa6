"""A whole run as a process of its own, every part real, cut down to a few steps of the shapes world."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT, SUPPORT

from recipe.run_folder import RunFolder, read_json_lines

STEPS = 6
SMALL = [
    f"steps={STEPS}", "rollout.group_size=4", "rollout.groups_per_step=2", "held_out=null", "buffer.capacity=16",
    "checkpoint.every=1", "learner.optimizer.lr=1e-3",
]  # fmt: skip


class Run:
    """A `bicot train` process in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder = RunFolder(folder)
        self.output = folder.with_suffix(".out")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}", **(env or {})}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "cluster", "train", "deploy/runs/shapes.yaml", f"folder={folder}", *SMALL]
        with self.output.open("a") as out:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def finish(self, deadline_s: float = 400) -> int:
        """The exit code; the run must end by itself."""
        try:
            return self.process.wait(deadline_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """kill -9 of every process of the run."""
        for pid in descendants(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)

    def wait_for(self, step: int, deadline_s: float = 400) -> None:
        """Until that step's row is in the run's metrics."""
        end = time.monotonic() + deadline_s
        while not any(row["step"] >= step for row in self.rows()):
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(self.text())
            time.sleep(0.05)

    def pid_of(self, log: str) -> int:
        """The process that keeps that log, the newest of them."""
        return int(re.findall(r"process (\d+) starts", (self.folder.logs / log).read_text())[-1])

    def rows(self) -> list[dict[str, Any]]:
        return read_json_lines(self.folder.metrics)

    def text(self) -> str:
        return self.output.read_text()


def bicot(*arguments: str, code: int = 0, deadline_s: float = 400) -> str:
    """What a command of bicot prints; it has to end with that exit code."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=deadline_s, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in children:
        found += descendants(int(child))
    # Ray's raylet is a session of its own but still a child; workers are the raylet's children.
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
