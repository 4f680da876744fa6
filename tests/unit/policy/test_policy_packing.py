"""Packed rows: attention of a line beside sums written out for each row, in float64, and positions of prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from policy.packing import PackedRows, PrefixTree, attend

PATHS = [[0, 1, 2, 3], [0, 1, 4], [0, 5, 6, 7, 8], [0, 1, 4, 9]]


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention [N, heads, size] of a line: each position sees its row up to itself, and no other row."""
    pasts = {path[end]: path[: end + 1] for path in PATHS for end in range(len(path))}
    shared = query.shape[1] // key.shape[1]
    out = []
    for place in range(len(query)):
        seen = torch.tensor(pasts[place])
        k, v = (states[seen].repeat_interleave(shared, 1) for states in (key, value))
        weights = torch.softmax(scale * (k * query[place]).sum(-1), 0)
        out.append((weights.unsqueeze(-1) * v).sum(0))
    return torch.stack(out)


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_and_its_gradients_are_those_of_each_row(kv_heads: int, scale: float) -> None:
    draws = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(10, heads, 3, generator=draws, dtype=torch.float64, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    packed = PackedRows.of([torch.tensor(path) for path in PATHS], torch.device("cpu"))
    line, _ = attend(nn.Module(), *(t.transpose(0, 1)[None] for t in (q, k, v)), None, scaling=scale, packed=packed)
    expected = plain(q, k, v, scale)
    torch.testing.assert_close(line[0], expected, rtol=1e-12, atol=1e-12)
    toward = torch.randn(expected.shape, generator=draws, dtype=torch.float64)
    found = torch.autograd.grad(line[0], (q, k, v), toward)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (q, k, v), toward), rtol=1e-10, atol=1e-10)


def test_rows_that_share_nothing_have_no_copies() -> None:
    packed = PackedRows.of([torch.tensor([2, 3, 4]), torch.tensor([0, 1])], torch.device("cpu"))
    assert packed.path.tolist() == [0, 1, 2, 3, 4] and packed.home.tolist() == [0, 1, 2, 3, 4]
    assert packed.copies.tolist() == [] and packed.bunches == ((1, 2), (1, 3)) and packed.longest == 3


def test_a_prompt_that_begins_as_another_goes_on_is_another() -> None:
    tree = PrefixTree()
    assert tree.add([5, 6, 7]) == [0, 1, 2]
    assert tree.add([6]) == [3] and tree.add([7]) == [4]  # not what follows 5, nor what follows 5, 6
    assert tree.add([]) == [] and len(tree) == 5
