"""The dashboard *Pools*: every stage of the rollout, the buffer, and the weight updates."""

from __future__ import annotations

from deploy.grafana.panels import Board, curves, mean_seconds, metric, quantile, rate

_STAGES = (
    curves("Seconds in a stage, median", "Of a group, its queue included.", "s",
           (quantile(0.5, "bicot_stage_seconds", "stage"), "{{stage}}")),
    curves("Seconds in a stage, p95", "Of a group, its queue included.", "s",
           (quantile(0.95, "bicot_stage_seconds", "stage"), "{{stage}}")),
    curves("Groups in a stage", "Now, the stage's queue included.", "none",
           (metric("bicot_stage_groups"), "{{stage}}")),
    curves("Groups/s", "Rolled out for training.", "none", (rate("bicot_groups_total"), "groups/s")),
    curves("Replicas", "Processes of each pool.", "none", (metric("bicot_pool_replicas"), "{{pool}}")),
    curves("Restarts and retries", "Processes replaced; groups tried again.", "none",
           (metric("bicot_pool_restarts_total"), "restarts, {{pool}}"),
           (metric("bicot_group_retries_total"), "retries")),
)  # fmt: skip

_ENGINES = (
    curves("Queue", "Requests that wait for room in the batch.", "none",
           (metric("bicot_engine_queued_requests"), "{{replica}}")),
    curves("In the batch", "Requests that run.", "none", (metric("bicot_engine_running_requests"), "{{replica}}")),
    curves("Mean batch", "Requests decoded by a step of the engine.", "none",
           (f"{rate('bicot_engine_row_steps_total')} / {rate('bicot_engine_steps_total')}", "{{replica}}")),
    curves("Busy share", "Of the engine's thread.", "percentunit",
           (rate("bicot_engine_busy_seconds_total"), "{{replica}}")),
    curves("Tokens/s", "Drawn by each process.", "none", (rate("bicot_tokens_total"), "{{replica}}")),
    curves("Pictures/s and CoTs/s", "Finished by each process.", "none",
           (rate("bicot_engine_requests_total"), "{{replica}}")),
    curves("Calls under way", "By process, learner ranks included.", "none",
           (metric("bicot_replica_calls"), "{{replica}}")),
    curves("Share of time with a call", "By process, learner ranks included.", "percentunit",
           (rate("bicot_replica_busy_seconds_total"), "{{replica}}")),
)  # fmt: skip

_VLLM = (
    curves("Requests", "Requests that vLLM's scheduler runs and holds back.", "none",
           (metric("bicot_vllm_running_requests"), "{{replica}} running"),
           (metric("bicot_vllm_waiting_requests"), "{{replica}} waiting")),
    curves("KV cache", "Share of its blocks in use.", "percentunit",
           (metric("bicot_vllm_kv_cache_usage_ratio"), "{{replica}}")),
    curves("Preemptions", "Requests that lost their cache; if it rises, the cache is too small.", "none",
           (metric("bicot_vllm_preemptions_total"), "{{replica}}")),
    curves("Tokens/s", "Taken and generated.", "none", (rate("bicot_vllm_prompt_tokens_total"), "{{replica}} prompt"),
           (rate("bicot_vllm_generation_tokens_total"), "{{replica}} generated")),
    curves("Prefix cache", "Prompt tokens per second looked up and found in the cache; 0 when it is off.", "none",
           (rate("bicot_vllm_prefix_cache_queries_total"), "{{replica}} looked up"),
           (rate("bicot_vllm_prefix_cache_hits_total"), "{{replica}} found")),
)  # fmt: skip

_BUFFER = (
    curves("Depth", "Groups in the buffer; pending ones are being trained.", "none",
           (metric("bicot_buffer_depth"), "depth"), (metric("bicot_buffer_pending"), "pending"),
           (metric("bicot_buffer_capacity"), "capacity")),
    curves("Age of the oldest group", "0 while there is none.", "s",
           (metric("bicot_buffer_oldest_age_seconds"), "age")),
    curves("Bytes", "Packed size of what is there.", "bytes", (metric("bicot_buffer_bytes"), "bytes")),
    curves("Appended/s", "Groups.", "none", (rate("bicot_buffer_appended_total"), "groups/s")),
)  # fmt: skip

_WEIGHTS = (
    curves("Versions", "The learner's newest version, and the version of each process.", "none",
           (metric("bicot_published_version"), "published"), (metric("bicot_weight_version"), "{{replica}}")),
    curves("Staleness", "Versions between sampling and training: mean, largest, and bound.", "none",
           (metric("bicot_staleness_versions"), "{{segment}}"),
           (metric("bicot_staleness_max_versions"), "largest {{segment}}"),
           (metric("bicot_staleness_limit_versions"), "bound")),
    curves("Publish and apply", "Mean seconds of a version.", "s",
           (mean_seconds("bicot_weights_publish_seconds"), "publish"),
           (mean_seconds("bicot_weights_apply_seconds"), "apply")),
    curves("Seconds of a process's update", "Newest update, with the wait for running requests.", "s",
           (metric("bicot_replica_sync_seconds"), "{{replica}}")),
    curves("Bytes of a version", "Bytes to each process.", "bytes", (metric("bicot_published_bytes"), "bytes")),
)  # fmt: skip

BOARD = Board("bicot-pools", "bicot: Pools", "Every stage of the rollout, the buffer, the weights.", {
    "Stages": _STAGES, "Engines": _ENGINES, "vLLM": _VLLM, "Buffer": _BUFFER, "Weights": _WEIGHTS,
})  # fmt: skip
