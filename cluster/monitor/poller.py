"""Asks pools, buffer and reward services for their figures every few seconds, beside the training loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cluster.monitor.store import MetricError
from cluster.monitor.telemetry import Telemetry
from cluster.pools.rollout_pools import RolloutPool
from recipe.errors import StageError
from rewards.client import ServiceClient
from transport.buffer import TrajectoryBuffer
from transport.errors import TransportError

logger = logging.getLogger(__name__)

EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Poller:
    """Exports the figures of other processes."""

    telemetry: Telemetry
    pools: Sequence[RolloutPool]
    buffer: TrajectoryBuffer
    rewards: Sequence[ServiceClient]

    async def forever(self) -> None:
        """Poll until cancelled. A failed poll is logged only; the training loop decides whether the run ends."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.poll()
            except (StageError, TransportError, MetricError) as error:
                logger.warning("not asked: %s", error)

    async def poll(self) -> None:
        """Ask each of them once.

        Raises:
            StageError: a pool cannot replace a dead process.
            TransportError: Redis does not answer.
        """
        for pool in self.pools:
            for replica, values in (await pool.metrics()).items():
                self.telemetry.replica(pool.name, replica, values)
        self.telemetry.buffer(asdict(await asyncio.to_thread(self.buffer.stats)))
        await asyncio.gather(*(self._reward(client) for client in self.rewards))
        await asyncio.to_thread(self.telemetry.write_targets)

    async def _reward(self, client: ServiceClient) -> None:
        try:
            stats = [asdict(one) for one in await client.stats()]
        except Exception as error:  # whatever Serve raises while it replaces a replica
            logger.warning("reward %r not asked: %s: %s", client.name, type(error).__name__, error)
            return
        sums = {name: sum(one[name] for one in stats) for name in stats[0]} if stats else {}
        self.telemetry.reward_service(client.name, {"replicas": len(stats), **sums})
