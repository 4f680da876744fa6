"""The driver's client of a reward service: deadline, retries, and one kind of failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from policy.prompts import PromptRecord
from rewards.base import RewardFailure
from rewards.config import RewardConfig
from rewards.replica import Failed, ReplicaStats

logger = logging.getLogger(__name__)

STATS_DEADLINE_S = 30.0
BACKOFF_S = 0.1


class ServiceClient:
    """Calls one reward service. `score` never waits longer than the config's `deadline_s`."""

    def __init__(self, config: RewardConfig, handle: DeploymentHandle) -> None:
        self.config = config
        self._handle = handle
        self._score = handle.options(method_name="score")

    @property
    def name(self) -> str:
        """The reward's name in the config."""
        return self.config.name

    @property
    def weight(self) -> float:
        """Its weight; 0 means that it is reported only."""
        return self.config.weight

    async def score(self, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> list[float | None]:
        """One score (None: does not apply) for each picture, uint8 [H, W, 3].

        Raises:
            RewardFailure: no scores within the deadline, or none after `retries` further attempts.
        """
        start = time.monotonic()
        why = ""
        try:
            async with asyncio.timeout(self.config.deadline_s):
                for attempt in range(self.config.retries + 1):
                    if attempt:
                        logger.info("reward %r: attempt %d after: %s", self.name, attempt + 1, why)
                        await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
                    answer = await self._attempt(list(pictures), list(prompts))
                    if not isinstance(answer, Failed):
                        return answer
                    why = answer.why
                    if answer.final:
                        break
        except TimeoutError:
            last = f" (last attempt: {why})" if why else ""
            why = f"no scores within its deadline of {self.config.deadline_s:g} s{last}"
        raise RewardFailure(self.name, why, time.monotonic() - start)

    async def _attempt(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None] | Failed:
        response: DeploymentResponse[Any] = self._score.remote(pictures, prompts)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (
            Exception
        ) as error:  # a dead replica, or an error of Serve itself; the caller decides about the consequences
            return Failed(f"{type(error).__name__}: {first_line(error)}")

    async def stats(self) -> list[ReplicaStats]:
        """Counters of every live replica, within `STATS_DEADLINE_S`."""
        return await self._handle.broadcast("stats").results_async(timeout_s=STATS_DEADLINE_S)


def first_line(error: Exception) -> str:
    """The part of one of Ray's error messages that fits in a sentence."""
    return str(error).strip().partition("\n")[0]
