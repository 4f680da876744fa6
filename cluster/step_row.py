"""A step's statistics in one flat row: what the trajectories were like, and what the learner made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

import torch

from transport.trajectory import TrajectoryGroup


def step_row(
    step: int, groups: Sequence[TrajectoryGroup], learned: dict[str, float], waited: float, seconds: float
) -> dict[str, float]:
    """Everything one step is reported by.

    `waited` are the seconds that the learner stood idle for trajectories, `seconds` the whole step's. Rewards are
    means over the members that have them; staleness is in versions; `zero_spread/NAME` is the share of groups whose
    members all got the same reward, and `diversity/image_tokens` the mean share of differing tokens between the
    pictures of a group.
    """
    members = [member for group in groups for member in group.members]
    row: dict[str, float] = {
        "step": step,
        "seconds/step": seconds,
        "seconds/wait_for_rollout": waited,
        "pictures_per_s": len(members) / seconds,
        "diversity/image_tokens": fmean(_diversity(group) for group in groups),
        "staleness/image": fmean(step - 1 - member.image.weight_version for member in members),
    }
    written = [member.semantic for member in members if member.semantic]
    if written:
        row["staleness/semantic"] = fmean(step - 1 - segment.weight_version for segment in written)
        row["cot/tokens"] = fmean(len(segment.token_ids) for segment in written)
        row["cot/cut_off"] = fmean(segment.finish_reason == "length" for segment in written)
    row |= _rewards(groups)
    return row | learned


def _rewards(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    spreads: dict[str, list[float]] = defaultdict(list)
    missing: dict[str, int] = defaultdict(int)
    for group in groups:
        for name in group.members[0].rewards:
            given = [score for member in group.members if (score := member.rewards[name]) is not None]
            missing[name] += len(group.members) - len(given)
            values[name] += given
            if given:
                spreads[name].append(pstdev(given))
    row = {f"reward/{name}": fmean(scores) for name, scores in values.items() if scores}
    row |= {f"reward_missing/{name}": float(count) for name, count in missing.items()}
    row |= {f"zero_spread/{name}": fmean(one < 1e-6 for one in spread) for name, spread in spreads.items() if spread}
    return row


def _diversity(group: TrajectoryGroup) -> float:
    tokens = torch.stack([member.image.token_ids for member in group.members])
    differ = (tokens.unsqueeze(0) != tokens.unsqueeze(1)).float().mean(-1)
    pairs = len(tokens) * (len(tokens) - 1)
    return float(differ.sum() / pairs)
