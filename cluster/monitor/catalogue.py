"""Every metric that a run exports: name, kind, labels and help. docs/metrics.md is generated from this module.

    python -m cluster.monitor.catalogue > docs/metrics.md

Names contain the unit (seconds, bytes, ratio for shares of 1, versions); counters end in _total. Every series also
has the label `run`. `MetricStore` refuses other metrics, and dashboards and alert rules may use no others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]

_STAGE = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SYNC = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)

ALL = "all"
"""Label value of a figure over all segments, task types or families."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Metrics that belong together."""

    title: str
    metrics: tuple[Metric, ...]


def _gauge(name: str, labels: str, help: str) -> Metric:
    return Metric(name, "gauge", help, tuple(labels.split()))


def _counter(name: str, labels: str, help: str) -> Metric:
    return Metric(name, "counter", help, tuple(labels.split()))


def _histogram(name: str, labels: str, buckets: tuple[float, ...], help: str) -> Metric:
    return Metric(name, "histogram", help, tuple(labels.split()), buckets)


SECTIONS = (
    Section("The run", (
        _gauge("bicot_step", "", "Training steps done, earlier parts of a resumed run included."),
        _gauge("bicot_planned_steps", "", "Training steps of the whole run (steps)."),
        _counter("bicot_steps_total", "", "Training steps done since this process started."),
        _gauge("bicot_start_timestamp_seconds", "", "Unix time at which this process was ready to train."),
        _gauge("bicot_step_timestamp_seconds", "", "Unix time of the newest step's end; the start's before that."),
        _histogram("bicot_step_seconds", "", (0.5, 1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30, 45, 60, 90, 120, 300, 900),
                   "Seconds of a whole step."),
        _counter("bicot_step_phase_seconds_total", "phase",
                 "Seconds of the steps by phase; in wait_for_rollout the learner is idle."),
        _gauge("bicot_checkpoint_step", "", "Step of the newest checkpoint; 0 before the first."),
        _gauge("bicot_checkpoint_timestamp_seconds", "",
               "Unix time of the newest checkpoint; before the first, of the start."),
        _gauge("bicot_checkpoint_write_seconds", "", "Seconds to write the newest checkpoint."),
        _gauge("bicot_held_out_score", "split family",
               "Newest held-out score by prompt family; family 'all' is the mean over every picture."),
        _gauge("bicot_held_out_step", "split", "Step of the newest held-out score."),
    )),
    Section("Rollout", (
        _counter("bicot_groups_total", "", "Groups rolled out for training."),
        _counter("bicot_group_retries_total", "", "Groups tried again after a stage failed."),
        _counter("bicot_pictures_total", "", "Pictures sampled, held-out ones included."),
        _gauge("bicot_stage_groups", "stage", "Groups in a stage now, queue included."),
        _histogram("bicot_stage_seconds", "stage", _STAGE, "Seconds that a group spends in a stage, queue included."),
        _gauge("bicot_staleness_versions", "segment",
               "Weight versions between sampling and training, mean of the newest step."),
        _gauge("bicot_staleness_max_versions", "segment",
               "Weight versions between sampling and training, largest of the newest step."),
        _gauge("bicot_staleness_limit_versions", "", "The bound on staleness (rollout.staleness)."),
    )),
    Section("Pools", (
        _gauge("bicot_pool_replicas", "pool", "Processes of a pool."),
        _counter("bicot_pool_restarts_total", "pool", "Processes replaced because they died or did not answer."),
        _gauge("bicot_replica_calls", "pool replica", "Running calls to a process."),
        _counter("bicot_replica_busy_seconds_total", "pool replica",
                 "Seconds with a running call; the rate is the busy share."),
        _gauge("bicot_engine_queued_requests", "pool replica", "Requests that wait for room in the batch."),
        _gauge("bicot_engine_running_requests", "pool replica", "Requests in the batch."),
        _counter("bicot_engine_requests_total", "pool replica", "Requests finished."),
        _counter("bicot_engine_steps_total", "pool replica", "Decoding steps: one token per running request."),
        _counter("bicot_engine_row_steps_total", "pool replica",
                 "Requests decoded, summed over the steps; divided by bicot_engine_steps_total: the mean batch."),
        _counter("bicot_engine_busy_seconds_total", "pool replica",
                 "Seconds spent decoding; the rate is the busy share."),
        _counter("bicot_tokens_total", "pool replica", "Tokens drawn: text or image tokens, depending on the pool."),
    )),
    Section("vLLM's own metrics", (
        _gauge("bicot_vllm_running_requests", "pool replica", "Requests that vLLM's scheduler runs."),
        _gauge("bicot_vllm_waiting_requests", "pool replica", "Requests that vLLM's scheduler holds back."),
        _gauge("bicot_vllm_kv_cache_usage_ratio", "pool replica", "Share of the KV cache's blocks in use."),
        _counter("bicot_vllm_preemptions_total", "pool replica", "Requests preempted because the KV cache was full."),
        _counter("bicot_vllm_prompt_tokens_total", "pool replica", "Prompt tokens processed."),
        _counter("bicot_vllm_generation_tokens_total", "pool replica", "Tokens generated."),
        _counter("bicot_vllm_prefix_cache_queries_total", "pool replica",
                 "Prompt tokens looked up in the prefix cache."),
        _counter("bicot_vllm_prefix_cache_hits_total", "pool replica", "Prompt tokens found in the prefix cache."),
    )),
    Section("Buffer", (
        _gauge("bicot_buffer_depth", "", "Groups in the buffer, claimed ones included."),
        _gauge("bicot_buffer_capacity", "", "Number of groups at which an append waits (buffer.capacity)."),
        _gauge("bicot_buffer_pending", "", "Groups claimed by the learner and not yet trained."),
        _gauge("bicot_buffer_oldest_age_seconds", "", "Age of the oldest group; 0 while there is none."),
        _gauge("bicot_buffer_bytes", "", "Packed size of the groups in the buffer."),
        _counter("bicot_buffer_appended_total", "", "Groups appended since the run's first start."),
    )),
    Section("Weights", (
        _gauge("bicot_weight_version", "pool replica", "Weight version of a process; -1 before the first weights."),
        _gauge("bicot_published_version", "", "Newest weight version that the learner published."),
        _gauge("bicot_published_bytes", "", "Bytes of the newest published weights that travel to one receiver."),
        _histogram("bicot_weights_publish_seconds", "", _SYNC, "Seconds that publishing a version took."),
        _histogram("bicot_weights_apply_seconds", "", _SYNC,
                   "Seconds from a version's publication until every process used it."),
        _gauge("bicot_replica_sync_seconds", "pool replica",
               "Seconds of a process's newest weight update, the wait for running requests included."),
    )),
    Section("Learner", (
        _counter("bicot_learner_train_seconds_total", "",
                 "Seconds in the learner's steps, rank 0; the rate is the busy share."),
        _counter("bicot_trained_tokens_total", "segment", "Completion tokens trained on."),
        _counter("bicot_trained_groups_total", "", "Groups that entered a training step."),
        _counter("bicot_trained_masked_groups_total", "", "Groups masked in training because rewards are missing."),
        _counter("bicot_trained_flat_groups_total", "",
                 "Trained groups whose advantages are all 0: they add only KL to the gradient."),
        _counter("bicot_trained_members_total", "", "Members that entered a training step."),
        _counter("bicot_trained_masked_members_total", "", "Members masked in training because rewards are missing."),
        _gauge("bicot_micro_batches", "", "Micro-batches of a rank in the newest step."),
        _gauge("bicot_mfu_ratio", "",
               "Model FLOPs of the newest step, divided by the devices' peak; only if the peak is known."),
        _gauge("bicot_loss", "", "Loss of the newest step, mean per token."),
        _gauge("bicot_grad_norm", "", "Gradient norm of the newest step, before clipping."),
        _gauge("bicot_learning_rate", "", "Learning rate of the newest step."),
        _gauge("bicot_kl_nats", "segment",
               "k3 estimate of the KL to the reference policy, per token; segment 'all' is the batch."),
        _gauge("bicot_behaviour_kl_nats", "segment", "k3 estimate of the KL from the behaviour policy, per token."),
        _gauge("bicot_entropy_nats", "segment",
               "Entropy of the next token's distribution, mean over trained tokens."),
        _gauge("bicot_clip_ratio", "segment", "Share of the tokens whose gradient the clip cuts off."),
        _gauge("bicot_importance_mean_ratio", "segment", "Mean ratio of new to behaviour probability."),
        _gauge("bicot_importance_max_ratio", "segment", "Largest ratio of new to behaviour probability."),
        _gauge("bicot_logprob_gap_max_nats", "segment",
               "Largest |new - behaviour log-prob|; on-policy it is 0 up to rounding."),
        _gauge("bicot_cot_tokens", "segment", "Mean length of a member's CoT, semantic or image."),
        _gauge("bicot_cot_cut_off_ratio", "", "Share of semantic CoTs that semantic.max_tokens cut off."),
    )),
    Section("Rewards", (
        _gauge("bicot_reward_mean", "reward task_type",
               "Mean over the newest step's scored members; task type 'all' covers all of them."),
        _gauge("bicot_reward_spread", "reward task_type",
               "Standard deviation within a group, mean of the newest step."),
        _gauge("bicot_reward_zero_spread_ratio", "reward task_type",
               "Share of the newest step's groups whose members all got the same reward."),
        _counter("bicot_reward_scores_total", "reward task_type", "Training members that a reward scored."),
        _counter("bicot_reward_missing_total", "reward task_type",
                 "Training members without the reward: it failed, or does not apply."),
        _histogram("bicot_reward_seconds", "reward task_type", _STAGE, "Seconds that scoring a group took."),
        _counter("bicot_reward_failures_total", "reward", "Groups for which a reward's service failed."),
        _gauge("bicot_reward_service_replicas", "reward", "Processes of a reward's service that respond."),
        _counter("bicot_reward_service_calls_total", "reward", "Calls that the service received."),
        _counter("bicot_reward_service_batches_total", "reward", "Batches that the service scored."),
        _counter("bicot_reward_service_pictures_total", "reward", "Pictures that the service scored."),
        _counter("bicot_reward_service_failed_pictures_total", "reward", "Pictures that the service failed on."),
        _counter("bicot_reward_service_busy_seconds_total", "reward",
                 "Seconds spent scoring; the rate is the busy share."),
    )),
    Section("Pictures, for signs of reward hacking", (
        _gauge("bicot_picture_entropy_bits", "task_type",
               "Entropy of a picture's 256 grey levels, mean of the newest step; 0 is one flat colour."),
        _gauge("bicot_picture_edge_ratio", "task_type",
               "Share of pixels that lie on an edge, mean of the newest step."),
        _gauge("bicot_group_diversity_ratio", "task_type",
               "Share of image tokens that differ between two pictures of a group, mean of the newest step."),
        _gauge("bicot_reward_picture_correlation", "reward statistic",
               "Pearson correlation of reward with entropy, edges (within groups) or diversity (between groups) "
               "in the newest step; if it stays near 1 or -1, the reward may favour texture, emptiness or sameness."),
    )),
)  # fmt: skip

METRICS = {metric.name: metric for section in SECTIONS for metric in section.metrics}

RAY_METRICS = {
    "ray_node_cpu_utilization": "CPU use of a machine, percent.",
    "ray_node_cpu_count": "CPU cores of a machine.",
    "ray_node_mem_used": "Memory in use, bytes.",
    "ray_node_mem_total": "Memory of a machine, bytes.",
    "ray_node_disk_free": "Free disk space, bytes.",
    "ray_node_gpus_utilization": "GPU use, percent; on machines with GPUs.",
    "ray_node_gram_used": "GPU memory in use, MB; on machines with GPUs.",
    "ray_node_network_send_speed": "Bytes sent a second.",
    "ray_node_network_receive_speed": "Bytes received a second.",
    "ray_object_store_memory": "Bytes in the object store, by location.",
    "ray_actors": "Actors by state.",
}
"""Ray's own metrics that the dashboards show; each machine of the cluster serves its own page."""


def series_names() -> set[str]:
    """Every name that a query may use; a histogram has three."""
    names = {"up", *RAY_METRICS}
    for metric in METRICS.values():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`make metrics` makes this page from cluster/monitor/catalogue.py. Every series also has the label `run`.",
        "",
        "A run serves its metrics at `metrics.host`:`metrics.port`/metrics. At /targets it lists all metrics pages",
        "of the run (HTTP service discovery, see deploy/prometheus/prometheus.yml); targets.json in the run's",
        "folder has the same list.",
        "",
        "These pictures show panels of the dashboards (deploy/grafana/dashboards), filled by the laptop-sized run:",
        "[does it learn](panels/learns.svg), [how fast, and what holds it back](panels/fast.svg), and",
        "[is a reward gamed](panels/rewards.svg). `make panels` draws them.",
    ]
    for section in SECTIONS:
        lines += [
            "",
            f"## {section.title}",
            "",
            "| metric | kind | labels | meaning |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {_cell(metric.help)} |"
            for metric in section.metrics
        ]
    lines += ["", "## Ray's own metrics in the dashboards", "", "| metric | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {help} |" for name, help in RAY_METRICS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
