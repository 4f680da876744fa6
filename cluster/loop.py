"""The training loop: admit, roll out, learn, publish. The whole system on one screen."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from cluster.monitor.rolled_group import RolledGroup
from cluster.monitor.step_statistics import StepStatistics
from cluster.prompt_order import PromptOrder, Visit
from cluster.rollout import Rollout
from recipe.config import RunConfig
from recipe.errors import StageError, first_cause
from transport.buffer import TrajectoryBuffer
from transport.errors import TransportError
from transport.group_files import GroupFiles

logger = logging.getLogger(__name__)


class Learners(Protocol):
    """The interface of the learner ranks that the loop needs."""

    async def train(self, groups: int) -> dict[str, float]:
        """Claim `groups` groups from the buffer, take one step on them, acknowledge them; return statistics."""

    async def publish(self, version: int) -> float:
        """Send the weights to every actor as `version`; returns the seconds that it took."""

    async def save(self, step: int) -> None:
        """Checkpoint weights, optimizer, random state and the step together."""


@dataclass(slots=True)
class Progress:
    """The state of a run. One number holds version, steps done and trained groups: the policy changes once a step."""

    step: int = 0
    admitted: int = 0
    training: bool = False
    stop: bool = False

    def resume_at(self, step: int, groups_per_step: int) -> int:
        """Go back to the state after `step` steps; in-flight groups are admitted again. Returns `step`."""
        self.step, self.admitted = step, step * groups_per_step
        return step


@dataclass(slots=True)
class TrainingLoop:
    """Trains until `config.steps`, or until `progress.stop` is set; then the current step is the last one.

    `after_step` gets each step's row of statistics; `kept` takes the groups of the newest steps, before they train.
    """

    config: RunConfig
    order: PromptOrder
    rollout: Rollout
    buffer: TrajectoryBuffer
    learners: Learners
    after_step: Callable[[int, dict[str, float]], Awaitable[None]]
    progress: Progress
    kept: GroupFiles | None = None
    _appended: dict[int, asyncio.Event] = field(default_factory=dict)
    _rolled: dict[int, RolledGroup] = field(default_factory=dict)
    _room: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        rollout = self.config.rollout  # the buffer has room for all admitted groups
        self._room = asyncio.Semaphore(rollout.groups_in_flight or self.config.buffer.capacity)

    async def run(self) -> None:
        """
        Raises:
            StageError: a stage failed for good, or missed its deadline; names it.
        """
        config, progress, size = self.config, self.progress, self.config.rollout.groups_per_step
        progress.training = True
        try:
            async with asyncio.TaskGroup() as rollouts:
                while progress.step < config.steps and not progress.stop:
                    began = time.monotonic()
                    self.admit(rollouts)
                    batch = range(progress.step * size, (progress.step + 1) * size)
                    await asyncio.gather(*(self._appended[index].wait() for index in batch))
                    waited = time.monotonic() - began
                    learned = await self.learners.train(size)
                    progress.step += 1
                    learned["seconds/publish"] = await self.learners.publish(progress.step)
                    rolled = [self._rolled.pop(index) for index in batch]
                    for index in batch:
                        del self._appended[index]
                    statistics = StepStatistics.of(progress.step, rolled)
                    row = statistics.row(learned, waited, time.monotonic() - began)
                    self.rollout.telemetry.groups(statistics)
                    await self.after_step(progress.step, row)
                    if self.kept:
                        self.kept.drop_before(progress.step - config.rollout.keep_groups + 1)
                    if self._is_checkpoint(progress):
                        await self.learners.save(progress.step)
                if progress.stop:
                    raise _Stopped
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if not isinstance(cause, _Stopped):
                raise cause from group
            logger.info("stopped on request after step %d", progress.step)
        finally:
            progress.training = False

    def _is_checkpoint(self, progress: Progress) -> bool:
        last = progress.stop or progress.step == self.config.steps
        return last or progress.step % self.config.checkpoint.every == 0

    def admit(self, rollouts: asyncio.TaskGroup) -> None:
        """Start every group that will be trained at most `staleness` versions from now.

        Groups train in the order of their index, `groups_per_step` per step, so group i trains at version i //
        groups_per_step. This limit on admission bounds the staleness of every segment.
        """
        size, config = self.config.rollout.groups_per_step, self.config
        limit = min(self.progress.step + 1 + config.rollout.staleness, config.steps) * size
        while self.progress.admitted < limit:
            index = self.progress.admitted
            self._appended[index] = asyncio.Event()
            rollouts.create_task(self._roll_out(self.order[index]), name=f"group {index}")
            self.progress.admitted += 1

    async def _roll_out(self, visit: Visit) -> None:
        """Roll a group out and append it behind its predecessor, so that the buffer holds groups in order."""
        async with self._room:
            rolled = await self.rollout.group(visit)
        before = self._appended.get(visit.index - 1)
        if before:
            await before.wait()
        start, deadline = time.monotonic(), self.config.buffer.deadline_s
        try:
            with self.rollout.telemetry.stage("buffer", rolled.stage_seconds):
                await asyncio.to_thread(self.buffer.append, rolled.group, deadline)
            if self.kept:
                step = visit.index // self.config.rollout.groups_per_step + 1
                await asyncio.to_thread(self.kept.write, step, rolled.group)
        except (TransportError, OSError) as error:
            raise StageError("buffer", f"group {rolled.group.id}", time.monotonic() - start, str(error)) from error
        self._rolled[visit.index] = rolled
        self._appended[visit.index].set()


class _Stopped(Exception):
    """The run was asked to stop; it drops in-flight groups, and a resumed run draws them again."""
