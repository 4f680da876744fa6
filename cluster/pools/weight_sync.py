"""Sends new weights to every actor: through the object store, or by one broadcast to all of them.

`publish` is the sync after a step; `on_start` gives a replacement replica the version that the others have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence

from cluster.pools.learner_ranks import LearnerRanks
from cluster.pools.pool import Replica, ReplicaLost
from cluster.pools.rollout_pools import RolloutPool
from recipe.config import RunConfig
from recipe.errors import StageError
from transport.weights.broadcast import Backend, BroadcastHost, Seat
from transport.weights.channel import Published

logger = logging.getLogger(__name__)

DEADLINE_SHARE = 0.45
"""Share of the shortest call deadline, for the meeting of the members and again for the transfer. So an error of
either names its cause before a pool considers its replica stuck."""

Receiver = tuple[RolloutPool, Replica]


class WeightSync(ABC):
    """Sends the learner's weights to `pools`."""

    def __init__(self, ranks: LearnerRanks) -> None:
        self.ranks = ranks
        self.pools: Sequence[RolloutPool] = ()

    @abstractmethod
    async def publish(self, version: int) -> tuple[int, float]:
        """Bring every replica to the learner's weights, as `version`.

        Returns the bytes that went to each replica, and the seconds until the transfer could begin.

        Raises:
            StageError: the learner failed, or a pool failed for good.
        """

    @abstractmethod
    async def on_start(self, pool: RolloutPool, replica: Replica) -> None:
        """Give a replica the newest weights before it takes work; none while the run starts."""


def weight_sync(config: RunConfig, ranks: LearnerRanks, host: str) -> WeightSync:
    """The weight sync that the config asks for; `host` is an address of this machine that all actors reach."""
    if config.weights.transport == "object_store":
        return ObjectStoreSync(ranks)
    shortest = min(config.learner.deadline_s, config.image.deadline_s, config.semantic.deadline_s)
    return BroadcastSync(
        ranks,
        BroadcastHost(host),
        "nccl" if config.learner.gpus else "gloo",
        DEADLINE_SHARE * shortest,
    )


class ObjectStoreSync(WeightSync):
    """The learner publishes once; every replica pulls."""

    _newest: Published | None = None

    async def publish(self, version: int) -> tuple[int, float]:
        """See `WeightSync`."""
        start = time.monotonic()
        published = self._newest = await self.ranks.publish(version)
        published_s = time.monotonic() - start
        await asyncio.gather(*(pool.apply_weights(published) for pool in self.pools))
        return published.bytes, published_s

    async def on_start(self, pool: RolloutPool, replica: Replica) -> None:
        """See `WeightSync`."""
        if self._newest:
            await pool.start_with_weights(replica, self._newest)


class BroadcastSync(WeightSync):
    """One broadcast from rank 0 of the learner to every replica; the pool says how many `members` a replica has.

    After a replacement the driver forms a new group. If a member dies, the replicas that the broadcast did not reach
    get the same version through the object store; so does a new replica.
    """

    def __init__(self, ranks: LearnerRanks, host: BroadcastHost, backend: Backend, deadline_s: float) -> None:
        super().__init__(ranks)
        self._host = host
        self._backend: Backend = backend
        self._deadline_s = deadline_s
        self._members: list[Replica] = []
        self._seats: list[Seat] = []
        self._began = False

    async def publish(self, version: int) -> tuple[int, float]:
        """See `WeightSync`."""
        start = time.monotonic()
        self._began = True
        receivers = [(pool, replica) for pool in self.pools for replica in await pool.settled()]
        manifest = await self.ranks.announce(version)
        announced_s = time.monotonic() - start
        self._form(receivers)
        seats = self._seats
        sending = self._or_stop(version, self.ranks.broadcast(manifest, seats[0], self._deadline_s))
        receiving = [
            self._or_stop(version, pool.receive_weights(replica, manifest, seat, self._deadline_s))
            for (pool, replica), seat in zip(receivers, seats[1:], strict=True)
        ]
        not_sent, *not_received = await asyncio.gather(sending, *receiving)
        if not_sent or any(not_received):
            first = not_sent or next(error for error in not_received if error)
            logger.warning("the broadcast of weights %d broke off, the object store takes over: %s", version, first)
            self._members = []  # a broken group cannot be used again
            await self._mend(zip(receivers, not_received, strict=True), version)
        else:
            self._host.forget(version)
        return sum(manifest.bucket_bytes), announced_s

    async def on_start(self, pool: RolloutPool, replica: Replica) -> None:
        """See `WeightSync`."""
        if self._began:
            published = await self.ranks.publish_present()
            await pool.start_with_weights(replica, published)

    def _form(self, receivers: Sequence[Receiver]) -> None:
        """Give every member its seat in a new group, unless the members are the same as before."""
        members = [replica for _, replica in receivers]
        if members == self._members:
            return
        names, first = [self.ranks.pool.replicas[0].name], [0]
        for pool, replica in receivers:
            first.append(len(names))
            names += [replica.name, *(f"{replica.name} worker {number}" for number in range(1, pool.members))]
        seats = self._host.seats(names, self._backend)
        self._members, self._seats = members, [seats[rank] for rank in first]

    async def _or_stop(self, version: int, call: Awaitable[object]) -> StageError | None:
        """The error of `call`, if it failed; the other members are told at once."""
        try:
            await call
        except StageError as error:
            self._host.stop(version, str(error))
            return error
        return None

    async def _mend(self, outcomes: Iterable[tuple[Receiver, StageError | None]], version: int) -> None:
        """Bring the replicas that the broadcast did not reach to the same version."""
        published = await self.ranks.publish_present()

        async def mend(pool: RolloutPool, replica: Replica, error: StageError) -> None:
            if isinstance(error, ReplicaLost):
                await pool.replace(replica, error)  # this calls `on_start` with the new replica
            elif replica in pool.replicas:
                await pool.apply_weights_to(replica, published)

        await asyncio.gather(*(mend(pool, replica, error) for (pool, replica), error in outcomes if error))
        for pool in self.pools:
            await pool.settled()
