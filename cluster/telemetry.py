"""What a run shows of itself: Prometheus metrics on one page, a JSON line a step, TensorBoard events."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.config import MetricsConfig
from cluster.errors import RunError
from cluster.pool import Pool
from cluster.run_folder import RunFolder, append_json

logger = logging.getLogger(__name__)

_STAGE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class _Snapshot(Collector):
    """Values that other processes keep, as they last told them: (metric, pool, replica) to value."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], float] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for (name, pool, replica), value in sorted(self.values.items()):
            family = families.setdefault(
                name,
                GaugeMetricFamily(f"bicot_{name}", f"{name}, as the process last told", labels=["pool", "replica"]),
            )
            family.add_metric([pool, replica], value)
        yield from families.values()


class Telemetry:
    """The run's metrics. Names end in their unit; `step` writes a whole step at once."""

    def __init__(self, folder: RunFolder, config: MetricsConfig) -> None:
        self.registry = CollectorRegistry()
        self._folder = folder
        self._snapshot = _Snapshot()
        self.registry.register(self._snapshot)
        self._stages = Histogram(
            "bicot_stage_seconds", "Seconds that a group spends in a stage, queue included.", ["stage"],
            buckets=_STAGE_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._counters = {
            name: Counter(f"bicot_{name}", text, labels, registry=self.registry)
            for name, text, labels in (
                ("pictures", "Pictures sampled.", []),
                ("group_retries", "Groups tried again after a stage failed.", []),
                ("reward_failures", "Groups for which a reward service failed.", ["reward"]),
            )
        }
        self._step_gauges: dict[str, Gauge] = {}
        self._server: Any = None
        self.address: str | None = None
        self._serve(config)
        self._writer: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder.tensorboard)

    def _serve(self, config: MetricsConfig) -> None:
        if config.port is None:
            return
        try:
            server, _ = start_http_server(config.port, config.host, registry=self.registry)
        except OSError as error:
            raise RunError(f"metrics.port: cannot listen on {config.host}:{config.port}: {error.strerror}") from error
        self._server = server
        self.address = f"http://{config.host}:{server.server_port}/metrics"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one group's passage through a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._stages.labels(name).observe(time.monotonic() - start)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to one of the run's counters."""
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def tell(self, pool: str, replica: str, values: Mapping[str, float]) -> None:
        """Show what another process says of itself."""
        for name, value in values.items():
            self._snapshot.values[name, pool, replica] = float(value)

    def tell_pool(self, pool: Pool) -> None:
        """Show how a pool does, as its driver sees it."""
        self.tell(pool.name, "", {"pool_replicas": len(pool.replicas), "pool_restarts": pool.restarts})
        for replica in pool.replicas:
            self.tell(pool.name, replica.name, {"calls_under_way": replica.busy, "busy_seconds": replica.busy_s})

    def step(self, row: Mapping[str, float]) -> None:
        """Record one training step: `row` holds "step" and flat names such as "reward/detector" or "image/kl"."""
        append_json(self._folder.metrics, dict(row))
        step = int(row["step"])
        for name, value in row.items():
            gauge = self._step_gauges.get(name)
            if gauge is None:
                plain = "".join(char if char.isalnum() else "_" for char in name)
                gauge = Gauge(f"bicot_step_{plain}", f"{name} of the newest step.", registry=self.registry)
                self._step_gauges[name] = gauge
            gauge.set(value)
            if self._writer and name != "step":
                self._writer.add_scalar(name, value, step)

    def held_out(self, step: int, split: str, scores: Mapping[str, float]) -> None:
        """Record held-out scores by family ("all" is their mean)."""
        append_json(self._folder.held_out, {"step": step, "split": split, "scores": dict(scores)})
        self.tell("held_out", split, {f"held_out_{family}": value for family, value in scores.items()})
        if self._writer:
            for family, value in scores.items():
                self._writer.add_scalar(f"held_out_{split}/{family}", value, step)

    def samples(self, step: int, pictures: Any, texts: list[str]) -> None:
        """Show pictures (uint8 [N, H, W, 3]) and their CoTs in TensorBoard."""
        if self._writer and len(pictures):
            self._writer.add_images("samples", pictures, step, dataformats="NHWC")
            self._writer.add_text("samples", "\n\n".join(texts), step)

    def close(self) -> None:
        """Flush everything and stop serving."""
        if self._writer:
            self._writer.close()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
