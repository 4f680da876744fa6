"""A run of the whole system, timed step by step: `python -m benchmarks.loop_system STALENESS FOLDER`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.loop import STEPS, WARM_UP, settings
from cluster.console import RunDisplay
from cluster.loop import Progress
from cluster.pools.rollout_pools import RolloutPool
from cluster.pools.worker import log_to
from cluster.system import System
from recipe.config import RunConfig
from recipe.run_folder import RunFolder


async def measure(config: RunConfig) -> dict[str, object]:
    """Seconds of every step after the first few, and the idle share of each pool over them."""
    folder = RunFolder(config.folder)
    folder.create(config, resume=False, fresh=True)
    log_to(folder.logs / "driver.log")
    ended: list[float] = []
    busy: list[dict[str, float]] = []
    learning = 0.0
    async with contextlib.AsyncExitStack() as stack:
        display = RunDisplay(Console(quiet=True), config.steps, None)
        system = await System.start(config, folder, display, stack, resume=False)

        async def after_step(step: int, row: dict[str, float]) -> None:
            nonlocal learning
            ended.append(time.monotonic())
            if step > WARM_UP:
                learning += row["seconds/train"]
            if step in (WARM_UP, WARM_UP + STEPS):
                busy.append({pool.name: await _busy(pool) for pool in system.pools.all})

        await system.run(Progress(), after_step)
    seconds = [after - before for before, after in zip(ended[WARM_UP - 1 :], ended[WARM_UP:], strict=False)]
    total = sum(seconds)
    idle = {name: 1 - (busy[1][name] - busy[0][name]) / total for name in busy[0]} | {"learner": 1 - learning / total}
    return {"seconds": seconds, "idle": idle}


async def _busy(pool: RolloutPool) -> float:
    """Seconds that the pool's engines have worked, a replica's share of them."""
    told = await pool.metrics()
    return sum(values["busy_s"] for values in told.values()) / len(told)


if __name__ == "__main__":
    staleness, out = sys.argv[1], Path(sys.argv[2])
    changes = {"folder": out / "run", "rollout.staleness": staleness, "checkpoint.every": 1000}
    found = asyncio.run(measure(settings(**changes)))
    (out / "found.json").write_text(json.dumps(found))
