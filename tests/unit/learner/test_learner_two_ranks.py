"""Two ranks train what one does, at any layout, with an adapter and after a resume: one start of both for all."""

from __future__ import annotations

from typing import Any

import pytest
import test_learner_checkpoint as checkpoints
import test_learner_layouts as layouts
import test_learner_lora as adapters
import torch
from learner_cases import random_groups
from learner_worker import Trained, on_ranks, parts_of_parameters, train, train_and_resume
from test_learner_layouts import LARGE, SMALL

from learner.process_group import join
from policy.config import PolicyConfig
from policy.janus import Policy
from transport.rendezvous import Endpoint
from transport.trajectory import TrajectoryGroup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LAYOUTS = [
    layouts.layout(0, SMALL),
    layouts.layout(1, LARGE),
    layouts.layout(2, SMALL),
    layouts.layout(3, SMALL),
    layouts.layout(3, LARGE, "selective"),
]
ADAPTERS = [adapters.layout(0), adapters.layout(2), adapters.layout(3)]
RESUMED = (0, 1, 3)

Steps = list[list[TrajectoryGroup]]


@pytest.fixture(scope="module")
def steps(tiny_policy: Policy) -> Steps:
    return [random_groups(tiny_policy, groups=3, members=4, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def answers(
    tiny_config: PolicyConfig, tiny_policy: Policy, steps: Steps, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[Any]]]:
    """What both ranks say, by test: [job][rank]."""
    folder = tmp_path_factory.mktemp("two_ranks")
    longer = [random_groups(tiny_policy, groups=2, members=3, seed=seed) for seed in range(4)]
    jobs: dict[str, list[tuple[Any, ...]]] = {
        "layouts": [(train, tiny_config, config, steps) for config in LAYOUTS],
        "adapters": [(train, tiny_config, config, steps) for config in ADAPTERS],
        "adapter resumed": [(train_and_resume, tiny_config, adapters.layout(3), steps, folder / "adapter")],
        "parts": [
            (parts_of_parameters, tiny_config, adapters.layout(3, lora=lora)) for lora in (adapters.LORA, None)
        ],
        "resumed": [
            (train_and_resume, tiny_config, checkpoints.config(stage), longer, folder / str(stage))
            for stage in RESUMED
        ],
    }
    found = iter(on_ranks(2, [job for some in jobs.values() for job in some], deadline_s=800))
    return {name: [next(found) for _ in some] for name, some in jobs.items()}


def on_one_rank(policy: PolicyConfig, config: Any, steps: Steps) -> Trained:
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)
    return train(policy, config, steps)


def test_layouts(answers: dict[str, list[list[Any]]], tiny_config: PolicyConfig, steps: Steps) -> None:
    plain = on_one_rank(tiny_config, layouts.layout(0, LARGE), steps)
    for config, by_rank in zip(LAYOUTS, answers["layouts"], strict=True):
        for trained in by_rank:
            layouts.agree(trained, plain)
        assert by_rank[0].metrics[0]["micro_batches"] == by_rank[1].metrics[0]["micro_batches"], config


def test_adapters(answers: dict[str, list[list[Any]]], tiny_config: PolicyConfig, steps: Steps) -> None:
    plain = on_one_rank(tiny_config, adapters.layout(), steps)
    for by_rank in answers["adapters"]:
        for got in by_rank:
            adapters.agree(got, plain)
    (by_rank,) = answers["adapter resumed"]
    for undisturbed, again in by_rank:
        for name, tensor in undisturbed.tensors.items():
            assert torch.equal(tensor, again.tensors[name]), name


def test_parts_under_zero_3(answers: dict[str, list[list[Any]]]) -> None:
    """With an adapter there is no reference beside the policy."""
    for by_rank, models in zip(answers["parts"], (1, 2), strict=True):
        for parts in by_rank:
            assert len(parts) == models
            for model in parts:
                check_parts(model)


def check_parts(model: dict[str, tuple[int, int, int]]) -> None:
    """Each of two ranks has half of every parameter, and only the heads stay whole beside it."""
    assert sum(elements for elements, _, _ in model.values()) > 100_000
    for name, (elements, part, beside) in model.items():
        assert part == -(-elements // 2), name
        assert beside == (elements if "lm_head" in name or "generation_head" in name else 0), name


def test_resume(answers: dict[str, list[list[Any]]]) -> None:
    for by_rank in answers["resumed"]:
        for both in by_rank:
            checkpoints.agree(both)
