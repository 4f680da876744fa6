"""The running system: every part of a run, started in parallel and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from cluster.console import RunDisplay
from cluster.loop import Progress, TrainingLoop
from cluster.monitor.poller import Poller
from cluster.monitor.telemetry import Telemetry
from cluster.pools.learner_ranks import LearnerRanks
from cluster.pools.ray_session import RaySession
from cluster.pools.rollout_pools import RolloutPools
from cluster.pools.weight_sync import WeightSync, weight_sync
from cluster.prompt_order import PromptOrder
from cluster.rollout import Rollout
from evaluation.held_out import HeldOut, HeldOutScores
from policy.prompts import load_prompts
from recipe.config import RunConfig
from recipe.errors import RunError
from recipe.provenance import write_environment
from recipe.run_folder import RunFolder
from rewards.service import RewardServiceError, RewardServices
from transport.buffer import TrajectoryBuffer
from transport.errors import TransportError
from transport.group_files import GroupFiles
from transport.redis_server import start_server

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class System:
    """All parts of a run, started and at the same weight version. `position` is the step of these weights."""

    config: RunConfig
    folder: RunFolder
    telemetry: Telemetry
    buffer: TrajectoryBuffer
    pools: RolloutPools
    ranks: LearnerRanks
    weights: WeightSync
    rollout: Rollout
    order: PromptOrder
    splits: dict[str, HeldOut]
    position: int = 0

    @classmethod
    async def start(
        cls, config: RunConfig, folder: RunFolder, display: RunDisplay, stack: contextlib.AsyncExitStack, resume: bool
    ) -> Self:
        """Start every part; `stack` closes the parts in reverse order.

        Raises:
            RunError: a part could not start, or the pools do not fit the cluster.
        """
        name = run_name(folder)
        telemetry = Telemetry(folder, config, name)
        stack.callback(telemetry.close)

        display.phase("starting Redis and Ray")
        url = config.buffer.address() or _own_redis(folder, stack)
        buffer = TrajectoryBuffer(url, name, config.buffer.capacity, reconnect_s=config.buffer.reconnect_s)
        stack.callback(buffer.close)
        session = RaySession.start(config)
        stack.callback(session.close)
        if config.buffer.url is None and len(session.nodes()) > 1:
            raise RunError("buffer.url: a run on several machines needs the URL of a Redis that all of them reach")
        write_environment(folder, session.nodes())
        telemetry.discover(session.own_address, session.metrics_targets)

        display.phase("starting the pools: vLLM, image sampler, rewards, learner")
        ranks = LearnerRanks(config, folder, url, name)
        weights = weight_sync(config, ranks, session.meeting_address())
        pools = RolloutPools(config, folder.logs, weights.on_start)
        weights.pools = pools.all
        for part in (ranks, pools):
            stack.callback(part.close)
        for pool in (ranks.pool, *pools.all):
            telemetry.watch(pool)
        deadline_s = config.ray.start_deadline_s
        actors = asyncio.gather(ranks.start(deadline_s), pools.start(deadline_s))
        rewards = await start_processes(config, folder, name, actors, stack)

        rollout = Rollout(pools, rewards.clients, telemetry, config.seed, config.rollout)
        prompts = load_prompts(config.prompts.train, config.prompts.exclude)
        order = PromptOrder(prompts, config.seed, config.prompts.shuffle)
        system = cls(config, folder, telemetry, buffer, pools, ranks, weights, rollout, order, _splits(config))
        if resume:
            await system._restore()
        else:
            buffer.rewind([])  # a user's Redis may still hold the ids of an earlier run of this folder
        await system.publish(system.position)
        telemetry.ready(system.position)
        poller = Poller(telemetry, pools.all, buffer, rewards.clients)
        await poller.poll()
        stack.push_async_callback(_ended, asyncio.create_task(poller.forever(), name="poller"))
        return system

    async def run(self, progress: Progress, after_step: Callable[[int, dict[str, float]], Awaitable[None]]) -> None:
        """Run the training loop from the system's position on."""
        kept = GroupFiles(self.folder.groups) if self.config.rollout.keep_groups else None
        await TrainingLoop(self.config, self.order, self.rollout, self.buffer, self, after_step, progress, kept).run()

    async def train(self, groups: int) -> dict[str, float]:
        """One step of the learner on the buffer's next groups."""
        return await self.ranks.train(groups)

    async def publish(self, version: int) -> float:
        """Send the learner's weights to every actor as `version`; returns the seconds that it took."""
        start = time.monotonic()
        size, published_s = await self.weights.publish(version)
        seconds = time.monotonic() - start
        self.telemetry.published(version, size, published_s, seconds - published_s)
        return seconds

    async def save(self, step: int) -> None:
        """Checkpoint the learner."""
        start = time.monotonic()
        await self.ranks.save(step)
        self.telemetry.checkpoint(step, time.time(), time.monotonic() - start)

    async def score(self, split: str, step: int) -> HeldOutScores:
        """Score a split of held-out prompts at the present weights, and record the scores."""
        scores = await self.splits[split].score(self.rollout, step, self.folder, self.telemetry.samples)
        self.telemetry.held_out(step, split, scores.by_family, scores.pictures)
        return scores

    async def _restore(self) -> None:
        """Go back to the newest checkpoint and drop all later rows and groups; without a checkpoint, to the start."""
        self.position = await self.ranks.restore()
        self.folder.rewind(self.position)  # refuses a damaged file: nothing else is undone then
        trained = self.position * self.config.rollout.groups_per_step
        dropped = self.buffer.rewind(self.order[index].group_id for index in range(trained))
        logger.info("resumed at step %d; %d groups of the buffer are drawn again", self.position, dropped)
        GroupFiles(self.folder.groups).drop_after(self.position)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def run_name(folder: RunFolder) -> str:
    """The name of the run's keys in Redis and services in Ray: the folder's name, and a suffix from its path."""
    plain = re.sub(r"[^A-Za-z0-9]", "-", folder.path.name)
    return f"{plain}-{blake2b(str(folder.path).encode(), digest_size=4).hexdigest()}"


def _own_redis(folder: RunFolder, stack: contextlib.AsyncExitStack) -> str:
    try:
        server = start_server(folder.redis)
    except TransportError as error:
        raise RunError(f"the run's own Redis did not start: {error}") from error
    stack.callback(server.close)
    return server.url


async def start_processes(
    config: RunConfig, folder: RunFolder, name: str, actors: Awaitable[object], stack: contextlib.AsyncExitStack
) -> RewardServices:
    """Start `actors` (which wait until learner and pools are up) and the rewards in parallel.

    Raises:
        RunError: one of them did not start.
    """
    actors = asyncio.ensure_future(actors)
    if any(service.gpus for service in config.rewards.services):
        await actors  # a small reward that starts first could occupy part of a GPU that a large actor needs whole
    services, _ = await asyncio.gather(_reward_services(config, folder, name, stack), actors)
    return services


async def _reward_services(
    config: RunConfig, folder: RunFolder, name: str, stack: contextlib.AsyncExitStack
) -> RewardServices:
    try:
        services = await asyncio.to_thread(RewardServices.start, config.rewards, name, folder.logs / "rewards")
    except RewardServiceError as error:
        raise RunError(str(error)) from error
    stack.callback(services.close)
    return services


def _splits(config: RunConfig) -> dict[str, HeldOut]:
    held_out = config.held_out
    if held_out is None:
        return {}
    splits = {"dev": (held_out.dev, held_out.dev_members), "test": (held_out.test, held_out.test_members)}
    together = 2 * config.rollout.groups_per_step
    return {
        split: HeldOut(split, load_prompts(path), members, held_out.metric, held_out.samples, together)
        for split, (path, members) in splits.items()
        if path
    }
