"""The resources of each pool of a run, as Ray counts them, and whether a cluster has them. Needs no Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.config import ImageConfig, SemanticConfig
from learner.config import LearnerConfig
from recipe.config import RunConfig
from recipe.errors import RunError
from rewards.config import RewardConfig


@dataclass(frozen=True, slots=True)
class Resources:
    """CPU cores, GPUs and custom resources, as Ray counts them."""

    cpus: float
    gpus: float
    custom: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        custom = [f"{value:g} {name}" for name, value in self.custom.items()]
        return ", ".join([f"{self.cpus:g} CPUs and {self.gpus:g} GPUs", *custom])

    def kinds(self) -> dict[str, float]:
        """Amount by the name that errors use."""
        return {"CPUs": self.cpus, "GPUs": self.gpus, **self.custom}


def needed(config: RunConfig) -> dict[str, Resources]:
    """The resources that each pool of a run reserves, over all its replicas."""
    pools: dict[str, ImageConfig | SemanticConfig] = {"image": config.image}
    if config.semantic.enabled:
        pools["semantic"] = config.semantic
    table = {name: _times(pool.replicas, pool) for name, pool in pools.items()}
    table["learner"] = _times(config.learner.ranks, config.learner)
    for service in config.rewards.services:
        table[f"reward {service.name}"] = _times(service.replicas, service)
    return table


def _times(count: int, one: ImageConfig | SemanticConfig | LearnerConfig | RewardConfig) -> Resources:
    custom = {name: count * amount for name, amount in one.resources.items()}
    return Resources(count * one.cpus, count * one.gpus, custom)


def alone(config: RunConfig, *pools: str) -> RunConfig:
    """The config where nothing is reserved but for these of "semantic", "image", "rewards" and "learner"."""
    nothing = {"cpus": 0.0, "gpus": 0.0, "resources": {}}
    changes: dict[str, object] = {
        name: getattr(config, name).model_copy(update=nothing)
        for name in ("semantic", "image", "learner")
        if name not in pools
    }
    if "rewards" not in pools:
        services = tuple(service.model_copy(update=nothing) for service in config.rewards.services)
        changes["rewards"] = config.rewards.model_copy(update={"services": services})
    return config.model_copy(update=changes)


def check_fits(config: RunConfig, cluster: Resources, where: str = "the cluster") -> None:
    """Refuse pools that are larger than the cluster; `where` is what the error calls it.

    Raises:
        RunError: names both sums and the largest pool, for every kind that falls short.
    """
    table = {name: pool.kinds() for name, pool in needed(config).items()}
    has, short = cluster.kinds(), []
    for kind in dict.fromkeys(kind for pool in table.values() for kind in pool):
        share = {name: pool.get(kind, 0.0) for name, pool in table.items()}
        total, largest = sum(share.values()), max(share, key=share.__getitem__)
        if total > has.get(kind, 0.0) + 1e-6:
            short.append(
                f"the pools ask for {total:g} {kind} together and {where} has {has.get(kind, 0.0):g}; the largest is "
                f"{largest} with {share[largest]:g} ({_key(largest, kind)})"
            )
    if short:
        raise RunError(f"{'; '.join(short)}: lower replicas or shares, or use a larger cluster")


def _key(pool: str, kind: str) -> str:
    """The config key that says how much of a kind one process of a pool reserves."""
    section = pool.replace("reward ", "rewards.services.") if pool.startswith("reward ") else pool
    name = {"CPUs": "cpus", "GPUs": "gpus"}.get(kind, f"resources.{kind}")
    return f"{section}.{name}"


def local_resources(config: RunConfig) -> Resources | None:
    """The resources of this run's local cluster; None if the run joins a running cluster."""
    if cluster_address(config) is not None:
        return None
    gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])  # noqa: PTH208
    return Resources(config.ray.cpus or os.cpu_count() or 1, gpus)


def cluster_address(config: RunConfig) -> str | None:
    """The address of the cluster that a run joins; None if it starts its own. `ray job submit` sets RAY_ADDRESS."""
    return config.ray.address or os.environ.get("RAY_ADDRESS")
