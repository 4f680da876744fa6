"""One visit to a prompt, from the prompt to a scored trajectory group: CoT, picture, rewards."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.requests import ImageOutput, ImageRequest, SemanticOutput, SemanticRequest
from cluster.monitor.pictures import look_at
from cluster.monitor.rolled_group import RolledGroup
from cluster.monitor.telemetry import Telemetry
from cluster.pools.rollout_pools import RolloutPools
from cluster.prompt_order import Visit
from policy.pictures import to_png
from policy.prompts import PromptRecord
from policy.seeds import member_seed
from recipe.config import RolloutConfig
from recipe.errors import StageError
from rewards.ensemble import EnsembleFailure, RewardClient, score_group
from transport.trajectory import Member, TrajectoryGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The three stages of a rollout; groups pass through them in parallel."""

    pools: RolloutPools
    rewards: Sequence[RewardClient]
    telemetry: Telemetry
    seed: int
    config: RolloutConfig

    async def group(self, visit: Visit, keep_pictures: bool = False) -> RolledGroup:
        """Roll out one visit to a prompt, and keep its pictures as PNG if asked to.

        Raises:
            StageError: a stage failed `retries` + 1 times.
        """
        seeds = [
            member_seed(self.seed, visit.prompt.id, visit.visit, number) for number in range(self.config.group_size)
        ]
        for attempt in range(self.config.retries + 1):
            try:
                seconds: dict[str, float] = {}
                members, images = await self._stages(visit.prompt, seeds, visit.group_id, keep_pictures, seconds)
                group = TrajectoryGroup(visit.group_id, visit.index, visit.visit, visit.prompt, members)
                looks = await asyncio.to_thread(look_at, [image.picture for image in images])
                self.telemetry.count("bicot_groups_total")
                return RolledGroup(group, looks, seconds)
            except StageError as error:
                if attempt == self.config.retries:
                    raise
                logger.warning("group %s, try %d: %s\n%s", visit.group_id, attempt + 1, error, error.log_tail)
                self.telemetry.count("bicot_group_retries_total")
        raise AssertionError("unreachable")

    async def members(
        self, prompt: PromptRecord, seeds: Sequence[int], work: str, keep_pictures: bool = False
    ) -> tuple[Member, ...]:
        """Roll out one member per seed, score them together, and keep their pictures as PNG if asked to."""
        return (await self._stages(prompt, seeds, work, keep_pictures, {}))[0]

    async def _stages(
        self, prompt: PromptRecord, seeds: Sequence[int], work: str, keep_pictures: bool, seconds: dict[str, float]
    ) -> tuple[tuple[Member, ...], list[ImageOutput]]:
        """The members and their pictures; the method writes the seconds of each stage into `seconds`."""
        cots: Sequence[SemanticOutput | None] = [None] * len(seeds)
        if self.pools.semantic:
            with self.telemetry.stage("semantic", seconds):
                requests = [SemanticRequest(prompt.prompt, seed) for seed in seeds]
                cots = await self.pools.semantic.generate(requests, f"group {work}")
        with self.telemetry.stage("image", seconds):
            images = await self._draw(prompt, cots, seeds, work)
        with self.telemetry.stage("rewards", seconds):
            scores = await self._score(prompt, images, work)
        members = tuple(
            Member(
                seed=seed,
                semantic=cot.segment if cot else None,
                image=image.segment,
                cot=cot.cot if cot else "",
                rewards=rewards,
                png=to_png(image.picture) if keep_pictures else None,
            )
            for seed, cot, image, rewards in zip(seeds, cots, images, scores, strict=True)
        )
        return members, images

    async def _draw(
        self, prompt: PromptRecord, cots: Sequence[SemanticOutput | None], seeds: Sequence[int], work: str
    ) -> list[ImageOutput]:
        texts = [cot.cot if cot else "" for cot in cots]
        requests = [ImageRequest(prompt.prompt, text, seed) for text, seed in zip(texts, seeds, strict=True)]
        images = await self.pools.image.sample(requests, f"group {work}")
        self.telemetry.count("bicot_pictures_total", len(images))
        return images

    async def _score(
        self, prompt: PromptRecord, images: Sequence[ImageOutput], work: str
    ) -> list[dict[str, float | None]]:
        start = time.monotonic()
        try:
            scored = await score_group(self.rewards, [one.picture for one in images], [prompt] * len(images))
        except EnsembleFailure as error:
            for name in error.failures:
                self.telemetry.count("bicot_reward_failures_total", reward=name)
            raise StageError("rewards", f"group {work}", time.monotonic() - start, str(error)) from error
        for name, seconds in scored.seconds.items():
            self.telemetry.observe("bicot_reward_seconds", seconds, reward=name, task_type=prompt.task_type)
        for name in scored.failures:
            self.telemetry.count("bicot_reward_failures_total", reward=name)
        return scored.rewards
