"""`bicot rollout`: groups of a run config drawn and scored by its own pools and rewards, without learner and buffer.

What it leaves is a run folder whose step 1 is these groups, so that `bicot replay FOLDER 1` trains them; their
pictures lie in `samples`, beside a table of what was written for each, and what it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping

from rich.console import Console

from cluster.invariants import of_groups
from cluster.monitor.telemetry import Telemetry
from cluster.pools.pool import Replica
from cluster.pools.ray_session import RaySession
from cluster.pools.rollout_pools import RolloutPool, RolloutPools, SemanticPool
from cluster.pools.worker import log_to
from cluster.prompt_order import PromptOrder
from cluster.rollout import Rollout
from cluster.rollout_folder import STEP, make_folder, write_samples
from cluster.system import run_name, start_processes
from policy.prompts import load_prompts
from recipe.config import RunConfig
from recipe.errors import first_cause
from recipe.provenance import write_environment
from recipe.resources import alone
from recipe.run_folder import RunFolder
from transport.group_files import GroupFiles
from transport.trajectory import TrajectoryGroup


def rollout_only(config: RunConfig, console: Console) -> int:
    """Draw and score the groups of `rollout_config`'s first step; 1 where an invariant does not hold.

    Raises:
        RunError: the folder holds a run of another command, a part did not start, or a stage failed.
    """
    folder = RunFolder(config.folder)
    make_folder(folder, config, console)
    log_to(folder.logs / "driver.log")
    console.print("starting Ray, the pools and the rewards", style="dim")
    try:
        groups, failures = asyncio.run(_roll_out(config, folder, console))
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    write_samples(folder, groups)
    found = of_groups(config, groups, STEP, failures)
    for invariant in found:
        console.print(invariant.line(), markup=False, soft_wrap=True)
    where = os.path.relpath(folder.path)
    console.print(f"Pictures: {where}/samples. `bicot replay {where} {STEP}` trains these groups.", soft_wrap=True)
    return 1 if any(invariant.ok is False for invariant in found) else 0


async def _roll_out(
    config: RunConfig, folder: RunFolder, console: Console
) -> tuple[list[TrajectoryGroup], Mapping[str, float]]:
    """The groups in order, and how often each reward failed."""
    prompts = PromptOrder(
        load_prompts(config.prompts.train, config.prompts.exclude), config.seed, config.prompts.shuffle
    )
    name, started = run_name(folder), alone(config, "semantic", "image", "rewards")
    kept, size = GroupFiles(folder.groups), config.rollout.groups_per_step
    left = iter(range(size))
    groups: dict[int, TrajectoryGroup] = {}
    async with contextlib.AsyncExitStack() as stack:
        telemetry = Telemetry(folder, config, name)
        stack.callback(telemetry.close)
        session = RaySession.start(started)
        stack.callback(session.close)
        write_environment(folder, session.nodes())
        pools = RolloutPools(started, folder.logs, _own_weights)
        stack.callback(pools.close)
        rewards = await start_processes(started, folder, name, pools.start(config.ray.start_deadline_s), stack)
        rollout = Rollout(pools, rewards.clients, telemetry, config.seed, config.rollout)
        console.print(f"drawing {size} groups of {config.rollout.group_size}", style="dim", highlight=False)

        async def draw() -> None:
            for index in left:
                groups[index] = (await rollout.group(prompts[index], keep_pictures=True)).group
                await asyncio.to_thread(kept.write, STEP, groups[index])

        async with asyncio.TaskGroup() as drawing:  # one that fails ends the others before their pools close
            for _ in range(min(size, config.rollout.groups_in_flight or size)):
                drawing.create_task(draw())
        counted = {
            reward.name: telemetry.store.value("bicot_reward_failures_total", reward=reward.name) or 0.0
            for reward in config.rewards.services
        }
    return [groups[index] for index in range(size)], counted


async def _own_weights(pool: RolloutPool, replica: Replica) -> None:
    """Nobody publishes weights here: a semantic actor takes the checkpoint's, as the image actors have them."""
    if isinstance(pool, SemanticPool):
        await pool.load_checkpoint(replica)
