"""A step's statistics in one flat row: what the trajectories were like, and what the learner made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

from cluster.monitor.group_metrics import NO_SPREAD
from cluster.monitor.rolled_group import RolledGroup


def step_row(
    step: int, rolled: Sequence[RolledGroup], learned: dict[str, float], waited: float, seconds: float
) -> dict[str, float]:
    """Everything one step is reported by.

    `waited` are the seconds that the learner stood idle for trajectories, `seconds` the whole step's. Rewards are
    means over the members that have them; staleness is in versions; `zero_spread/NAME` is the share of groups whose
    members all got the same reward, and `diversity/image_tokens` the mean share of differing tokens between the
    pictures of a group. `picture/...` are means of what `picture_stats.Look` holds, `stage_seconds/STAGE` of the
    seconds that groups spent in a stage, `reward_by_task/REWARD/TASK_TYPE` of a reward over prompts of a type.
    """
    members = [member for one in rolled for member in one.group.members]
    looks = [look for one in rolled for look in one.looks]
    images = [member.image for member in members]
    row: dict[str, float] = {
        "step": step,
        "seconds/step": seconds,
        "seconds/wait_for_rollout": waited,
        "pictures_per_s": len(members) / seconds,
        "diversity/image_tokens": fmean(one.diversity for one in rolled),
        "picture/entropy": fmean(look.entropy for look in looks),
        "picture/edges": fmean(look.edges for look in looks),
        "cot/image_tokens": fmean(len(segment.token_ids) for segment in images),
        **_staleness("image", [step - 1 - segment.weight_version for segment in images]),
    }
    written = [member.semantic for member in members if member.semantic]
    if written:
        row |= _staleness("semantic", [step - 1 - segment.weight_version for segment in written])
        row["cot/tokens"] = fmean(len(segment.token_ids) for segment in written)
        row["cot/cut_off"] = fmean(segment.finish_reason == "length" for segment in written)
    for stage in rolled[0].stage_seconds:
        row[f"stage_seconds/{stage}"] = fmean(one.stage_seconds[stage] for one in rolled)
    return row | _rewards(rolled) | _rewards_by_task(rolled) | learned


def _staleness(segment: str, versions: Sequence[int]) -> dict[str, float]:
    return {f"staleness/{segment}": fmean(versions), f"staleness_max/{segment}": float(max(versions))}


def _rewards_by_task(rolled: Sequence[RolledGroup]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for one in rolled:
        for name, scores in one.rewards().items():
            given = [score for score in scores if score is not None]
            values[f"reward_by_task/{name}/{one.group.prompt.task_type}"] += given
    return {name: fmean(scores) for name, scores in sorted(values.items()) if scores}


def _rewards(rolled: Sequence[RolledGroup]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    spreads: dict[str, list[float]] = defaultdict(list)
    missing: dict[str, int] = defaultdict(int)
    for one in rolled:
        for name, scores in one.rewards().items():
            given = [score for score in scores if score is not None]
            missing[name] += len(scores) - len(given)
            values[name] += given
            if given:
                spreads[name].append(pstdev(given))
    row = {f"reward/{name}": fmean(scores) for name, scores in values.items() if scores}
    row |= {f"reward_missing/{name}": float(count) for name, count in missing.items()}
    shares = {name: fmean(one < NO_SPREAD for one in spread) for name, spread in spreads.items() if spread}
    return row | {f"zero_spread/{name}": share for name, share in shares.items()}
