"""The same update at any layout: ranks, ZeRO stage, micro-batch size, gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from learner_cases import random_groups
from learner_worker import Trained, train

from learner.config import LearnerConfig, ObjectiveConfig, OptimizerConfig
from learner.process_group import join
from policy.config import PolicyConfig
from policy.janus import Policy
from transport.rendezvous import Endpoint
from transport.trajectory import TrajectoryGroup

SMALL, LARGE = 60, 100_000  # tokens of a micro-batch: a row or two, everything


def layout(stage: int, tokens: int, checkpointing: bool | str = False) -> LearnerConfig:
    return LearnerConfig(
        zero_stage=stage,
        zero_persistence=0,
        micro_batch_tokens=tokens,
        gradient_checkpointing=checkpointing,
        # A large eps, since Adam's first steps otherwise are the signs of gradients, noise included.
        optimizer=OptimizerConfig(lr=1e-2, eps=1e-2, schedule="linear", grad_norm=0.5, weight_decay=0.01),
        objective=ObjectiveConfig(beta=0.1),
    )


@pytest.fixture(scope="module")
def steps(tiny_policy: Policy) -> list[list[TrajectoryGroup]]:
    return [random_groups(tiny_policy, groups=3, members=4, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def plain(tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]]) -> Trained:
    """One rank, no ZeRO, one micro-batch a segment."""
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)
    return train(tiny_config, layout(0, LARGE), steps)


def agree(got: Trained, plain: Trained) -> None:
    assert got.tensors.keys() == plain.tensors.keys()
    for name, tensor in plain.tensors.items():
        assert (got.tensors[name] - tensor).abs().max() <= 1e-5, name
    for mine, theirs in zip(got.metrics, plain.metrics, strict=True):
        for name, value in theirs.items():
            if not name.startswith(("seconds/", "micro_batches")):
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_plain_layout_moves(plain: Trained, tiny_policy: Policy) -> None:
    before = tiny_policy.model.state_dict()
    moved = [(tensor - before[name]).abs().max() for name, tensor in plain.tensors.items()]
    assert min(moved) > 1e-4 and max(moved) > 5e-3
    assert [m["lr"] for m in plain.metrics] == pytest.approx([1e-2, 5e-3])
    assert plain.metrics[0]["kl"] == pytest.approx(0, abs=1e-6) and plain.metrics[1]["kl"] > 1e-4
    assert plain.metrics[0]["members_masked"] == 3 and plain.metrics[0]["grad_norm"] > 0.5


@pytest.mark.parametrize(
    "stage, checkpointing",
    [
        (0, True),
        (0, "selective"),
        (1, False),
        (2, False),
        pytest.param(3, False, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
        pytest.param(3, "selective", marks=pytest.mark.slow),
    ],
)
def test_one_rank(
    tiny_config: PolicyConfig,
    plain: Trained,
    steps: list[list[TrajectoryGroup]],
    stage: int,
    checkpointing: bool | str,
) -> None:
    agree(train(tiny_config, layout(stage, SMALL, checkpointing), steps), plain)


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_bfloat16_follows(
    tiny_config: PolicyConfig, plain: Trained, steps: list[list[TrajectoryGroup]], stage: int
) -> None:
    got = train(tiny_config.model_copy(update={"dtype": "bfloat16"}), layout(stage, SMALL), steps)
    for mine, theirs in zip(got.metrics, plain.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.1, abs=0.02)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)
    assert {tensor.dtype for tensor in got.tensors.values()} == {torch.bfloat16}
