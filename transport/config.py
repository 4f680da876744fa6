"""Settings of the buffer and of the weight channel."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from policy.settings import Groups, MiB, Seconds, Settings
from transport.errors import RedisUnavailable


class BufferConfig(Settings):
    """The trajectory buffer, one Redis Stream per run."""

    url: str | None = Field(
        None,
        description="redis://[user:password@]host:port/db, rediss:// for TLS, or env:NAME: the environment variable "
        "NAME holds the URL, so no file holds its password. Without a URL the run starts its own Redis.",
    )
    capacity: Groups = Field(
        256,
        ge=1,
        description="Most groups in the buffer, claimed ones included; at least those of staleness + 1 steps.",
    )
    deadline_s: Seconds = Field(
        600.0, gt=0, description="Seconds that an append waits for room, or a claim for groups, before it fails."
    )
    reconnect_s: Seconds = Field(
        10.0, gt=0, description="Seconds that a call keeps trying while Redis does not answer, before it fails."
    )

    def address(self) -> str | None:
        """The URL itself, also where `url` names an environment variable.

        Raises:
            RedisUnavailable: that variable is not set.
        """
        if self.url is None or not self.url.startswith("env:"):
            return self.url
        name = self.url.removeprefix("env:")
        if not os.environ.get(name):
            raise RedisUnavailable(
                f"buffer.url: the environment variable {name} is not set; set it to a redis:// URL"
            )
        return os.environ[name]


class WeightsConfig(Settings):
    """How trained weights travel from the learner to the actors."""

    transport: Literal["object_store", "nccl"] = Field(
        "object_store",
        description="object_store: Ray objects, one per bucket. nccl: one broadcast to all actors, for pools of "
        "whole GPUs; between pools on CPUs gloo replaces NCCL.",
    )
    bucket_mb: MiB = Field(
        256, ge=1, le=4096, description="Size of a bucket of weights; a larger tensor gets its own bucket."
    )
