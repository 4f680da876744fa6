"""One replica of a reward service: the reward in a Ray Serve replica's process, behind a dynamic batch.

A call has one group; a batch takes pictures of as many groups as fit. A separate thread scores the batch, so the next
batch fills meanwhile, and health checks are answered. A failure is returned as data, with its reason.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from policy.prompts import PromptRecord
from rewards.base import InvalidScores, checked_scores, load_reward
from rewards.config import RewardConfig, Scoring
from rewards.http_body import MAX_BYTES, BodyError, decode_request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a reward could not score; `final` if a retry would fail in the same way."""

    why: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """Counters of one replica since its start; `failed` counts pictures, `seconds` were spent scoring."""

    calls: int = 0
    batches: int = 0
    pictures: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Item:
    call: int
    picture: np.ndarray
    prompt: PromptRecord


class RewardReplica:
    """The class that Ray Serve deploys. The replica's process creates it and loads the model."""

    def __init__(self, config: RewardConfig, scoring: Scoring = "paper") -> None:
        _log_to_file()
        self._config = config
        self._reward = load_reward(config, scoring)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._stats = ReplicaStats()
        self._busy_since: float | None = None
        batch = serve.batch(max_batch_size=config.batch_size, batch_wait_timeout_s=config.batch_wait_s)
        self._batched: Callable[[_Item], Awaitable[float | Failed | None]] = batch(self._score_batch)

    async def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]
    ) -> list[float | None] | Failed:
        """Scores of one group, or why there are none."""
        call = self._stats.calls
        self._stats = replace(self._stats, calls=call + 1)
        items = [_Item(call, picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        answers = await asyncio.gather(*(self._batched(item) for item in items))
        failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
        return failed or [answer for answer in answers if not isinstance(answer, Failed)]

    async def stats(self) -> ReplicaStats:
        """Counters since this replica started."""
        return self._stats

    async def __call__(self, request: Request) -> JSONResponse:
        """The HTTP side; body and answer as in `rewards.http_body`."""
        if int(request.headers.get("content-length", MAX_BYTES + 1)) > MAX_BYTES:
            return JSONResponse({"error": f"the body has no length or more than {MAX_BYTES} bytes"}, 413)
        try:
            pictures, prompts = decode_request(await request.body())
        except BodyError as error:
            return JSONResponse({"error": str(error)}, 400)
        answer = await self.score(pictures, prompts)
        if isinstance(answer, Failed):
            return JSONResponse({"error": answer.why}, 500)
        return JSONResponse({"scores": answer})

    def check_health(self) -> None:
        """Called by Serve. It raises if a batch has run for too long; then Serve replaces this replica."""
        if self._busy_since is not None and time.monotonic() - self._busy_since > 2 * self._config.deadline_s:
            raise RuntimeError(f"one batch has been running for more than {2 * self._config.deadline_s:g} s")

    async def _score_batch(self, items: list[_Item]) -> list[float | Failed | None]:
        self._busy_since = start = time.monotonic()
        answers = await asyncio.get_running_loop().run_in_executor(self._worker, self._score, items)
        self._busy_since = None
        self._stats = replace(
            self._stats,
            batches=self._stats.batches + 1,
            pictures=self._stats.pictures + len(items),
            failed=self._stats.failed + sum(isinstance(answer, Failed) for answer in answers),
            seconds=self._stats.seconds + time.monotonic() - start,
        )
        return answers

    def _score(self, items: list[_Item]) -> list[float | Failed | None]:
        """In the worker's thread: one call of the reward, or one for each group when the joint one failed."""
        try:
            scores = self._reward.score([item.picture for item in items], [item.prompt for item in items])
            return list(checked_scores(scores, len(items)))
        except Exception as error:
            groups = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.call)]
            if len(groups) > 1:
                return [answer for group in groups for answer in self._score(group)]
            logger.exception("reward %r failed on %d pictures", self._config.name, len(items))
            final = isinstance(error, InvalidScores)
            why = str(error) if final else f"{type(error).__name__}: {error}"
            return [Failed(why, final)] * len(items)


def _log_to_file() -> None:
    """Write all log records of this process into the log file that Serve opens for its own records."""
    handlers = logging.getLogger("ray.serve").handlers
    to_file = [handler for handler in handlers if not isinstance(handler, logging.StreamHandler)]
    logging.basicConfig(level=logging.INFO, handlers=to_file, force=True)
