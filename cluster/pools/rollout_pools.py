"""The pools of a rollout, as typed facades: each method calls the actor's method of the same purpose.

Here a call leaves the driver's process: `SemanticPool.generate` runs `actors.semantic_actor:SemanticActor.generate`
in another process; the other methods do the same. The learner's facade is `learner_ranks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from actors.requests import ImageOutput, ImageRequest, SemanticOutput, SemanticRequest
from cluster.pools.pool import Pool, PoolSpec, Replica
from recipe.config import RunConfig
from transport.weights.broadcast import Seat
from transport.weights.channel import Published, WeightManifest

OnStart = Callable[["RolloutPool", Replica], Awaitable[None]]
"""Called with a new replica before it takes work, e.g. `WeightSync.on_start`."""


class RolloutPool(Pool):
    """A pool whose replicas hold the policy's weights. Every call may raise `StageError`, as `Pool.call` does."""

    members = 1
    """Processes of one replica that take part in a broadcast of weights."""

    def __init__(self, spec: PoolSpec, logs: Path, restarts: int, on_start: OnStart) -> None:
        super().__init__(spec, logs, restarts, lambda replica: on_start(self, replica))

    async def apply_weights(self, published: Published) -> None:
        """Have every replica take a published version; if a replica dies, also its replacement."""
        await self.everywhere("apply_weights", published, work=f"weights {published.version}")

    async def apply_weights_to(self, replica: Replica, published: Published) -> None:
        """Have one replica take a published version; if it dies, its replacement."""
        await self.at(replica.number, "apply_weights", published, work=f"weights {published.version}")

    async def start_with_weights(self, replica: Replica, published: Published) -> None:
        """Give a published version to a replica that is not yet in the pool.

        Raises:
            StageError: the replica failed, died, or missed the pool's deadline; this method does not replace it.
        """
        await self.tell(replica, "apply_weights", published, work=f"weights {published.version}")

    async def receive_weights(
        self, replica: Replica, manifest: WeightManifest, seat: Seat, deadline_s: float
    ) -> None:
        """Have a replica take part in a broadcast of weights.

        Raises:
            StageError: the replica failed, died, or missed the pool's deadline; this method does not replace it.
        """
        work = f"weights {manifest.version}"
        await self.tell(replica, "receive_weights", manifest, seat, deadline_s, work=work)

    async def metrics(self) -> dict[str, dict[str, float]]:
        """The figures of every replica, by its name."""
        told: list[dict[str, float]] = await self.everywhere("metrics", work="metrics")
        return {replica.name: values for replica, values in zip(self.replicas, told, strict=True)}


class SemanticPool(RolloutPool):
    """Writes semantic-level CoTs: `actors.semantic_actor:SemanticActor`."""

    def __init__(self, config: RunConfig, logs: Path, on_start: OnStart) -> None:
        pool = config.semantic
        self.members = pool.tensor_parallel
        spec = PoolSpec(
            "semantic", "actors.semantic_actor:SemanticActor", {"policy": config.policy, "semantic": pool},
            pool.replicas, pool.cpus, pool.gpus, pool.threads, pool.deadline_s, resources=pool.resources,
        )  # fmt: skip
        super().__init__(spec, logs, config.ray.restarts, on_start)

    async def load_checkpoint(self, replica: Replica) -> None:
        """Give a replica the policy's own weights as version 0, where no learner publishes any.

        Raises:
            StageError: it failed, died, or missed the pool's deadline; nothing replaces it here.
        """
        await self.tell(replica, "load_checkpoint", work="the checkpoint's weights")

    async def generate(self, requests: Sequence[SemanticRequest], work: str) -> list[SemanticOutput]:
        """One CoT for each request, in order; errors name the purpose, `work`."""
        cots: list[SemanticOutput] = await self.call("generate", requests, work=work)
        return cots


class ImagePool(RolloutPool):
    """Draws pictures: `actors.image_actor:ImageActor`."""

    def __init__(self, config: RunConfig, logs: Path, on_start: OnStart) -> None:
        pool = config.image
        spec = PoolSpec(
            "image", "actors.image_actor:ImageActor", {"policy": config.policy, "image": pool},
            pool.replicas, pool.cpus, pool.gpus, pool.threads, pool.deadline_s, resources=pool.resources,
        )  # fmt: skip
        super().__init__(spec, logs, config.ray.restarts, on_start)

    async def sample(self, requests: Sequence[ImageRequest], work: str) -> list[ImageOutput]:
        """One picture for each request, in order; errors name the purpose, `work`."""
        images: list[ImageOutput] = await self.call("sample", requests, work=work)
        return images


class RolloutPools:
    """The pools of a run; `semantic` is None if the run draws from the prompt alone."""

    def __init__(self, config: RunConfig, logs: Path, on_start: OnStart) -> None:
        self.semantic = SemanticPool(config, logs, on_start) if config.semantic.enabled else None
        self.image = ImagePool(config, logs, on_start)

    @property
    def all(self) -> list[RolloutPool]:
        """All pools."""
        return [self.image, *([self.semantic] if self.semantic else [])]

    async def start(self, deadline_s: float) -> None:
        """Start all pools in parallel.

        Raises:
            StageError: a replica did not start within `deadline_s` seconds.
        """
        await asyncio.gather(*(pool.start(deadline_s) for pool in self.all))

    def close(self) -> None:
        """Kill every replica."""
        for pool in self.all:
            pool.close()
