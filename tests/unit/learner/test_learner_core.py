"""The learner's core: advantages and their masks, the objective, the plan of a batch, the learning rate."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import WEIGHTS, random_groups
from paths import ROOT

from learner.advantages import group_advantages
from learner.batching import BatchPlan, Kind, MicroBatch, Row, plan_batch, training_rows
from learner.config import LearnerConfig, ObjectiveConfig, OptimizerConfig
from learner.objective import SegmentStats, k3, segment_loss, surrogate
from learner.schedule import lr_factor
from policy.janus import Policy

PLAIN = ObjectiveConfig()
TWICE = """
import sys, torch
from learner.config import LearnerConfig
from learner.loading import load_engine
from learner.process_group import join
from policy.config import PolicyConfig
from transport.rendezvous import Endpoint
for _ in range(2):
    join(0, 1, Endpoint("127.0.0.1", 0), None, 60)
    load_engine(PolicyConfig(checkpoint=sys.argv[1], dtype="float32"), LearnerConfig(), 4)
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_process_may_join_again(tiny_checkpoint: Path) -> None:
    run = [sys.executable, "-c", TWICE, str(tiny_checkpoint)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_advantages_follow_the_equation() -> None:
    rewards = [0.1, 0.5, 0.6, 0.2]
    got = group_advantages([{"a": r, "b": 1 - r} for r in rewards], {"a": 2.0, "b": 1.0}, PLAIN)
    totals = torch.tensor([2 * r + 1 - r for r in rewards])
    assert torch.allclose(got.advantages, (totals - totals.mean()) / (totals.std() + 1e-4))
    assert got.mask.all() and got.scored == 4 and got.dropped == ()


def test_without_std() -> None:
    got = group_advantages([{"a": 0.0}, {"a": 1.0}], {"a": 1.0}, ObjectiveConfig(std=False))
    assert got.advantages.tolist() == [-0.5, 0.5]


def test_normalise_then_sum_gives_each_reward_its_say() -> None:
    members = [{"small": 0.01 * i, "large": 100.0 * (i % 2)} for i in range(4)]
    config = ObjectiveConfig(normalise="normalise_then_sum")
    got = group_advantages(members, {"small": 1.0, "large": 3.0}, config)

    def normal(name: str) -> torch.Tensor:
        values = torch.tensor([member[name] for member in members])
        return (values - values.mean()) / (values.std() + 1e-4)

    assert torch.allclose(got.advantages, normal("small") + 3 * normal("large"), atol=1e-5)


def test_equal_rewards_say_nothing() -> None:
    got = group_advantages([{"a": 0.3}] * 5, {"a": 1.0}, PLAIN)
    assert got.mask.all() and got.advantages.abs().max() < 1e-6


@pytest.mark.parametrize("missing", [{}, {"a": None}, {"a": math.nan}, {"a": math.inf}])
@pytest.mark.parametrize("normalise", ["sum_then_normalise", "normalise_then_sum"])
def test_a_missing_reward_masks_its_member(missing: dict[str, float | None], normalise: str) -> None:
    config = ObjectiveConfig(normalise=normalise)
    others: list[dict[str, float | None]] = [{"a": 0.1, "b": 1.0}, {"a": 0.4, "b": 0.0}, {"a": 0.2, "b": 0.0}]
    weights = {"a": 1.0, "b": 0.5}
    lacking: dict[str, float | None] = {"b": 0.5, **missing}
    got = group_advantages([*others[:2], lacking, others[2]], weights, config)
    assert got.mask.tolist() == [True, True, False, True] and got.dropped == ()
    assert got.advantages[2] == 0
    assert torch.equal(got.advantages[got.mask], group_advantages(others, weights, config).advantages)


def test_a_reward_that_nobody_has_is_dropped_and_reported() -> None:
    members: list[dict[str, float | None]] = [{"a": 0.1, "b": None}, {"a": 0.4, "b": None}, {"a": 0.3}]
    got = group_advantages(members, {"a": 1.0, "b": 3.0}, ObjectiveConfig(std=False))
    assert got.dropped == ("b",) and got.mask.all()
    totals = torch.tensor([0.4, 1.6, 1.2])  # the other weights make up for it
    assert torch.allclose(got.advantages, totals - totals.mean())


def test_rewards_of_weight_zero_mask_nobody() -> None:
    got = group_advantages([{"a": 0.1, "b": None}, {"a": 0.4, "b": 1.0}], {"a": 1.0, "b": 0.0}, PLAIN)
    assert got.mask.all() and got.dropped == ()


@pytest.mark.parametrize("members", [[{"a": 1.0}], [{"a": 1.0}, {"a": None}], [{"a": None}, {"a": None}], [{}]])
def test_fewer_than_two_scored_members_mask_the_group(members: list[dict[str, float | None]]) -> None:
    got = group_advantages(members, {"a": 1.0}, PLAIN)
    assert not got.mask.any() and not got.advantages.any() and got.scored == 0


def test_surrogate_clips_only_what_would_go_further() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.0, 2.0, 2.0])
    advantage = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    config = ObjectiveConfig(clip_low=0.2, clip_high=0.3)
    assert torch.allclose(surrogate(ratio, advantage, config), torch.tensor([0.5, -0.8, 1.0, 1.3, -2.0]))
    assert torch.equal(surrogate(ratio, advantage, ObjectiveConfig(clip=False)), ratio * advantage)


def test_k3() -> None:
    gap = torch.tensor([-1.0, 0.0, 1e-4, 2.0], dtype=torch.float64)
    assert torch.allclose(k3(torch.zeros(4, dtype=torch.float64), gap), gap.exp() - gap - 1)
    assert k3(torch.tensor(-3.0), torch.tensor(-3.0)) == 0


def test_segment_statistics() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -1.0], requires_grad=True)
    behaviour = torch.tensor([-1.0, -2.5, -2.5, -1.0])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, stats = segment_loss(
        logprobs, behaviour, behaviour - 0.1, torch.full((4,), 0.5), advantage, 2.0, ObjectiveConfig(beta=0.3)
    )
    ratio = (logprobs - behaviour).exp()
    clipped = torch.tensor([1.0, 1.2, 0.8, 1.0])
    kl = k3(logprobs, behaviour - 0.1).sum()
    assert torch.allclose(loss, -2 * torch.minimum(ratio * advantage, clipped * advantage).sum() + 0.3 * kl)
    assert (stats.tokens, stats.clipped, stats.entropy) == (4, 2, 2)
    assert stats.ratio_max.item() == pytest.approx(math.exp(0.5)) and stats.gap_max == 0.5
    assert stats.reference_kl.item() == pytest.approx(kl.item()) and stats.loss.item() == pytest.approx(loss.item())
    twice = stats + stats + SegmentStats.empty(torch.device("cpu"))
    assert twice.tokens == 8 and twice.ratio_max == stats.ratio_max and not twice.loss.requires_grad


def rows_of(lengths: list[tuple[str, int]]) -> list[Row]:
    kinds = {"text": Kind("semantic", 1.0, 1.0), "image": Kind("image", 1.0, 2.0), "hot": Kind("image", 2.0, 2.0)}
    return [
        Row(kinds[kind], torch.arange(n), torch.arange(2), torch.zeros(2), float(i), (tuple(range(i, i + n)),))
        for i, (kind, n) in enumerate(lengths)
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["text", "image", "hot"]), st.integers(1, 60)), max_size=40),
    st.integers(1, 4),
    st.integers(1, 200),
)
def test_plans_hold_every_row_once(lengths: list[tuple[str, int]], ranks: int, limit: int) -> None:
    rows = rows_of(lengths)
    plan = plan_batch(rows, ranks, limit)
    assert plan.tokens == 2 * len(rows) == sum(b.tokens for batches in plan.micro_batches for b in batches)
    shapes = [[batch.kind for batch in batches] for batches in plan.micro_batches]
    assert len(shapes) == ranks and all(shape == shapes[0] for shape in shapes)
    real = [batch for batches in plan.micro_batches for batch in batches if not batch.filler]
    assert Counter(id(row) for batch in real for row in batch.rows) == Counter(id(row) for row in rows)
    for batch in real:
        assert batch.positions <= limit or len(batch.rows) == 1
        assert batch.positions == sum(row.cost for row in batch.rows)  # prompts begin differently
        assert {row.kind for row in batch.rows} == {batch.kind}
    assert plan == plan_batch(list(rows), ranks, limit)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 4))
def test_ranks_are_balanced_in_order(lengths: list[int], ranks: int) -> None:
    rows = rows_of([("text", n) for n in lengths])
    plan = plan_batch(rows, ranks, 10_000)
    shares = [[row for batch in batches if not batch.filler for row in batch.rows] for batches in plan.micro_batches]
    assert [id(row) for share in shares for row in share] == [id(row) for row in rows]
    even, most = sum(row.cost for row in rows) / ranks, max(row.cost for row in rows)
    assert all(abs(sum(row.cost for row in share) - even) <= most for share in shares)


def test_equal_rows_are_balanced_evenly() -> None:
    plan = plan_batch(rows_of([("image", 30)] * 24), 8, 10_000)
    assert [len(batches[0].rows) for batches in plan.micro_batches] == [3] * 8


def test_shared_prompts_count_once() -> None:
    kind, prompt = Kind("semantic", 1.0, 1.0), tuple(range(50))
    rows = [Row(kind, torch.tensor(prompt), torch.arange(5), torch.zeros(5), 0.0, (prompt,)) for _ in range(10)]
    batches = plan_batch(rows, 1, 70).micro_batches[0]
    assert [(len(batch.rows), batch.positions) for batch in batches] == [(5, 70), (5, 70)]
    assert [batches[0].positions for batches in plan_batch(rows[:3], 2, 70).micro_batches] == [54, 58]


def test_members_that_do_not_train_have_no_rows(tiny_policy: Policy) -> None:
    groups = random_groups(tiny_policy, groups=2, members=4)
    scored = [group_advantages([m.rewards for m in g.members], WEIGHTS, PLAIN) for g in groups]
    for distribution in ("conditional", "guided"):
        rows = training_rows(groups, scored, distribution, tiny_policy.layout)
        # Member 1 lacks a reward, member 2 a plan.
        assert Counter(row.kind.segment for row in rows) == {"semantic": 4, "image": 6}
        image = next(row for row in rows if row.kind.segment == "image")
        source = groups[0].members[0].image
        guided = distribution == "guided"
        assert image.behaviour is (source.guided_logprobs if guided else source.conditional_logprobs)
        assert image.cost == (2 if guided else 1) * (len(source.prompt_ids) + len(source.token_ids) - 1)
        assert {row.advantage for row in rows} <= {a for s in scored for a in s.advantages.tolist()}


def test_micro_batches_spread_advantages_over_tokens() -> None:
    kind = Kind("semantic", 1.0, 1.0)
    rows = tuple(
        Row(kind, torch.arange(2), torch.arange(n), torch.full((n,), float(n)), a, ((0, 1),))
        for n, a in [(1, 0.5), (3, -1.0)]
    )
    batch = MicroBatch(kind, rows, 4)
    assert batch.advantages(torch.device("cpu")).tolist() == [0.5, -1.0, -1.0, -1.0]
    assert batch.behaviour(torch.device("cpu")).tolist() == [1.0, 3.0, 3.0, 3.0]
    assert batch.tokens == 4 and MicroBatch(kind, rows, 4, filler=True).tokens == 0
    assert plan_batch([], 3, 100) == BatchPlan(((), (), ()), 0)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rate(schedule: str, expected: list[float]) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_steps=2)
    assert [lr_factor(step, 6, config) for step in range(6)] == pytest.approx(expected)
    assert lr_factor(6, 6, config) == lr_factor(9, 6, config) == (1 if schedule == "constant" else 0)


def test_config_refuses_what_makes_no_sense() -> None:
    for wrong in ({"beta": -1}, {"clip_low": 0}, {"distribution": "both"}, {"epsilon": 0.2}):
        with pytest.raises(ValueError):
            ObjectiveConfig(**wrong)
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\)"):
        OptimizerConfig(betas=(0.9, 1.0))
    with pytest.raises(ValueError):
        LearnerConfig(zero_stage=4)


def test_config_needs_no_torch() -> None:
    code = "import sys, learner.config; sys.exit(any(m in sys.modules for m in ('torch', 'deepspeed', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=240, check=False).returncode == 0
