"""A step's statistics, computed once: for the flat row that the run keeps, and for Prometheus by task type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import numpy as np

from cluster.monitor.catalogue import ALL
from cluster.monitor.rolled_group import RolledGroup

NO_SPREAD = 1e-6
"""Largest standard deviation at which members count as having the same reward."""


@dataclass(frozen=True, slots=True)
class RewardStatistics:
    """One reward over some groups: members scored, and members that miss it.

    `mean` is over the members scored, `spread` the mean standard deviation within a group, `zero_spread` the share of
    groups whose members all got the same; None where no member was scored.
    """

    scored: int
    missing: int
    mean: float | None
    spread: float | None
    zero_spread: float | None

    @classmethod
    def of(cls, groups: Sequence[Sequence[float | None]]) -> RewardStatistics:
        """The statistics of these scores, group by group."""
        given = [[score for score in group if score is not None] for group in groups]
        scored = sum(map(len, given))
        missing = sum(map(len, groups)) - scored
        if not scored:
            return cls(0, missing, None, None, None)
        spreads = [pstdev(group) for group in given if group]
        mean = fmean(score for group in given for score in group)
        return cls(scored, missing, mean, fmean(spreads), fmean(spread < NO_SPREAD for spread in spreads))


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Statistics of some groups of a step: means of `Look`, mean share of differing image tokens, and the rewards."""

    entropy: float
    edges: float
    diversity: float
    rewards: dict[str, RewardStatistics]

    @classmethod
    def of(cls, rolled: Sequence[RolledGroup]) -> GroupStatistics:
        """The statistics of these groups."""
        looks = [look for one in rolled for look in one.looks]
        scores = [one.rewards() for one in rolled]
        return cls(
            fmean(look.entropy for look in looks),
            fmean(look.edges for look in looks),
            fmean(one.diversity for one in rolled),
            {name: RewardStatistics.of([group[name] for group in scores]) for name in scores[0]},
        )


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Statistics of a step: `parts` by task type, those of all groups under `ALL`; correlations by reward."""

    step: int
    rolled: Sequence[RolledGroup]
    parts: dict[str, GroupStatistics]
    correlations: dict[str, dict[str, float]]

    @classmethod
    def of(cls, step: int, rolled: Sequence[RolledGroup]) -> StepStatistics:
        """The statistics of the groups that `step` trained."""
        parts: dict[str, list[RolledGroup]] = {ALL: list(rolled)}
        for one in rolled:
            parts.setdefault(one.group.prompt.task_type, []).append(one)
        found = {task_type: GroupStatistics.of(part) for task_type, part in parts.items()}
        return cls(step, rolled, found, {name: correlations(rolled, name) for name in found[ALL].rewards})

    def row(self, learned: dict[str, float], waited: float, seconds: float) -> dict[str, float]:
        """The step's row: all reported figures, the learner's included.

        `waited` are the seconds that the learner waited for trajectories, `seconds` those of the whole step. Rewards
        are means over the members that have them; staleness is in versions; `zero_spread/NAME` is the share of groups
        whose members all got the same reward, and `diversity/image_tokens` the mean share of differing tokens between
        the pictures of a group. `picture/...` are means of `pictures.Look`, `stage_seconds/STAGE` mean seconds of a
        group in a stage, `reward_by_task/REWARD/TASK_TYPE` means of a reward over prompts of a type.
        """
        members = [member for one in self.rolled for member in one.group.members]
        images = [member.image for member in members]
        row: dict[str, float] = {
            "step": self.step,
            "seconds/step": seconds,
            "seconds/wait_for_rollout": waited,
            "pictures_per_s": len(members) / seconds,
            "diversity/image_tokens": self.parts[ALL].diversity,
            "picture/entropy": self.parts[ALL].entropy,
            "picture/edges": self.parts[ALL].edges,
            "cot/image_tokens": fmean(len(segment.token_ids) for segment in images),
            **self._staleness("image", [segment.weight_version for segment in images]),
        }
        written = [member.semantic for member in members if member.semantic]
        if written:
            row |= self._staleness("semantic", [segment.weight_version for segment in written])
            row["cot/tokens"] = fmean(len(segment.token_ids) for segment in written)
            row["cot/cut_off"] = fmean(segment.finish_reason == "length" for segment in written)
        for stage in self.rolled[0].stage_seconds:
            row[f"stage_seconds/{stage}"] = fmean(one.stage_seconds[stage] for one in self.rolled)
        return row | self._rewards() | learned

    def _staleness(self, segment: str, versions: Sequence[int]) -> dict[str, float]:
        behind = [self.step - 1 - version for version in versions]
        return {f"staleness/{segment}": fmean(behind), f"staleness_max/{segment}": float(max(behind))}

    def _rewards(self) -> dict[str, float]:
        everywhere = self.parts[ALL].rewards
        row: dict[str, float | None] = {f"reward/{name}": one.mean for name, one in everywhere.items()}
        row |= {f"reward_missing/{name}": float(one.missing) for name, one in everywhere.items()}
        row |= {f"zero_spread/{name}": one.zero_spread for name, one in everywhere.items()}
        for name in sorted(everywhere):
            for task_type in sorted(self.parts.keys() - {ALL}):
                row[f"reward_by_task/{name}/{task_type}"] = self.parts[task_type].rewards[name].mean
        return {name: value for name, value in row.items() if value is not None}


def correlations(rolled: Sequence[RolledGroup], reward: str) -> dict[str, float]:
    """Pearson correlation of a reward with `entropy`, `edges` and `diversity`; pairs without spread are left out.

    Entropy and edges are compared within groups (both sides minus their group's mean), so that differences between
    prompts do not count. Diversity is a figure per group, and is compared with the group's mean reward.
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
