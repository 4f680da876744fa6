"""The dashboard *Cluster*: the machines, the processes on them, and the work that a failure would lose."""

from __future__ import annotations

from deploy.grafana.panels import Board, curves, metric, total

_GPU = "no machine of the cluster has a GPU"

_MACHINES = (
    curves("CPU", "Use of each machine.", "percent", (metric("ray_node_cpu_utilization"), "{{instance}}")),
    curves("Memory", "Share of each machine's memory in use.", "percentunit",
           (f"{metric('ray_node_mem_used')} / {metric('ray_node_mem_total')}", "{{instance}}")),
    curves("Disk", "Free on each machine.", "bytes", (metric("ray_node_disk_free"), "{{instance}}")),
    curves("Network", "Bytes a second.", "Bps", (metric("ray_node_network_send_speed"), "{{instance}} out"),
           (metric("ray_node_network_receive_speed"), "{{instance}} in")),
    curves("GPU", "Use of each GPU.", "percent", (metric("ray_node_gpus_utilization"), "{{instance}} {{GpuIndex}}"),
           empty=_GPU),
    curves("GPU memory", "In use on each GPU.", "decmbytes",
           (metric("ray_node_gram_used"), "{{instance}} {{GpuIndex}}"),
           empty=_GPU),
)  # fmt: skip

_RAY = (
    curves("Object store", "Bytes by location; weights travel through the object store.", "bytes",
           (total(metric("ray_object_store_memory"), "instance", "Location"), "{{instance}} {{Location}}")),
    curves("Actors", "Of the cluster, by state.", "none", (total(metric("ray_actors"), "State"), "{{State}}")),
    curves("CPU cores", "Of the machines that are up.", "none", (metric("ray_node_cpu_count"), "{{instance}}")),
    curves("Pages that answer", "1 for each page that Prometheus reaches: the run's, and each machine's.", "none",
           ('up{job=~"bicot|ray"}', "{{job}} {{instance}}")),
)  # fmt: skip

_RUN = (
    curves("Replicas", "Processes of each pool.", "none", (metric("bicot_pool_replicas"), "{{pool}}"),
           (metric("bicot_reward_service_replicas"), "reward {{reward}}")),
    curves("Restarts", "Processes replaced, since the start.", "none",
           (metric("bicot_pool_restarts_total"), "{{pool}}")),
    curves("Running for", "Seconds since the run was ready to train.", "s",
           (f"time() - {metric('bicot_start_timestamp_seconds')}", "seconds")),
    curves("Checkpoint age", "The work that a failure now would lose.", "s",
           (f"time() - {metric('bicot_checkpoint_timestamp_seconds')}", "seconds")),
    curves("Steps since the checkpoint", "Steps that a resumed run would train again.", "none",
           (f"{metric('bicot_step')} - {metric('bicot_checkpoint_step')}", "steps")),
    curves("Writing a checkpoint", "Seconds to write the newest checkpoint.", "s",
           (metric("bicot_checkpoint_write_seconds"), "seconds")),
)  # fmt: skip

BOARD = Board("bicot-cluster", "bicot: Cluster", "The machines, and the work that a failure would lose.", {
    "Machines": _MACHINES, "Ray": _RAY, "The run": _RUN,
})  # fmt: skip
