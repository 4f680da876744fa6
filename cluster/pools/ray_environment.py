"""Environment variables to set before importing Ray: Ray reads its authentication mode only at import."""

from __future__ import annotations

import os
import secrets

from recipe.config import RunConfig
from recipe.resources import cluster_address


def prepare(config: RunConfig) -> None:
    """Quiet Ray, and give a cluster that the run starts its own token."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # One thread a process: several processes with several threads each on few cores are many times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if cluster_address(config) is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
