"""A step's row, by hand, over two groups that differ in all that is counted."""

from __future__ import annotations

import pytest
import torch

from cluster.monitor.pictures import Look
from cluster.monitor.rolled_group import RolledGroup
from cluster.monitor.step_statistics import RewardStatistics, StepStatistics, correlations
from policy.prompts import PromptRecord
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup

NONE = torch.zeros(0)


def member(
    image: list[int], version: int, judge: float | None, written: tuple[int, str, int] | None = None
) -> Member:
    """`written` is the plan's tokens, how it ended, and the weights' version."""
    semantic = None
    if written is not None:
        tokens, reason, plan_version = written
        semantic = SemanticSegment(NONE, torch.arange(tokens), NONE, 1.0, reason, plan_version)
    drawn = ImageSegment(NONE, torch.tensor(image), NONE, NONE, 1.0, 1.0, version)
    return Member(0, semantic, drawn, rewards={"judge": judge, "flat": 0.5})


def rolled(name: str, members: list[Member], looks: list[Look], seconds: dict[str, float]) -> RolledGroup:
    prompt = PromptRecord(prompt=name, task_type="color", nouns=("x",))
    return RolledGroup(TrajectoryGroup(name, 0, 0, prompt, tuple(members)), tuple(looks), seconds)


GROUPS = [
    rolled(
        "a",
        [
            member([1, 2, 3, 4], 3, 1.0, (6, "stop", 2)),
            member([1, 2, 3, 5], 4, 0.0, (9, "length", 4)),
            member([1, 2, 3, 4], 4, None),
        ],
        [Look(1.0, 0.1), Look(2.0, 0.2), Look(3.0, 0.3)],
        {"image": 2.0, "rewards": 1.0},
    ),
    rolled(
        "b",
        [member([7, 7, 7, 7], 1, 0.25, (3, "stop", 1)), member([8, 8, 8, 8], 4, None), member([7, 7, 7, 7], 4, None)],
        [Look(6.0, 0.0), Look(6.0, 0.6), Look(6.0, 0.0)],
        {"image": 5.0, "rewards": 2.0},
    ),
]


def test_a_row_by_hand() -> None:
    row = StepStatistics.of(6, GROUPS).row({"kl": 0.25}, 1.5, 3.0)
    assert row == pytest.approx({
        "step": 6, "seconds/step": 3.0, "seconds/wait_for_rollout": 1.5, "pictures_per_s": 2.0, "kl": 0.25,
        # two of three pairs differ: in one of four tokens, and in all
        "diversity/image_tokens": (2 / 3 * 0.25 + 2 / 3) / 2,
        "picture/entropy": 4.0, "picture/edges": 0.2, "cot/image_tokens": 4.0,
        "staleness/image": (2 + 1 + 1 + 4 + 1 + 1) / 6, "staleness_max/image": 4.0,
        "staleness/semantic": (3 + 1 + 4) / 3, "staleness_max/semantic": 4.0,
        "cot/tokens": 6.0, "cot/cut_off": 1 / 3,
        "stage_seconds/image": 3.5, "stage_seconds/rewards": 1.5,
        "reward/judge": 1.25 / 3, "reward/flat": 0.5, "reward_missing/judge": 3.0, "reward_missing/flat": 0.0,
        "reward_by_task/judge/color": 1.25 / 3, "reward_by_task/flat/color": 0.5,
        "zero_spread/judge": 0.5, "zero_spread/flat": 1.0,
    })  # fmt: skip


def test_a_reward_by_group() -> None:
    found = RewardStatistics.of([[0.0, 1.0, None], [None, None], [0.5, 0.5], [0.25]])
    assert (found.scored, found.missing, found.mean) == (5, 3, pytest.approx(2.25 / 5))
    assert found.spread == pytest.approx((0.5 + 0 + 0) / 3) and found.zero_spread == pytest.approx(2 / 3)
    assert RewardStatistics.of([[None], [None, None]]) == RewardStatistics(0, 3, None, None, None)


def test_correlations_are_taken_within_groups() -> None:
    """Two prompts of very different scores and looks, in each of which the better picture is the richer one."""
    low = rolled("low", [member([1], 0, 0.0), member([2], 0, 1.0)], [Look(1.0, 0.6), Look(2.0, 0.5)], {})
    high = rolled("high", [member([1], 0, 10.0), member([2], 0, 11.0)], [Look(0.0, 0.2), Look(1.0, 0.1)], {})
    found = correlations([low, high], "judge")
    assert found["entropy"] == pytest.approx(1.0) and found["edges"] == pytest.approx(-1.0)
