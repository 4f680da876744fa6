"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

from learner.config import OptimizerConfig


def lr_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The factor of the peak learning rate in update number `step` (from 0) of `total_steps`.

    It rises linearly over the warm-up, whose last step has the peak, and then follows `schedule`. A falling schedule
    would reach 0 at step `total_steps`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    left = max(0.0, 1.0 - done)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
