"""`bicot rollout`: groups of a run config drawn and scored by its own pools and rewards, without learner and buffer.

What it leaves is a run folder whose step 1 is these groups, so that `bicot replay FOLDER 1` trains them; their
pictures lie in `samples`, beside a table of what was written for each, and what it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence

from rich.console import Console

from cluster.invariants import of_groups
from cluster.monitor.telemetry import Telemetry
from cluster.pools.pool import Replica
from cluster.pools.ray_session import RaySession
from cluster.pools.rollout_pools import RolloutPool, RolloutPools, SemanticPool
from cluster.pools.worker import log_to
from cluster.prompt_order import PromptOrder
from cluster.rollout import Rollout
from cluster.system import run_name, start_processes
from policy.prompts import load_prompts
from recipe.config import RunConfig
from recipe.provenance import write_environment
from recipe.resources import alone
from recipe.run_folder import RunFolder, write_atomically
from transport.group_files import GroupFiles
from transport.trajectory import TrajectoryGroup

STEP = 1
"""The step that the groups are kept as: the first, from the policy's own weights."""


def rollout_config(config: RunConfig, folder: str, groups: int) -> RunConfig:
    """The config of a run in `folder` whose first step takes `groups` groups, and keeps them."""
    rollout = {"groups_per_step": groups, "staleness": 0, "keep_groups": 1}
    shown = {"port": None, "tensorboard": False, "wandb": None}
    return config.model_copy(update={
        "folder": folder,
        "held_out": None,
        "rollout": config.rollout.model_copy(update=rollout),
        "buffer": config.buffer.model_copy(update={"capacity": max(config.buffer.capacity, groups)}),
        "metrics": config.metrics.model_copy(update=shown),
    })  # fmt: skip


def rollout_only(config: RunConfig, console: Console) -> int:
    """Draw and score the groups of `rollout_config`'s first step; 1 where an invariant does not hold.

    Raises:
        RunError: a part did not start, or a stage failed.
    """
    folder = RunFolder(config.folder)
    folder.create(config, resume=False, fresh=True)
    log_to(folder.logs / "driver.log")
    console.print("starting Ray, the pools and the rewards", style="dim")
    groups, failures = asyncio.run(_roll_out(config, folder, console))
    _write_samples(folder, groups)
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
    room = asyncio.Semaphore(config.rollout.groups_in_flight or size)
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

        async def one(index: int) -> TrajectoryGroup:
            async with room:
                group = (await rollout.group(prompts[index], keep_pictures=True)).group
            await asyncio.to_thread(kept.write, STEP, group)
            return group

        groups = await asyncio.gather(*(one(index) for index in range(size)))
        counted = {
            reward.name: telemetry.store.value("bicot_reward_failures_total", reward=reward.name) or 0.0
            for reward in config.rewards.services
        }
    return groups, counted


async def _own_weights(pool: RolloutPool, replica: Replica) -> None:
    """Nobody publishes weights here: a semantic actor takes the checkpoint's, as the image actors have them."""
    if isinstance(pool, SemanticPool):
        await pool.load_checkpoint(replica)


def _write_samples(folder: RunFolder, groups: Sequence[TrajectoryGroup]) -> None:
    """The pictures as PNG, and one table of them: prompt, CoT and rewards."""
    rows = []
    for group in groups:
        prompt = re.sub(r"[^A-Za-z0-9]+", "_", group.prompt.prompt).strip("_")[:60]
        for number, member in enumerate(group.members):
            assert member.png is not None
            name = f"rollout-{group.index:04d}-{number}-{prompt}.png"
            (folder.samples / name).write_bytes(member.png)
            rows.append({
                "prompt": group.prompt.prompt, "family": group.prompt.group, "cot": member.cot,
                "rewards": member.rewards, "png": name,
            })  # fmt: skip
    table = json.dumps({"step": STEP, "split": "rollout", "samples": rows}, ensure_ascii=False, indent=1)
    write_atomically(folder.samples / "rollout.json", table)
