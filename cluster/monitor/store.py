"""The run's Prometheus metrics. Only metrics of the catalogue are allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.monitor.catalogue import METRICS, Metric

disable_created_metrics()


class MetricError(ValueError):
    """A metric that the catalogue lacks, or defines with another kind or labels; names the metric."""


class MetricStore(Collector):
    """Values by metric and labels; `registry` shows them to Prometheus. May be used from any thread.

    A counter is either added to, or `set` to a total that another process counts.
    """

    def __init__(self, run: str) -> None:
        self.registry = CollectorRegistry()
        self._run = run
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        self._before_scrape: list[Callable[[], None]] = []
        self._histograms = {
            metric.name: Histogram(
                metric.name, metric.help, ("run", *metric.labels), buckets=metric.buckets, registry=self.registry
            )
            for metric in METRICS.values()
            if metric.kind == "histogram"
        }
        self.registry.register(self)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set the value of a gauge, or of a counter that another process counts.

        Raises:
            MetricError: the catalogue has no such metric.
        """
        key = self._key(name, labels, ("gauge", "counter"))
        with self._lock:
            self._values.setdefault(name, {})[key] = float(value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter, or to a gauge that counts running work.

        Raises:
            MetricError: as `set`.
        """
        key = self._key(name, labels, ("gauge", "counter"))
        with self._lock:
            values = self._values.setdefault(name, {})
            values[key] = values.get(key, 0.0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram.

        Raises:
            MetricError: as `set`.
        """
        key = self._key(name, labels, ("histogram",))
        self._histograms[name].labels(*key).observe(value)

    def expect(self, name: str, **labels: str) -> None:
        """Export a histogram's series before its first value. For a counter, `add` 0 instead."""
        key = self._key(name, labels, ("histogram",))
        self._histograms[name].labels(*key)

    def replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None:
        """Set a gauge to exactly these values, e.g. those of a step; keys are its labels in the catalogue's order.

        Raises:
            MetricError: as `set`.
        """
        labels = METRICS[name].labels if name in METRICS else ()
        keys = {
            self._key(name, dict(zip(labels, key, strict=True)), ("gauge",)): value for key, value in values.items()
        }
        with self._lock:
            self._values[name] = keys

    def value(self, name: str, **labels: str) -> float | None:
        """The value of a gauge or counter."""
        with self._lock:
            return self._values.get(name, {}).get(self._key(name, labels, ("gauge", "counter")))

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before each read of the values; it must be quick."""
        self._before_scrape.append(refresh)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """For prometheus_client."""
        for refresh in self._before_scrape:
            refresh()
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
        for name, series in values.items():
            metric = METRICS[name]
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, metric.help, labels=("run", *metric.labels))
            for key, value in series.items():
                family.add_metric(key, value)
            yield family

    def _key(self, name: str, labels: Mapping[str, str], kinds: tuple[str, ...]) -> tuple[str, ...]:
        metric: Metric | None = METRICS.get(name)
        if metric is None or metric.kind not in kinds:
            raise MetricError(
                f"metric {name!r} is no {' or '.join(kinds)} of cluster/monitor/catalogue.py: add it there"
            )
        if labels.keys() != set(metric.labels):
            raise MetricError(f"metric {name!r} has the labels {list(metric.labels)}, not {sorted(labels)}")
        return (self._run, *(labels[label] for label in metric.labels))
