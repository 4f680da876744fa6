"""A run's telemetry: a page for Prometheus, a JSON line per step, TensorBoard and W&B."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from cluster.monitor.exported_names import show_buffer, show_groups, show_replica, show_reward_service, show_row
from cluster.monitor.page import MetricsPage, TargetGroup, netloc, target_groups
from cluster.monitor.step_statistics import StepStatistics
from cluster.monitor.store import MetricStore
from cluster.monitor.trackers import trackers
from cluster.pools.pool import Pool
from recipe.config import RunConfig
from recipe.run_folder import RunFolder, append_json, write_atomically

logger = logging.getLogger(__name__)

STAGES = ("semantic", "image", "rewards", "buffer")


class Telemetry:
    """The run's metrics; all names must be in `catalogue`."""

    def __init__(self, folder: RunFolder, config: RunConfig, run: str) -> None:
        """
        Raises:
            RunError: the page's port is taken, or W&B is asked for and not installed.
        """
        self.store = MetricStore(run)
        self._folder = folder
        self._run = run
        self._host = config.metrics.host
        self._nodes: Callable[[], list[str]] = list
        self._targets = ""
        self._begin(config)
        self._trackers = trackers(folder, config.metrics, run)
        self._page: MetricsPage | None = None
        if config.metrics.port is not None:
            self._page = MetricsPage(self._host, config.metrics.port, self.store.registry, self.targets)

    def _begin(self, config: RunConfig) -> None:
        """Export event counters from the start, so that they read 0 before the first event."""
        store = self.store
        for name, value in {
            "bicot_planned_steps": config.steps,
            "bicot_staleness_limit_versions": config.rollout.staleness,
            "bicot_buffer_capacity": config.buffer.capacity,
            "bicot_checkpoint_write_seconds": 0,
            "bicot_published_bytes": 0,
        }.items():
            store.set(name, value)
        for name in ("bicot_steps_total", "bicot_groups_total", "bicot_group_retries_total", "bicot_pictures_total"):
            store.add(name, 0)
        stages = [stage for stage in STAGES if stage != "semantic" or config.semantic.enabled]
        for stage in stages:
            store.set("bicot_stage_groups", 0, stage=stage)
            store.expect("bicot_stage_seconds", stage=stage)
        for service in config.rewards.services:
            store.add("bicot_reward_failures_total", 0, reward=service.name)
        self.ready(0)

    def ready(self, step: int) -> None:
        """Record that the run is ready to train at `step`; ages count from here."""
        now = time.time()
        self.store.set("bicot_start_timestamp_seconds", now)
        self.store.set("bicot_step_timestamp_seconds", now)
        self.store.set("bicot_step", step)
        self.checkpoint(step, now)

    @property
    def address(self) -> str | None:
        """The page's address; None without a page."""
        return self._page.address if self._page else None

    def discover(self, own_host: Callable[[], str], nodes: Callable[[], list[str]]) -> None:
        """Announce `nodes` (Ray's "host:port"s) to Prometheus, and `own_host` if the page listens everywhere."""
        if self._host in ("0.0.0.0", "::"):
            self._host = own_host()
        self._nodes = nodes
        self.write_targets()

    def targets(self) -> list[TargetGroup]:
        """The pages that Prometheus scrapes: this run's page, and each machine's page of Ray's own metrics."""
        if self._page is None:
            return []
        return target_groups(self._run, netloc(self._host, self._page.port), self._nodes())

    def write_targets(self) -> None:
        """Write the run folder's target file, for a Prometheus that reads files."""
        text = json.dumps(self.targets(), indent=1)
        if text != self._targets:
            write_atomically(self._folder.targets, text)
            self._targets = text

    @contextmanager
    def stage(self, name: str, seconds: dict[str, float]) -> Iterator[None]:
        """Time one group's passage through a stage, also into `seconds`, and count the group while it is there."""
        start = time.monotonic()
        self.store.add("bicot_stage_groups", 1, stage=name)
        try:
            yield
        finally:
            self.store.add("bicot_stage_groups", -1, stage=name)
            seconds[name] = time.monotonic() - start
            self.store.observe("bicot_stage_seconds", seconds[name], stage=name)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self.store.add(name, amount, **labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        self.store.observe(name, value, **labels)

    def watch(self, pool: Pool) -> None:
        """Export at every scrape the driver's figures of a pool."""

        def show() -> None:
            self.store.set("bicot_pool_replicas", len(pool.replicas), pool=pool.name)
            self.store.set("bicot_pool_restarts_total", pool.restarts, pool=pool.name)
            for replica in list(pool.replicas):
                labels = {"pool": pool.name, "replica": replica.name}
                self.store.set("bicot_replica_calls", replica.busy, **labels)
                self.store.set("bicot_replica_busy_seconds_total", replica.busy_seconds(), **labels)

        self.store.before_scrape(show)

    def replica(self, pool: str, replica: str, values: Mapping[str, float]) -> None:
        """Export the figures of one process of a pool."""
        show_replica(self.store, pool, replica, values)

    def buffer(self, values: Mapping[str, float]) -> None:
        """Export how full the buffer is."""
        show_buffer(self.store, values)

    def reward_service(self, reward: str, values: Mapping[str, float]) -> None:
        """Export the figures of a reward's service."""
        show_reward_service(self.store, reward, values)

    def published(self, version: int, size: int, published_s: float, applied_s: float) -> None:
        """Record that weights of `size` bytes were published and then applied everywhere, in these seconds."""
        self.store.set("bicot_published_version", version)
        self.store.set("bicot_published_bytes", size)
        self.store.observe("bicot_weights_publish_seconds", published_s)
        self.store.observe("bicot_weights_apply_seconds", applied_s)

    def checkpoint(self, step: int, at: float, seconds: float = 0.0) -> None:
        """Record that the checkpoint of `step` was complete at the Unix time `at`, after `seconds` of writing."""
        self.store.set("bicot_checkpoint_step", step)
        self.store.set("bicot_checkpoint_timestamp_seconds", at)
        self.store.set("bicot_checkpoint_write_seconds", seconds)

    def groups(self, statistics: StepStatistics) -> None:
        """Export a step's groups by reward and task type."""
        show_groups(self.store, statistics)

    def step(self, row: Mapping[str, float]) -> None:
        """Record one training step: `row` holds "step" and flat names such as "reward/detector" or "kl/image"."""
        append_json(self._folder.metrics, dict(row))
        show_row(self.store, row)
        self.store.add("bicot_steps_total")
        self.store.set("bicot_step_timestamp_seconds", time.time())
        for tracker in self._trackers:
            tracker.scalars(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def held_out(self, step: int, split: str, scores: Mapping[str, float], pictures: Mapping[str, int]) -> None:
        """Record held-out scores by family ("all" is the mean over every picture), and the number of pictures."""
        row = {"step": step, "split": split, "scores": dict(scores), "pictures": dict(pictures)}
        append_json(self._folder.held_out, row)
        self.store.set("bicot_held_out_step", step, split=split)
        for family, value in scores.items():
            self.store.set("bicot_held_out_score", value, split=split, family=family)
        for tracker in self._trackers:
            tracker.scalars(step, {f"held_out_{split}/{family}": value for family, value in scores.items()})

    def samples(self, step: int, pictures: np.ndarray, texts: list[str]) -> None:
        """Show pictures (uint8 [N, H, W, 3]) and their CoTs."""
        for tracker in self._trackers if len(pictures) else ():
            tracker.samples(step, pictures, texts)

    def close(self) -> None:
        """Write the remaining data and stop serving."""
        for tracker in self._trackers:
            tracker.close()
        if self._page:
            self._page.close()
        if self._folder.targets.is_file():
            write_atomically(self._folder.targets, "[]")
