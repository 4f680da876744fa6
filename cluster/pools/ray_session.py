"""The Ray cluster a run lives on: joined, or started for the run on this machine, with token authentication."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import ray

from actors.config import ImageConfig, SemanticConfig
from cluster.pools.ray_environment import cluster_address
from learner.config import LearnerConfig
from recipe.config import RunConfig
from recipe.errors import RunError
from rewards.config import RewardConfig

logger = logging.getLogger(__name__)

_ATTEMPTS = 3


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
        """Amount by name, as an error would call it."""
        return {"CPUs": self.cpus, "GPUs": self.gpus, **self.custom}


def needed(config: RunConfig) -> dict[str, Resources]:
    """What each pool of a run reserves, all its replicas together."""
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


def check_fits(config: RunConfig, cluster: Resources) -> None:
    """Refuse pools that are larger than the cluster.

    Raises:
        RunError: names both sums and the largest pool.
    """
    table = {name: pool.kinds() for name, pool in needed(config).items()}
    has = cluster.kinds()
    for kind in dict.fromkeys(kind for pool in table.values() for kind in pool):
        share = {name: pool.get(kind, 0.0) for name, pool in table.items()}
        total, largest = sum(share.values()), max(share, key=share.__getitem__)
        if total > has.get(kind, 0.0) + 1e-6:
            raise RunError(
                f"the pools ask for {total:g} {kind} together and the cluster has {has.get(kind, 0.0):g}; the "
                f"largest is {largest} with {share[largest]:g}: lower its replicas or its share, or use a larger "
                "cluster"
            )


def local_resources(config: RunConfig) -> Resources | None:
    """What a local cluster of this run would have; None when the run joins one that runs already."""
    if cluster_address(config) is not None:
        return None
    gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])  # noqa: PTH208
    return Resources(config.ray.cpus or os.cpu_count() or 1, gpus)


class RaySession:
    """A connection to Ray that ends what it began, and nothing else."""

    def __init__(self, temporary: str | None) -> None:
        self._temporary = temporary

    @classmethod
    def start(cls, config: RunConfig) -> Self:
        """Join the cluster, or start one, and check that the pools fit; `environment.prepare` came first.

        Raises:
            RunError: no cluster at the address, or the pools are larger than the cluster.
        """
        address = cluster_address(config)
        temporary = None if address else tempfile.mkdtemp(prefix="bicot-")
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _connect(config, address, temporary)
                break
            except Exception as error:  # Ray raises plain Exception when a busy machine is slower than its 30 s
                ray.shutdown()
                logger.warning("Ray, attempt %d of %d", attempt, _ATTEMPTS, exc_info=True)
                if attempt == _ATTEMPTS:
                    where = f"reached at {address}" if address else "started on this machine"
                    reason = str(error).strip().partition("\n")[0]
                    raise RunError(f"ray.address: no Ray cluster could be {where}: {reason}") from error
        session = cls(temporary)
        try:
            total = ray.cluster_resources()
            if not config.ray.autoscaling:
                check_fits(config, Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), total))
        except RunError:
            session.close()
            raise
        logger.info("Ray: %s, %s", ray.get_runtime_context().gcs_address, total)
        return session

    def nodes(self) -> int:
        """Machines of the cluster that are up."""
        return sum(node["Alive"] for node in ray.nodes())

    def own_address(self) -> str:
        """The address under which the cluster's machines reach this one."""
        return str(ray.util.get_node_ip_address())

    def metrics_targets(self) -> list[str]:
        """ "host:port" of every live machine's page of Ray's own metrics."""
        if not ray.is_initialized():
            return []
        nodes = [node for node in ray.nodes() if node["Alive"] and node.get("MetricsExportPort")]
        return sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes)

    def close(self) -> None:
        """Disconnect; stop the cluster if this session started it."""
        ray.shutdown()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _connect(config: RunConfig, address: str | None, temporary: str | None) -> None:
    ray.init(
        address or "local",
        num_cpus=config.ray.cpus if temporary else None,
        object_store_memory=config.ray.object_store_mb << 20 if temporary else None,
        include_dashboard=False if temporary else None,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=temporary,
    )
