"""What a run shows of itself while it runs.

catalogue        every metric: docs/metrics.md and the dashboards are made from it
store            their values; a name that the catalogue lacks is an error
exported_names   which metric stands for a name of a step's row, or of what a process says
telemetry        what the rest of the run calls, for all of it
page             /metrics and /targets, for Prometheus
poller           asks the processes how they do, beside the loop
trackers         TensorBoard, and W&B on request
step_statistics  a step's means, once for its row and for Prometheus
rolled_group     a group with a look at its pictures     pictures  that look: two numbers a picture

A new metric: a line in `catalogue`, one in `exported_names`, a panel in deploy/grafana, then `make metrics`.
"""
