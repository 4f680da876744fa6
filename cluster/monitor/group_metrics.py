"""A step's groups by reward and task type: scores, what is missing, how pictures look, what goes together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

import numpy as np

from cluster.monitor.catalogue import ALL
from cluster.monitor.rolled_group import RolledGroup
from cluster.monitor.store import MetricStore

NO_SPREAD = 1e-6
"""Standard deviation up to which members count as having got the same reward."""


def show_groups(store: MetricStore, rolled: Sequence[RolledGroup]) -> None:
    """Show the newest step's groups; gauges of rewards and task types that it lacks vanish."""
    values: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for task_type, part in _by_task_type(rolled).items():
        looks = [look for one in part for look in one.looks]
        values["bicot_picture_entropy_bits"][(task_type,)] = fmean(look.entropy for look in looks)
        values["bicot_picture_edge_ratio"][(task_type,)] = fmean(look.edges for look in looks)
        values["bicot_group_diversity_ratio"][(task_type,)] = fmean(one.diversity for one in part)
        for reward, groups in _scores(part).items():
            given = [[score for score in group if score is not None] for group in groups]
            missing = sum(map(len, groups)) - sum(map(len, given))
            if task_type != ALL:
                store.add("bicot_reward_scores_total", sum(map(len, given)), reward=reward, task_type=task_type)
                store.add("bicot_reward_missing_total", missing, reward=reward, task_type=task_type)
            spreads = [pstdev(group) for group in given if group]
            if spreads:
                key = (reward, task_type)
                values["bicot_reward_mean"][key] = fmean(score for group in given for score in group)
                values["bicot_reward_spread"][key] = fmean(spreads)
                values["bicot_reward_zero_spread_ratio"][key] = fmean(spread < NO_SPREAD for spread in spreads)
    for reward in _scores(rolled):
        for statistic, correlation in correlations(rolled, reward).items():
            values["bicot_reward_picture_correlation"][reward, statistic] = correlation
    for name in (
        "bicot_picture_entropy_bits", "bicot_picture_edge_ratio", "bicot_group_diversity_ratio", "bicot_reward_mean",
        "bicot_reward_spread", "bicot_reward_zero_spread_ratio", "bicot_reward_picture_correlation",
    ):  # fmt: skip
        store.replace(name, values[name])


def correlations(rolled: Sequence[RolledGroup], reward: str) -> dict[str, float]:
    """Pearson correlation of a reward with `entropy`, `edges` and `diversity`; those without spread are left out.

    Entropy and edges are compared within groups (both sides less their group's mean), so that prompts which ask for
    more do not count; diversity is a group's, and compared with the group's mean reward.
    """
    pairs: dict[str, list[tuple[float, float]]] = {"entropy": [], "edges": [], "diversity": []}
    for one in rolled:
        scored = [
            (score, look) for score, look in zip(one.rewards()[reward], one.looks, strict=True) if score is not None
        ]
        if not scored:
            continue
        mean = fmean(score for score, _ in scored)
        entropy, edges = (fmean(getattr(look, name) for _, look in scored) for name in ("entropy", "edges"))
        pairs["entropy"] += [(score - mean, look.entropy - entropy) for score, look in scored]
        pairs["edges"] += [(score - mean, look.edges - edges) for score, look in scored]
        pairs["diversity"].append((mean, one.diversity))
    found = {}
    for name, points in pairs.items():
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        if len(x) > 1 and x.std() > NO_SPREAD and y.std() > NO_SPREAD:
            found[name] = float(np.corrcoef(x, y)[0, 1])
    return found


def _by_task_type(rolled: Sequence[RolledGroup]) -> dict[str, list[RolledGroup]]:
    parts: dict[str, list[RolledGroup]] = {ALL: list(rolled)}
    for one in rolled:
        parts.setdefault(one.group.prompt.task_type, []).append(one)
    return parts


def _scores(rolled: Sequence[RolledGroup]) -> dict[str, list[list[float | None]]]:
    """Scores of each reward, group after group."""
    scores: dict[str, list[list[float | None]]] = defaultdict(list)
    for one in rolled:
        for name, group in one.rewards().items():
            scores[name].append(group)
    return scores
