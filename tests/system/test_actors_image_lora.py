"""An adapter merged by the image actor's painter."""

from __future__ import annotations

import pytest
import torch
from learner_cases import random_adapter
from torch import Tensor

from actors.config import ImageConfig
from actors.errors import EngineError, WeightsError
from actors.image_actor import Painter
from policy.config import PolicyConfig
from policy.errors import CheckpointError
from policy.janus import Policy, load_policy
from policy.lora import SCALE, BaseWeights, adapter_name, merge

Q = "model.language_model.layers.0.self_attn.q_proj.weight"
DOWN = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def painter(tiny_config: PolicyConfig) -> Painter:
    return Painter(load_policy(tiny_config), ImageConfig(batch_size=2), BaseWeights(tiny_config))


def weights(painter: Painter) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in painter._policy.model.state_dict().items()}


def test_the_image_actor_merges_every_version_anew(painter: Painter, tiny_policy: Policy) -> None:
    base = weights(painter)
    first = random_adapter(tiny_policy, [Q, DOWN])
    for version in (1, 2):  # the second time, its model is no longer what the checkpoint holds
        painter.load(version, first.items())
        now = weights(painter)
        for name in (Q, DOWN):
            expected = merge(base[name], first[adapter_name("A", name)], first[adapter_name("B", name)], 0.75)
            assert torch.equal(now[name], expected) and not torch.equal(now[name], base[name])
    assert painter.version == 2
    nothing = {name: tensor if name == SCALE else torch.zeros_like(tensor) for name, tensor in first.items()}
    painter.load(3, nothing.items())
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights(painter).items())


def test_an_adapter_that_does_not_fit_changes_nothing(painter: Painter, tiny_policy: Policy) -> None:
    base = weights(painter)
    good = random_adapter(tiny_policy, [Q, DOWN])
    for tensors, told in [
        ({**good, adapter_name("A", Q): torch.zeros(2, 7)}, r"q_proj.weight' has shape \[64, 7\], the model's is"),
        (
            {**good, adapter_name("A", "x"): torch.ones(2, 2), adapter_name("B", "x"): torch.ones(2, 2)},
            "no tensor 'x'",
        ),
        ({name: tensor for name, tensor in good.items() if name != SCALE}, "weights 1: an adapter came without"),
    ]:
        with pytest.raises(WeightsError, match=told):
            painter.load(1, tensors.items())
    assert painter.version == 0
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights(painter).items())


def test_a_checkpoint_that_is_gone_ends_the_actor(painter: Painter, tiny_policy: Policy) -> None:
    painter._base = BaseWeights(PolicyConfig(checkpoint="/nowhere", dtype="float32"))
    with pytest.raises(CheckpointError, match="/nowhere is not a folder"):
        painter._base.tensor(Q)
    with pytest.raises(EngineError, match="weights 1: half written, for the checkpoint is gone"):
        painter.load(1, random_adapter(tiny_policy, [Q]).items())
