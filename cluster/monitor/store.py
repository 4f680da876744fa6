"""The run's Prometheus metrics: those of the catalogue, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.monitor.catalogue import METRICS, Metric

disable_created_metrics()


class MetricError(ValueError):
    """A metric that the catalogue does not hold, or holds otherwise; names it."""


class MetricStore(Collector):
    """Values by metric and labels; `registry` shows them to Prometheus. May be used from any thread.

    Counters are added to, or `set` to the total that another process keeps.
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
        """Give a gauge, or a counter whose total is kept elsewhere, its value.

        Raises:
            MetricError: the catalogue has no such metric.
        """
        key = self._key(name, labels, ("gauge", "counter"))
        with self._lock:
            self._values.setdefault(name, {})[key] = float(value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter, or to a gauge that counts what is under way.

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
        """Show a histogram's series before its first value; of a counter, `add` 0."""
        key = self._key(name, labels, ("histogram",))
        self._histograms[name].labels(*key)

    def replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None:
        """Give a gauge these values, by its labels in the catalogue's order, and no others: a step's, say.

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
        """What a gauge or counter stands at."""
        with self._lock:
            return self._values.get(name, {}).get(self._key(name, labels, ("gauge", "counter")))

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before the values are read; it has to be quick."""
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
