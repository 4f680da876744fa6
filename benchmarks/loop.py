"""The whole system at laptop size, compared with the same stages in turn in one process.

Each case runs alone on the machine, in a fresh process. The time of a step counts from the end of the step before,
with the transfer of weights. Models, prompts, seeds and settings are those of deploy/runs/shapes.yaml, without
held-out scoring.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.report import Report, Value, ratios
from recipe.config import RunConfig, load_config

RUN = Path(__file__).parents[1] / "deploy/runs/shapes.yaml"
WARM_UP, STEPS = 4, 16
_DEADLINE_S = 600
_WAYS = {
    "stages in turn, one process": ["benchmarks.loop_in_turn"],
    "bicot, staleness 0": ["benchmarks.loop_system", "0"],
    "bicot, staleness 1": ["benchmarks.loop_system", "1"],
}


def run(report: Report) -> None:
    """Measure each way `repeats` times, in turn.

    Raises:
        SystemExit: another scale than tiny, or a way failed.
    """
    if report.scale != "tiny" or report.device != "cpu":
        sys.exit("loop: runs at --scale tiny on a CPU; on a cluster, `bicot train` tells a recipe's own rate")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in _WAYS}
    for _ in range(report.repeats):
        for way, command in _WAYS.items():
            found[way].append(_run(command))
    config = settings()
    pictures = config.rollout.groups_per_step * config.rollout.group_size
    rows: list[dict[str, Value]] = []
    for way, runs in found.items():
        seconds = median(median(one["seconds"]) for one in runs)
        row: dict[str, Value] = {"case": way, "steps/s": 1 / seconds, "pictures/s": pictures / seconds}
        pools = runs[0]["idle"]
        rows.append(row | {f"{pool} idle": fmean(one["idle"][pool] for one in runs) for pool in pools})
    report.table(
        f"The loop, {pictures} pictures a step",
        ratios(rows, "pictures/s", [next(iter(_WAYS))]),
        f"{STEPS} steps after {WARM_UP}; idle: share of the time in which a pool's engine had no work.",
    )


def settings(**changes: Any) -> RunConfig:
    """The run's config with `changes` to it, by dotted keys."""
    steps = f"steps={WARM_UP + STEPS}"
    return load_config(RUN, [steps, "held_out=null", "learner.optimizer.schedule=constant", *_pairs(changes)])


def _pairs(changes: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def _run(command: list[str]) -> dict[str, Any]:
    """What one way wrote: `seconds` of each measured step, and each pool's `idle` share."""
    with tempfile.TemporaryDirectory(prefix="bicot-loop-") as folder:
        out = Path(folder) / "found.json"
        environment = os.environ | {"PYTHONPATH": str(RUN.parents[2])}
        if "loop_in_turn" in command[0]:
            environment["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))  # vLLM goes by it; Ray sets its own
        done = subprocess.run(
            [sys.executable, "-m", *command, folder],
            cwd=RUN.parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
        )
        if done.returncode or not out.is_file():
            sys.exit(f"loop: {' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found
