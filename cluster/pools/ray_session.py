"""The Ray cluster of a run: joined, or started for the run on this machine, with token authentication."""

from __future__ import annotations

import logging
import shutil
import tempfile
from typing import Any, Self

import ray

from recipe.config import RunConfig
from recipe.errors import RunError
from recipe.resources import Resources, check_fits, cluster_address

logger = logging.getLogger(__name__)

_ATTEMPTS = 3


class RaySession:
    """A connection to Ray. It stops the cluster only if it started it."""

    def __init__(self, temporary: str | None) -> None:
        self._temporary = temporary

    @classmethod
    def start(cls, config: RunConfig) -> Self:
        """Join the cluster, or start one, and check that the pools fit. Call `ray_environment.prepare` first.

        Raises:
            RunError: there is no cluster at the address, or the pools are larger than the cluster.
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

    def nodes(self) -> list[dict[str, Any]]:
        """The live machines of the cluster, as `ray.nodes` lists them; none without a connection."""
        return [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []

    def own_address(self) -> str:
        """The address at which the cluster's machines reach this one."""
        return str(ray.util.get_node_ip_address())

    def meeting_address(self) -> str:
        """The address at which the run's processes reach this one: loopback, if all run on this machine."""
        return self.own_address() if len(self.nodes()) > 1 else "127.0.0.1"

    def metrics_targets(self) -> list[str]:
        """ "host:port" of every live machine's page of Ray's own metrics."""
        nodes = [node for node in self.nodes() if node.get("MetricsExportPort")]
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
