"""Monitoring of a live run.

catalogue        every metric: the source of docs/metrics.md and of the dashboards
store            the metrics' values; a name outside the catalogue is an error
exported_names   maps the names of a step's row, and of the processes' figures, to metrics
telemetry        the one interface that the rest of the run calls
page             /metrics and /targets, for Prometheus
poller           asks the processes for their figures, beside the loop
trackers         TensorBoard, and W&B on request
step_statistics  a step's means, once for its row and for Prometheus
rolled_group     a group with figures of its pictures    pictures  these figures: two numbers per picture

A new metric: a line in `catalogue`, one in `exported_names`, a panel in deploy/grafana, then `make metrics`.
"""
