"""Rewards of a group to advantages (BiCoT-GRPO, arXiv 2505.00703: A_i = (R_i - mean R) / (std R + 1e-4))."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from learner.config import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """The advantages of a group's G members.

    `advantages` [G] float32, 0 where masked; `mask` [G] bool, True for members that train. `dropped` names
    the weighted rewards that no member has.
    """

    advantages: torch.Tensor
    mask: torch.Tensor
    dropped: tuple[str, ...]

    @property
    def scored(self) -> int:
        """Members that train."""
        return int(self.mask.sum())


def group_advantages(
    rewards: Sequence[Mapping[str, float | None]], weights: Mapping[str, float], config: ObjectiveConfig
) -> GroupAdvantages:
    """Advantages of one group's members.

    A missing reward (absent, None or not finite) never counts as 0:

    - a reward that no member has is dropped from the group, and the other weights are scaled up to the same sum (so a
      reward that does not apply does not reduce the total);
    - a member that lacks a reward which another member has is masked, because its total would be on another scale;
    - a group with fewer than two unmasked members is masked completely.

    Rewards of weight 0 are only reported and mask no member. The mean and the standard deviation (unbiased, as in TRL
    and T2I-R1) are taken over the unmasked members, in float64.
    """
    names = [name for name, weight in weights.items() if weight != 0]
    values = torch.tensor(
        [[_value(member.get(name)) for name in names] for member in rewards], dtype=torch.float64
    ).reshape(len(rewards), len(names))
    known = ~values.isnan().all(dim=0)
    weight = torch.tensor([weights[name] for name in names], dtype=torch.float64)
    dropped = tuple(name for name, is_known in zip(names, known.tolist(), strict=True) if not is_known)

    mask = ~values[:, known].isnan().any(dim=1) & bool(known.any())
    if mask.sum() < 2:
        mask = torch.zeros_like(mask)
        return GroupAdvantages(torch.zeros(len(rewards)), mask, dropped)

    scale = weight.abs().sum() / weight[known].abs().sum()
    scored, weight = values[mask][:, known], weight[known] * scale
    if config.normalise == "sum_then_normalise":
        advantage = _normalise((scored @ weight)[:, None], config)[:, 0]
    else:
        advantage = _normalise(scored, config) @ weight
    advantages = torch.zeros(len(rewards)).masked_scatter(mask, advantage.float())
    return GroupAdvantages(advantages, mask, dropped)


def _value(reward: float | None) -> float:
    return math.nan if reward is None or not math.isfinite(reward) else float(reward)


def _normalise(values: torch.Tensor, config: ObjectiveConfig) -> torch.Tensor:
    """Centre the columns of `values` [members, rewards] and, if asked, divide by their standard deviation."""
    centred = values - values.mean(dim=0)
    return centred / (values.std(dim=0) + config.std_eps) if config.std else centred
