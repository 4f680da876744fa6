"""A pool of replicas: calls go to the least busy one, each has a deadline, and a dead process is replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.errors import EngineError
from cluster.pools.worker import ConcurrentWorker, Worker
from recipe.errors import StageError, log_tail

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The specification of a pool: `target` is "module:Class", `arguments` its keyword arguments.

    `concurrent` replicas run calls in parallel, others one at a time; `ranked` replicas get their number as the
    argument `rank`.
    """

    name: str
    target: str
    arguments: dict[str, Any]
    replicas: int
    cpus: float
    gpus: float
    threads: int
    deadline_s: float
    concurrent: bool = True
    ranked: bool = False
    resources: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Replica:
    """One process of a pool; `busy` counts its running calls, `busy_s` sums the seconds with a running call."""

    number: int
    name: str
    log: Path
    actor: Any
    busy: int = 0
    busy_s: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def enter(self) -> None:
        """A call begins."""
        if self.busy == 0:
            self.since = time.monotonic()
        self.busy += 1

    def busy_seconds(self) -> float:
        """Seconds with a running call, up to now."""
        return self.busy_s + (time.monotonic() - self.since if self.busy else 0.0)

    def leave(self) -> None:
        """A call has ended."""
        self.busy -= 1
        if self.busy == 0:
            self.busy_s += time.monotonic() - self.since


class ReplicaLost(StageError):
    """The replica's process must be replaced: it died, its engine failed, or it missed its deadline."""


class Pool:
    """Replicas of one actor class, whose methods are called by name.

    Callers use a facade with the methods' types: `rollout_pools` and `learner_ranks`. `on_start` is awaited with each
    new replica before it takes work, e.g. to hand it the newest weights.
    """

    def __init__(
        self,
        spec: PoolSpec,
        logs: Path,
        restarts: int,
        on_start: Callable[[Replica], Awaitable[None]] | None = None,
    ) -> None:
        self.spec = spec
        self.restarts = 0
        self.replicas: list[Replica] = []
        self._logs = logs
        self._allowed = restarts
        self._on_start = on_start
        self._replacing: dict[str, asyncio.Task[None]] = {}

    @property
    def name(self) -> str:
        """The pool's stage name in errors and metrics."""
        return self.spec.name

    async def start(self, deadline_s: float) -> None:
        """Start all replicas in parallel, and wait until each answers.

        Raises:
            StageError: one did not start within `deadline_s` seconds.
        """
        self.replicas = [self._spawn(number) for number in range(self.spec.replicas)]
        await asyncio.gather(*(self._ready(replica, deadline_s) for replica in self.replicas))

    async def call(self, method: str, *args: Any, work: str) -> Any:
        """Run a method on the least busy replica; errors name the purpose, `work`.

        If the replica dies or misses the pool's deadline, the pool replaces it, and the call goes to another replica.

        Raises:
            StageError: the method itself failed, or the pool's restarts are used up.
        """
        while True:
            alive = [replica for replica in self.replicas if replica.name not in self._replacing]
            if not alive:
                await asyncio.shield(next(iter(self._replacing.values())))
                continue
            replica = min(alive, key=lambda one: one.busy)
            try:
                return await self._ask(replica, method, args, work, self.spec.deadline_s)
            except ReplicaLost as error:
                await self.replace(replica, error)

    async def everywhere(self, method: str, *args: Any, work: str, deadline_s: float | None = None) -> list[Any]:
        """Run a method on every replica at once; if a replica dies, also on its replacement.

        The deadline is the pool's unless the call gives one.

        Raises:
            StageError: as `call`.
        """

        numbers = range(len(self.replicas))
        return await asyncio.gather(
            *(self.at(number, method, *args, work=work, deadline_s=deadline_s) for number in numbers)
        )

    async def at(self, number: int, method: str, *args: Any, work: str, deadline_s: float | None = None) -> Any:
        """Run a method on replica `number`; if it dies, on its replacement. Otherwise as `everywhere`."""
        while True:
            replica = self.replicas[number]
            try:
                return await self._ask(replica, method, args, work, deadline_s or self.spec.deadline_s)
            except ReplicaLost as error:
                await self.replace(replica, error)

    async def tell(self, replica: Replica, method: str, *args: Any, work: str) -> Any:
        """Run a method on one replica.

        Raises:
            StageError: it failed, died, or missed the pool's deadline.
        """
        return await self._ask(replica, method, args, work, self.spec.deadline_s)

    async def settled(self) -> list[Replica]:
        """The replicas, as soon as none is being replaced."""
        while self._replacing:
            await asyncio.shield(next(iter(self._replacing.values())))
        return list(self.replicas)

    async def node_of(self, replica: Replica) -> str:
        """The address of the machine that a replica runs on."""
        address: str = await self._await(replica, replica.actor.node.remote(), "its address", self.spec.deadline_s)
        return address

    def close(self) -> None:
        """Kill every replica."""
        for replica in self.replicas:
            ray.kill(replica.actor)
        self.replicas = []

    def _spawn(self, number: int) -> Replica:
        spec, name = self.spec, f"{self.name}-{number}"
        arguments = spec.arguments | ({"rank": number} if spec.ranked else {})
        log = self._logs / f"{name}.log"
        threads = {key: str(spec.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        actor_class = ray.remote(ConcurrentWorker if spec.concurrent else Worker)
        actor = actor_class.options(
            num_cpus=spec.cpus,
            num_gpus=spec.gpus,
            resources=spec.resources,
            max_restarts=0,
            runtime_env={"env_vars": threads},
            **({"max_concurrency": 1000} if spec.concurrent else {}),
        ).remote(spec.target, str(log), arguments)
        return Replica(number, name, log, actor)

    async def _ready(self, replica: Replica, deadline_s: float) -> None:
        await self._await(replica, replica.actor.pid.remote(), "start-up", deadline_s)
        if self._on_start:
            await self._on_start(replica)

    async def _ask(self, replica: Replica, method: str, args: tuple[Any, ...], work: str, deadline_s: float) -> Any:
        replica.enter()
        try:
            return await self._await(replica, replica.actor.call.remote(method, *args), work, deadline_s)
        finally:
            replica.leave()

    async def _await(self, replica: Replica, reference: Any, work: str, deadline_s: float) -> Any:
        start = time.monotonic()
        kind: type[StageError] = ReplicaLost
        try:
            return await asyncio.wait_for(_result(reference), deadline_s)
        except RayTaskError as error:
            reason = f"{replica.name} raised {type(error.cause).__name__}: {error.cause}"
            kind = ReplicaLost if isinstance(error.cause, EngineError) else StageError
            cause: Exception = error
        except RayActorError as error:
            reason, cause = f"{replica.name} died", error
        except TimeoutError as error:
            reason, cause = f"no answer from {replica.name} within its deadline of {deadline_s:g} s", error
        except RayError as error:
            reason, cause = f"{type(error).__name__}: {error}", error
        log = str(replica.log)
        raise kind(self.name, work, time.monotonic() - start, f"{reason}; see {log}", log_tail(log)) from cause

    async def replace(self, replica: Replica, error: StageError) -> None:
        """Replace the replica's process, once, even if several calls found it dead.

        Raises:
            StageError: the pool's restarts are used up, or the new process did not start.
        """
        if replica not in self.replicas:
            return
        if replica.name not in self._replacing:
            if self.restarts >= self._allowed:
                raise StageError(
                    self.name,
                    "its pool",
                    0.0,
                    f"all {self.restarts} restarts are used up; the last failure: {error}",
                    error.log_tail,
                ) from error
            self.restarts += 1
            logger.warning("%s; replacing it (restart %d)\n%s", error, self.restarts, error.log_tail)
            self._replacing[replica.name] = asyncio.create_task(self._renew(replica))
        await asyncio.shield(self._replacing[replica.name])

    async def _renew(self, replica: Replica) -> None:
        try:
            ray.kill(replica.actor)
            fresh = self._spawn(replica.number)
            await self._ready(fresh, self.spec.deadline_s)
            self.replicas[self.replicas.index(replica)] = fresh
        finally:
            del self._replacing[replica.name]


async def _result(reference: Any) -> Any:
    return await reference
