"""The learner is the algorithm of tests/support/reference_learner.py: same loss, same gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference_learner
import torch
from learner_cases import WEIGHTS, clone, random_groups
from reference_learner import Reference
from torch import Tensor

from learner.config import LearnerConfig, ObjectiveConfig, OptimizerConfig
from learner.engine import LearnerEngine
from learner.process_group import join
from policy.janus import Policy, trained_parameters
from transport.rendezvous import Endpoint

CASES = {
    "guided": (ObjectiveConfig(), Reference()),
    "conditional": (ObjectiveConfig(distribution="conditional"), Reference(distribution="conditional")),
    "no clip": (ObjectiveConfig(clip=False), Reference(clip=None)),
    "clip-higher": (ObjectiveConfig(clip_low=0.1, clip_high=0.4), Reference(clip=(0.1, 0.4))),
    "conditional, no clip, large beta": (
        ObjectiveConfig(distribution="conditional", clip=False, beta=0.5),
        Reference(distribution="conditional", clip=None, beta=0.5),
    ),
    "no reference": (ObjectiveConfig(beta=0), Reference(beta=0)),
    "no std": (ObjectiveConfig(std=False), Reference(std=False)),
    "token CoT only": (ObjectiveConfig(semantic_weight=0, beta=0.1), Reference(semantic_weight=0, beta=0.1)),
    "semantic CoT only": (ObjectiveConfig(image_weight=0, beta=0.1), Reference(image_weight=0, beta=0.1)),
}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(tiny_policy: Policy, name: str) -> None:
    objective, reference = CASES[name]
    groups = random_groups(tiny_policy, groups=3, members=4, seed=len(name))
    policy = clone(tiny_policy)
    settings = OptimizerConfig(grad_norm=0, eps=1e-2, lr=1e-3)
    config = LearnerConfig(objective=objective, optimizer=settings, micro_batch_tokens=200)
    engine = LearnerEngine(policy, "language_model", config, total_steps=1)
    shift(policy)

    model, frozen = copy.deepcopy(tiny_policy.model).double(), copy.deepcopy(tiny_policy.model).double()
    model.load_state_dict(policy.model.state_dict())
    expected_loss = reference_learner.loss(model, frozen, groups, WEIGHTS, policy.layout, reference)
    expected_loss.backward()
    expected = gradients(model)

    got: dict[str, Tensor] = {}
    step = engine.engine.step

    def keep_gradients() -> None:
        got.update(gradients(policy.model))
        step()

    engine.engine.step = keep_gradients
    metrics = engine.step(groups, WEIGHTS)

    assert metrics["loss"] == pytest.approx(expected_loss.item(), abs=1e-5)
    assert got.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    assert scale > 1e-3
    for parameter, gradient in expected.items():
        assert (got[parameter] - gradient).abs().max() <= 1e-5 * max(1.0, scale), parameter
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    if objective.clip:
        assert metrics["clip_fraction/image"] > 0.05  # the case is one where the clip bites
    if objective.beta:
        assert metrics["kl"] > 1e-4  # and one away from the reference


def test_on_policy_the_ratio_is_one(tiny_policy: Policy) -> None:
    groups = random_groups(tiny_policy, groups=2, members=4, staleness=0)
    config = LearnerConfig(micro_batch_tokens=200, peak_tflops=1.0)
    engine = LearnerEngine(clone(tiny_policy), "language_model", config, total_steps=1)
    metrics = engine.step(groups, WEIGHTS)
    assert 0 < metrics["mfu"] < 1
    for segment in ("semantic", "image"):
        assert metrics[f"logprob_gap_max/{segment}"] < 1e-4
        assert metrics[f"ratio_max/{segment}"] == pytest.approx(1, abs=1e-4)
        assert metrics[f"kl/{segment}"] == metrics[f"clip_fraction/{segment}"] == 0
        assert metrics[f"entropy/{segment}"] > 0.1


def test_groups_without_rewards_take_no_step(tiny_policy: Policy) -> None:
    policy = clone(tiny_policy)
    engine = LearnerEngine(policy, "language_model", LearnerConfig(), total_steps=1)
    metrics = engine.step(random_groups(tiny_policy, groups=2, members=4), {"never_asked": 1.0})
    assert metrics["tokens"] == 0 and metrics["groups_masked"] == 2 and metrics["members_masked"] == 8
    assert engine.steps == 0
    for name, tensor in tiny_policy.model.state_dict().items():
        assert torch.equal(tensor, policy.model.state_dict()[name])


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in trained_parameters(model, "language_model").items()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def shift(policy: Policy) -> None:
    """Move what trains away from the reference policy."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(policy.model, "language_model").values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
