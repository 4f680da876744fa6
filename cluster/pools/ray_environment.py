"""What has to stand in the environment before Ray is imported: it reads its authentication mode only then."""

from __future__ import annotations

import os
import secrets

from recipe.config import RunConfig


def cluster_address(config: RunConfig) -> str | None:
    """The cluster that a run joins; None for a run that starts its own. `ray job submit` sets RAY_ADDRESS."""
    return config.ray.address or os.environ.get("RAY_ADDRESS")


def prepare(config: RunConfig) -> None:
    """Quiet Ray, and give a cluster that the run starts itself a token of its own."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # One thread a process: several processes with several threads each on few cores are many times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if cluster_address(config) is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
