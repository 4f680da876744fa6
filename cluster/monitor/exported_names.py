"""Maps a step's row and groups, and the figures of processes, to the catalogue's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.monitor.catalogue import ALL, METRICS
from cluster.monitor.step_statistics import StepStatistics
from cluster.monitor.store import MetricError, MetricStore

_ROW: dict[str, tuple[str, dict[str, str]]] = {
    "step": ("bicot_step", {}),
    "seconds/step": ("bicot_step_seconds", {}),
    "seconds/train": ("bicot_learner_train_seconds_total", {}),
    "groups": ("bicot_trained_groups_total", {}),
    "groups_masked": ("bicot_trained_masked_groups_total", {}),
    "groups_without_signal": ("bicot_trained_flat_groups_total", {}),
    "members": ("bicot_trained_members_total", {}),
    "members_masked": ("bicot_trained_masked_members_total", {}),
    "micro_batches": ("bicot_micro_batches", {}),
    "mfu": ("bicot_mfu_ratio", {}),
    "loss": ("bicot_loss", {}),
    "grad_norm": ("bicot_grad_norm", {}),
    "lr": ("bicot_learning_rate", {}),
    "kl": ("bicot_kl_nats", {"segment": ALL}),
    "cot/tokens": ("bicot_cot_tokens", {"segment": "semantic"}),
    "cot/image_tokens": ("bicot_cot_tokens", {"segment": "image"}),
    "cot/cut_off": ("bicot_cot_cut_off_ratio", {}),
}
_ROW_PREFIXES = {
    "seconds/": ("bicot_step_phase_seconds_total", "phase"),
    "tokens/": ("bicot_trained_tokens_total", "segment"),
    "kl/": ("bicot_kl_nats", "segment"),
    "behaviour_kl/": ("bicot_behaviour_kl_nats", "segment"),
    "entropy/": ("bicot_entropy_nats", "segment"),
    "clip_fraction/": ("bicot_clip_ratio", "segment"),
    "ratio_mean/": ("bicot_importance_mean_ratio", "segment"),
    "ratio_max/": ("bicot_importance_max_ratio", "segment"),
    "logprob_gap_max/": ("bicot_logprob_gap_max_nats", "segment"),
    "staleness/": ("bicot_staleness_versions", "segment"),
    "staleness_max/": ("bicot_staleness_max_versions", "segment"),
}
_DERIVED = (
    "pictures_per_s", "tokens", "reward/", "reward_missing/", "reward_by_task/", "zero_spread/", "diversity/",
    "picture/", "stage_seconds/",
)  # fmt: skip
"""Names of a row, or prefixes, that Prometheus gets from another metric: as a rate or a sum, or by task type."""

_GROUPS = (
    "bicot_picture_entropy_bits", "bicot_picture_edge_ratio", "bicot_group_diversity_ratio", "bicot_reward_mean",
    "bicot_reward_spread", "bicot_reward_zero_spread_ratio", "bicot_reward_picture_correlation",
)  # fmt: skip
"""By task type, by reward and task type, by reward and what it goes together with."""

_REPLICA = {
    "queued": "bicot_engine_queued_requests",
    "running": "bicot_engine_running_requests",
    "finished": "bicot_engine_requests_total",
    "steps": "bicot_engine_steps_total",
    "row_steps": "bicot_engine_row_steps_total",
    "busy_s": "bicot_engine_busy_seconds_total",
    "tokens": "bicot_tokens_total",
    "sync_s": "bicot_replica_sync_seconds",
    "weight_version": "bicot_weight_version",
    "vllm_running": "bicot_vllm_running_requests",
    "vllm_waiting": "bicot_vllm_waiting_requests",
    "vllm_kv_cache_usage": "bicot_vllm_kv_cache_usage_ratio",
    "vllm_preemptions": "bicot_vllm_preemptions_total",
    "vllm_prompt_tokens": "bicot_vllm_prompt_tokens_total",
    "vllm_generation_tokens": "bicot_vllm_generation_tokens_total",
    "vllm_prefix_cache_queries": "bicot_vllm_prefix_cache_queries_total",
    "vllm_prefix_cache_hits": "bicot_vllm_prefix_cache_hits_total",
}
_BUFFER = {
    "depth": "bicot_buffer_depth",
    "pending": "bicot_buffer_pending",
    "oldest_age_s": "bicot_buffer_oldest_age_seconds",
    "bytes": "bicot_buffer_bytes",
    "appended": "bicot_buffer_appended_total",
}
_REWARD_SERVICE = {
    "replicas": "bicot_reward_service_replicas",
    "calls": "bicot_reward_service_calls_total",
    "batches": "bicot_reward_service_batches_total",
    "pictures": "bicot_reward_service_pictures_total",
    "failed": "bicot_reward_service_failed_pictures_total",
    "seconds": "bicot_reward_service_busy_seconds_total",
}


def unknown_names(row: Iterable[str]) -> list[str]:
    """Names of a step's row that no metric exports; a test checks that there are none."""
    known = (*_ROW, *_ROW_PREFIXES, *_DERIVED)
    return [
        name for name in row if not any(name == one or (one[-1] == "/" and name.startswith(one)) for one in known)
    ]


def show_row(store: MetricStore, row: Mapping[str, float]) -> None:
    """Export a step's row; names without a metric are left out."""
    for name, value in row.items():
        prefix = name[: name.find("/") + 1]
        if name in _ROW:
            metric, labels = _ROW[name]
        elif prefix in _ROW_PREFIXES:
            metric, label = _ROW_PREFIXES[prefix]
            labels = {label: name.removeprefix(prefix)}
        else:
            continue
        match METRICS[metric].kind:
            case "gauge":
                store.set(metric, value, **labels)
            case "counter":
                store.add(metric, value, **labels)
            case "histogram":
                store.observe(metric, value, **labels)


def show_groups(store: MetricStore, statistics: StepStatistics) -> None:
    """Export the newest step's groups; gauges of rewards and task types that the step lacks disappear."""
    values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in _GROUPS}
    for task_type, part in statistics.parts.items():
        values["bicot_picture_entropy_bits"][task_type,] = part.entropy
        values["bicot_picture_edge_ratio"][task_type,] = part.edges
        values["bicot_group_diversity_ratio"][task_type,] = part.diversity
        for reward, one in part.rewards.items():
            if task_type != ALL:
                store.add("bicot_reward_scores_total", one.scored, reward=reward, task_type=task_type)
                store.add("bicot_reward_missing_total", one.missing, reward=reward, task_type=task_type)
            if one.mean is not None and one.spread is not None and one.zero_spread is not None:
                values["bicot_reward_mean"][reward, task_type] = one.mean
                values["bicot_reward_spread"][reward, task_type] = one.spread
                values["bicot_reward_zero_spread_ratio"][reward, task_type] = one.zero_spread
    for reward, found in statistics.correlations.items():
        for statistic, correlation in found.items():
            values["bicot_reward_picture_correlation"][reward, statistic] = correlation
    for name, series in values.items():
        store.replace(name, series)


def show_replica(store: MetricStore, pool: str, replica: str, values: Mapping[str, float]) -> None:
    """Export the figures of one process of a pool.

    Raises:
        MetricError: a figure has no metric.
    """
    _show(store, _REPLICA, values, pool=pool, replica=replica)


def show_buffer(store: MetricStore, values: Mapping[str, float]) -> None:
    """Export `BufferStats`, as a dict. Raises `MetricError` as `show_replica`."""
    _show(store, _BUFFER, values)


def show_reward_service(store: MetricStore, reward: str, values: Mapping[str, float]) -> None:
    """Export the sums of a service's `ReplicaStats` and their number. Raises `MetricError` as `show_replica`."""
    _show(store, _REWARD_SERVICE, values, reward=reward)


def _show(store: MetricStore, names: Mapping[str, str], values: Mapping[str, float], **labels: str) -> None:
    for name, value in values.items():
        if name not in names:
            raise MetricError(
                f"{labels or 'the buffer'} tells {name!r}: give it a metric in cluster/monitor/exported_names.py"
            )
        store.set(names[name], value, **labels)
