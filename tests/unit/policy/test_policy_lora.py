"""Adapters as they travel and are merged: exact from the checkpoint's weights, told apart from whole weights."""

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
from policy.lora import SCALE, AdapterError, BaseWeights, adapter_name, merge, received_adapter

Q = "model.language_model.layers.0.self_attn.q_proj.weight"
DOWN = "model.language_model.layers.1.mlp.down_proj.weight"


def test_merging_rounds_once() -> None:
    random = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(*shape, generator=random).bfloat16() for shape in [(8, 6), (2, 6), (8, 2)])
    exact = weight.double() + 0.5 * b.double() @ a.double()
    got = merge(weight, a, b, 0.5)
    assert got.dtype == torch.bfloat16 and torch.equal(got, exact.float().bfloat16())
    assert torch.equal(merge(weight, a, torch.zeros_like(b), 0.5), weight)


def test_whole_weights_are_no_adapter() -> None:
    assert received_adapter([(Q, torch.zeros(2, 2))]) is None
    assert received_adapter([]) is None


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda tensors: tensors.pop(SCALE), "without 'lora.scale'"),
        (lambda tensors: tensors.pop(adapter_name("B", Q)), "1 tensors too many or too few, first .*lora.B:.*q_proj"),
        (lambda tensors: tensors.pop(adapter_name("A", Q)), "1 tensors too many or too few, first .*lora.B:.*q_proj"),
        (lambda tensors: tensors.update({Q: torch.zeros(2)}), "1 tensors too many or too few, first .*q_proj"),
        (lambda tensors: tensors.update({adapter_name("A", Q): torch.zeros(3, 64)}), r"\[64, 2\] times \[3, 64\]"),
    ],
)
def test_what_is_no_whole_adapter_is_refused(tiny_policy: Policy, spoil: object, told: str) -> None:
    tensors = random_adapter(tiny_policy, [Q, DOWN])
    assert callable(spoil)
    spoil(tensors)
    with pytest.raises(AdapterError, match=told):
        received_adapter(list(tensors.items()))


def test_merged_from_the_checkpoint(tiny_policy: Policy, tiny_config: PolicyConfig) -> None:
    tensors = random_adapter(tiny_policy, [Q, DOWN])
    adapter = received_adapter(list(tensors.items()))
    assert adapter is not None and adapter.scale == 0.75
    state = tiny_policy.model.state_dict()
    assert adapter.shapes() == {name: tuple(state[name].shape) for name in (Q, DOWN)}
    base = BaseWeights(tiny_config)
    merged = dict(adapter.merged(base.tensor, base.shapes()))
    assert merged.keys() == state.keys()
    for name, tensor in merged.items():
        expected = state[name]
        if name in (Q, DOWN):
            expected = expected + 0.75 * tensors[adapter_name("B", name)] @ tensors[adapter_name("A", name)]
            assert not torch.equal(tensor, state[name])
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)
    half = BaseWeights(tiny_config.model_copy(update={"dtype": "bfloat16"}))
    assert {tensor.dtype for _, tensor in adapter.merged(half.tensor)} == {torch.bfloat16}


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
