"""A reward service that never answers in time."""

from __future__ import annotations

import time

import numpy as np

from policy.prompts import PromptRecord
from rewards.base import Reward


class Sleepy(Reward):
    """Sleeps longer than its deadline."""

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        time.sleep(5)
        return [1.0] * len(pictures)
