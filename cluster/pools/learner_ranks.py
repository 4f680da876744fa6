"""The learner pool. Ranks act together: a call goes to all of them, and one dead rank ends the run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cluster.pools.pool import Pool, PoolSpec
from recipe.config import RunConfig
from recipe.run_folder import RunFolder
from transport.weights.broadcast import Seat
from transport.weights.channel import Published, WeightManifest

if TYPE_CHECKING:  # DeepSpeed is the ranks' alone
    from learner.replay import Replayed


class LearnerRanks:
    """The ranks of the learner; every call ends within the learner's deadline."""

    def __init__(self, config: RunConfig, folder: RunFolder, buffer_url: str | None, run: str) -> None:
        """Without a `buffer_url` they train kept groups alone."""
        learner = config.learner
        self._folder = folder
        self._deadline_s = config.buffer.deadline_s
        arguments = {
            "policy": config.policy,
            "learner": learner,
            "buffer": config.buffer.model_copy(update={"url": buffer_url}) if buffer_url else None,
            "weights": config.weights,
            "reward_weights": config.rewards.weights,
            "run": run,
            "total_steps": config.steps,
            "ranks": learner.ranks,
        }
        spec = PoolSpec(
            "learner", "learner.rank:LearnerRank", arguments, learner.ranks, learner.cpus, learner.gpus,
            learner.threads, learner.deadline_s, concurrent=False, ranked=True, resources=learner.resources,
        )  # fmt: skip
        self.pool = Pool(spec, folder.logs, restarts=0)

    async def start(self, deadline_s: float) -> None:
        """Start the ranks and join them to one process group."""
        pool = self.pool
        await pool.start(deadline_s)
        nodes = await asyncio.gather(*(pool.node_of(replica) for replica in pool.replicas))
        host = nodes[0] if len(set(nodes)) > 1 else "127.0.0.1"
        endpoint = await self._first("address", host, work="rendezvous")
        await pool.everywhere("setup", endpoint, work="start-up", deadline_s=deadline_s)  # loads the model

    async def train(self, groups: int) -> dict[str, float]:
        """Claim `groups` groups, take a step on them, acknowledge them; returns the step's statistics."""
        work = f"a step on {groups} groups"
        entries = await self._first("claim", groups, self._deadline_s, work=work)
        statistics: dict[str, float] = (await self._all("train", entries, work=work))[0]
        await self._first("acknowledge", entries, work=work)
        return statistics

    async def publish(self, version: int) -> Published:
        """Publish the trained weights as `version`, for actors to pull."""
        published: Published = (await self._all("publish", version, work=f"publishing weights {version}"))[0]
        return published

    async def publish_present(self) -> Published:
        """Publish the present weights for an actor that joined late or missed a broadcast."""
        published: Published = (await self._all("publish_present", work="publishing the present weights"))[0]
        return published

    async def announce(self, version: int) -> WeightManifest:
        """The manifest of a broadcast of the trained weights."""
        manifest: WeightManifest = await self._first("announce", version, work=f"announcing weights {version}")
        return manifest

    async def broadcast(self, manifest: WeightManifest, seat: Seat, deadline_s: float) -> None:
        """Broadcast the trained weights from rank 0, which has `seat`."""
        await self._all("broadcast", manifest, seat, deadline_s, work=f"broadcasting weights {manifest.version}")

    async def save(self, step: int) -> None:
        """Checkpoint weights, optimizer and random states together."""
        await self._all("save", str(self._folder.checkpoints), work=f"the checkpoint of step {step}")

    async def restore(self) -> int:
        """Load the newest checkpoint and return its step; 0 without a checkpoint."""
        step: int = (await self._all("load", str(self._folder.checkpoints), work="loading the newest checkpoint"))[0]
        return step

    async def replay(self, of: RunFolder, step: int, groups: int) -> Replayed:
        """Train the kept groups of a step of the run `of` again, from its newest checkpoint before."""
        arguments = (str(of.checkpoints), str(of.groups), step, groups)
        deadline_s = step * self.pool.spec.deadline_s  # as many steps as may be trained on the way
        told = await self.pool.everywhere("replay", *arguments, work=f"step {step} again", deadline_s=deadline_s)
        replayed: Replayed = told[0]
        return replayed

    async def export(self) -> None:
        """Write the policy as a checkpoint that `bicot generate` reads."""
        await self._all("export", str(self._folder.policy), work="the export of the policy")

    def close(self) -> None:
        """End the ranks."""
        self.pool.close()

    async def _first(self, method: str, *args: Any, work: str) -> Any:
        return await self.pool.tell(self.pool.replicas[0], method, *args, work=work)

    async def _all(self, method: str, *args: Any, work: str) -> list[Any]:
        return await self.pool.everywhere(method, *args, work=work)
