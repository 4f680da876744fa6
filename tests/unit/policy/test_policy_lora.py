"""Adapters as they travel and are merged: exact from the checkpoint's weights, told apart from whole weights."""

from __future__ import annotations

import pytest
import torch
from learner_cases import random_adapter

from policy.config import PolicyConfig
from policy.janus import Policy
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
