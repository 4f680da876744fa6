"""Held-out scores: the same prompts with the same seeds every time, rolled out and scored by the run's own pools."""

from __future__ import annotations

import asyncio
import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np
from PIL import Image

from policy.prompts import PromptRecord, spread
from policy.seeds import member_seed
from recipe.errors import StageError
from recipe.run_folder import RunFolder, write_atomically
from transport.trajectory import Member

HELD_OUT_VISIT = -1
"""The visit number in a held-out member's seed; in training the number is never negative."""


class Painter(Protocol):
    """Draws and scores members, e.g. with a run's own pools."""

    @property
    def seed(self) -> int:
        """The seed from which every member's seed is derived."""

    async def members(
        self, prompt: PromptRecord, seeds: Sequence[int], work: str, keep_pictures: bool = False
    ) -> tuple[Member, ...]:
        """One scored member per seed, with its picture if asked to; errors name the purpose, `work`."""


Show = Callable[[int, np.ndarray, list[str]], None]
"""Called with a step, pictures (uint8 [N, H, W, 3]) and their texts."""


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Mean of the metric by family, "all" over every picture; `rewards` has the mean of each reward.

    `pictures` counts the pictures that the metric scored, by family.
    """

    by_family: dict[str, float]
    rewards: dict[str, float]
    pictures: dict[str, int]


class HeldOut:
    """Scores one split of held-out prompts."""

    def __init__(
        self, split: str, prompts: list[PromptRecord], members: int, metric: str, samples: int, together: int
    ) -> None:
        """At most `together` prompts run at a time; `samples` pictures of the first members are kept."""
        self.split = split
        self._prompts = prompts
        self._members = members
        self._metric = metric
        self._together = together
        self._shown = {prompt.id for prompt in spread(prompts, samples)}

    async def score(self, painter: Painter, step: int, folder: RunFolder, show: Show) -> HeldOutScores:
        """Draw and score the split at the present weights; keep samples in the run folder, and `show` them.

        Raises:
            StageError: a stage failed, or the metric scored no picture at all.
        """
        gate = asyncio.Semaphore(self._together)

        async def one(prompt: PromptRecord) -> tuple[Member, ...]:
            seeds = [member_seed(painter.seed, prompt.id, HELD_OUT_VISIT, number) for number in range(self._members)]
            async with gate:
                return await painter.members(prompt, seeds, f"{self.split}/{prompt.id}", prompt.id in self._shown)

        async with asyncio.TaskGroup() as tasks:
            jobs = [tasks.create_task(one(prompt)) for prompt in self._prompts]
        rolled = list(zip(self._prompts, (job.result() for job in jobs), strict=True))
        shown = [(prompt, members[0]) for prompt, members in rolled if prompt.id in self._shown]
        self._keep(shown, step, folder, show)
        return self._summary(rolled)

    def _summary(self, rolled: Sequence[tuple[PromptRecord, tuple[Member, ...]]]) -> HeldOutScores:
        families: dict[str, list[float]] = defaultdict(list)
        rewards: dict[str, list[float]] = defaultdict(list)
        for prompt, members in rolled:
            for member in members:
                score = member.rewards[self._metric]
                if score is not None:
                    families[prompt.group].append(score)
                for name, value in member.rewards.items():
                    if value is not None:
                        rewards[name].append(value)
        scored = [score for scores in families.values() for score in scores]
        if not scored:
            raise StageError("held-out", self.split, 0.0, f"the metric {self._metric!r} scored no picture")
        by_family = {name: fmean(families[name]) for name in sorted(families)}
        return HeldOutScores(
            {**by_family, "all": fmean(scored)},
            {name: fmean(values) for name, values in rewards.items()},
            {name: len(families[name]) for name in by_family} | {"all": len(scored)},
        )

    def _keep(self, shown: Sequence[tuple[PromptRecord, Member]], step: int, folder: RunFolder, show: Show) -> None:
        rows, pictures = [], []
        for prompt, member in shown:
            assert member.png is not None
            name = f"{self.split}-{step:06d}-{prompt.id}.png"
            (folder.samples / name).write_bytes(member.png)
            pictures.append(np.asarray(Image.open(io.BytesIO(member.png))))
            rows.append(
                {
                    "prompt": prompt.prompt,
                    "family": prompt.group,
                    "cot": member.cot,
                    "rewards": member.rewards,
                    "png": name,
                }
            )
        text = json.dumps({"step": step, "split": self.split, "samples": rows}, ensure_ascii=False, indent=1)
        write_atomically(folder.samples / f"{self.split}-{step:06d}.json", text)
        if pictures:
            texts = [f"**{row['prompt']}** {row['cot']}" for row in rows]
            show(step, np.stack(pictures), texts)
