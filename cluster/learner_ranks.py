"""The learner pool: ranks that act together, so a call goes to all of them, and one dead rank ends the run."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cluster.config import RunConfig
from cluster.errors import StageError
from cluster.pool import Pool, PoolSpec
from cluster.run_folder import RunFolder
from transport.weights.channel import Published


class LearnerRanks:
    """The ranks of the learner."""

    def __init__(self, config: RunConfig, folder: RunFolder, buffer_url: str, run: str) -> None:
        learner = config.learner
        arguments = {
            "policy": config.policy,
            "learner": learner,
            "buffer": config.buffer.model_copy(update={"url": buffer_url}),
            "weights": config.weights,
            "reward_weights": config.rewards.weights,
            "run": run,
            "total_steps": config.steps,
            "seed": config.seed,
        }
        spec = PoolSpec(
            "learner", "learner.actor:LearnerRank", arguments, learner.ranks, learner.cpus, learner.gpus,
            learner.threads, learner.deadline_s, concurrent=False,
        )  # fmt: skip
        self._pool = Pool(spec, folder.logs, restarts=0)
        self._folder = folder
