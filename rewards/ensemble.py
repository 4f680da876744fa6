"""Calls every reward for a group at once. A reward that fails is missing for the whole group, and never 0."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from policy.prompts import PromptRecord
from rewards.base import InvalidScores, RewardFailure, checked_scores

logger = logging.getLogger(__name__)


class RewardClient(Protocol):
    """Anything that scores within its own deadline: a service's client, or a reward in this process."""

    @property
    def name(self) -> str:
        """The reward's name in the config."""

    @property
    def weight(self) -> float:
        """Its weight; 0 means that it is reported only."""

    async def score(self, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> list[float | None]:
        """One score per picture; raises RewardFailure."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Scores of the G members of a group.

    `rewards` has one dict per member, from reward name to score (None if missing); every dict has every reward's
    name. `failures` says why a reward is missing for all members; `seconds` has the time of each reward, failed ones
    included.
    """

    rewards: list[dict[str, float | None]]
    failures: dict[str, str]
    seconds: dict[str, float]


class EnsembleFailure(RuntimeError):
    """No reward that counts could score the group; `failures` holds each one's reason by name."""

    def __init__(self, failures: dict[str, str]) -> None:
        super().__init__(failures)
        self.failures = failures

    def __str__(self) -> str:
        reasons = "; ".join(f"{name}: {why}" for name, why in self.failures.items())
        return f"every reward that counts failed ({reasons})"


async def score_group(
    clients: Sequence[RewardClient], pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]
) -> GroupScores:
    """Score a group of pictures (uint8 [H, W, 3]), each for the prompt record in its place.

    Raises:
        EnsembleFailure: every reward with a weight above 0 failed.
        ValueError: the numbers of prompt records and pictures differ.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures but {len(prompts)} prompt records")
    answers = await asyncio.gather(*(_ask(client, pictures, prompts) for client in clients))
    by_name = {client.name: answer for client, answer in zip(clients, answers, strict=True)}
    failures = {name: answer.failure for name, answer in by_name.items() if answer.failure is not None}
    if all(client.name in failures for client in clients if client.weight > 0):
        raise EnsembleFailure(failures)
    return GroupScores(
        rewards=[
            {name: answer.scores[member] for name, answer in by_name.items()} for member in range(len(pictures))
        ],
        failures=failures,
        seconds={name: answer.seconds for name, answer in by_name.items()},
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    scores: list[float | None]
    seconds: float
    failure: str | None = None


async def _ask(client: RewardClient, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> _Answer:
    start = time.monotonic()
    try:
        scores = checked_scores(await client.score(pictures, prompts), len(pictures))
        return _Answer(scores, time.monotonic() - start)
    except RewardFailure as failure:
        why = failure.why
    except InvalidScores as error:
        why = str(error)
    except Exception as error:  # a failure of one reward must not lose the others' scores
        logger.exception("reward %r raised", client.name)
        why = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    logger.warning("reward %r is missing for a group of %d: %s", client.name, len(pictures), why)
    return _Answer([None] * len(pictures), seconds, why)
