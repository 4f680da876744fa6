"""The dashboard *Rewards*: by reward and by task type, their services, and signs of reward hacking."""

from __future__ import annotations

from deploy.grafana.panels import Board, curves, metric, quantile, rate, total

OF_ALL = 'task_type="all"'
BY_TYPE = 'task_type!="all"'


def _missing(*by: str) -> str:
    missing, scored = (total(rate(f"bicot_reward_{name}_total"), *by) for name in ("missing", "scores"))
    return f"{missing} / ({missing} + {scored})"


_REWARDS = (
    curves("Mean", "Over the newest step's members that have it.", "none",
           (metric("bicot_reward_mean", OF_ALL), "{{reward}}")),
    curves("Spread in a group", "Standard deviation; at 0 there is nothing to learn.", "none",
           (metric("bicot_reward_spread", OF_ALL), "{{reward}}")),
    curves("Groups without spread", "Share of the groups whose members all got the same reward.", "percentunit",
           (metric("bicot_reward_zero_spread_ratio", OF_ALL), "{{reward}}")),
    curves("Missing", "Share of the members whose reward failed or does not apply.", "percentunit",
           (_missing("reward"), "{{reward}}")),
    curves("Failures", "Groups for which the service failed, since the start.", "none",
           (metric("bicot_reward_failures_total"), "{{reward}}")),
    curves("Seconds of a group, p95", "From the driver's call to the scores.", "s",
           (quantile(0.95, "bicot_reward_seconds", "reward"), "{{reward}}")),
)  # fmt: skip

_TASK_TYPES = (
    curves("Mean", "By reward and task type.", "none",
           (metric("bicot_reward_mean", BY_TYPE), "{{reward}}, {{task_type}}")),
    curves("Spread in a group", "By reward and task type.", "none",
           (metric("bicot_reward_spread", BY_TYPE), "{{reward}}, {{task_type}}")),
    curves("Groups without spread", "By reward and task type.", "percentunit",
           (metric("bicot_reward_zero_spread_ratio", BY_TYPE), "{{reward}}, {{task_type}}")),
    curves("Missing", "Share of the members, by reward and task type.", "percentunit",
           (_missing("reward", "task_type"), "{{reward}}, {{task_type}}")),
    curves("Seconds of a group, median", "By reward and task type.", "s",
           (quantile(0.5, "bicot_reward_seconds", "reward", "task_type"), "{{reward}}, {{task_type}}")),
)  # fmt: skip

_SERVICES = (
    curves("Busy share", "Sum over a service's processes; the largest possible value is their number.", "percentunit",
           (rate("bicot_reward_service_busy_seconds_total"), "{{reward}}")),
    curves("Pictures/s", "Scored, and failed on.", "none",
           (rate("bicot_reward_service_pictures_total"), "{{reward}}"),
           (rate("bicot_reward_service_failed_pictures_total"), "{{reward}} failed")),
    curves("Mean batch", "Pictures scored together.", "none",
           (f"{rate('bicot_reward_service_pictures_total')} / {rate('bicot_reward_service_batches_total')}",
            "{{reward}}")),
    curves("Calls/s", "Groups, retries included.", "none",
           (rate("bicot_reward_service_calls_total"), "{{reward}}")),
    curves("Replicas", "Processes that answer.", "none", (metric("bicot_reward_service_replicas"), "{{reward}}")),
)  # fmt: skip

_HACKING = (
    curves("Reward against held-out score", "A reward that rises alone, without the held-out score, is being gamed.",
           "none",
           (metric("bicot_reward_mean", OF_ALL), "{{reward}}"),
           (metric("bicot_held_out_score", 'family="all"'), "held-out {{split}}")),
    curves("Reward against picture entropy",
           "Correlation within groups: near 1 the reward favours busy pictures, near -1 empty ones.",
           "none", (metric("bicot_reward_picture_correlation", 'statistic="entropy"'), "{{reward}}")),
    curves("Reward against edge density", "Correlation within groups: 1 favours texture, -1 blur.", "none",
           (metric("bicot_reward_picture_correlation", 'statistic="edges"'), "{{reward}}")),
    curves("Reward against diversity", "Correlation between groups: -1 favours sameness. Few groups are noisy.",
           "none", (metric("bicot_reward_picture_correlation", 'statistic="diversity"'), "{{reward}}")),
    curves("Picture entropy", "Of the grey levels, in bits, by task type.", "none",
           (metric("bicot_picture_entropy_bits"), "{{task_type}}")),
    curves("Edge density", "Share of the pixels on an edge, by task type.", "percentunit",
           (metric("bicot_picture_edge_ratio"), "{{task_type}}")),
    curves("Diversity in a group",
           "Share of image tokens that differ between two members. If it falls, pictures become alike.",
           "percentunit", (metric("bicot_group_diversity_ratio"), "{{task_type}}")),
)  # fmt: skip

BOARD = Board("bicot-rewards", "bicot: Rewards", "Rewards by name and task type, and signs that one is gamed.", {
    "By reward": _REWARDS, "By task type": _TASK_TYPES, "Services": _SERVICES, "Signs of reward hacking": _HACKING,
})  # fmt: skip
